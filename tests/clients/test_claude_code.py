"""The real Claude Code, as scripts/install_agents.sh installs it, against a service with a scripted engine."""

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from qwen_service.chat import Sampling
from qwen_service.runtime import Prompt
from tests.case_service import Script, scripted_service
from tests.clients.conftest import served

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "qwen-service-agents"
PROGRAM = Path(os.environ.get("QWEN_SERVICE_AGENTS", CACHE)) / "node_modules" / ".bin" / "claude"
FLAGS = ["--bare", "--disable-slash-commands", "--dangerously-skip-permissions"]

pytestmark = [
    pytest.mark.agents,
    pytest.mark.skipif(not PROGRAM.exists(), reason="Claude Code is not there: scripts/install_agents.sh"),
]


@dataclass
class Worker(Script):
    """Says hello, or has the shell compute when the prompt asks for it and reports what the shell said."""

    context: int = 200_000  # tokens of the scripted tokenizer are letters

    def reply_to(self, prompt: Prompt, sampling: Sampling) -> str:
        last = prompt.request.messages[-1]
        if last.role == "tool":
            return f"The shell says {last.content.strip()}."
        if any(m.role == "user" and "Use the shell" in m.content for m in prompt.request.messages):
            arguments = {"command": "echo $((6 * 7))", "description": "Multiply"}
            return f"<tool_call>\n{json.dumps({'name': 'Bash', 'arguments': arguments})}\n</tool_call>"
        return "Hello there, friend."


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture
def service(tmp_path: Path, worker: Worker) -> Iterator[str]:
    folder = tmp_path / "service"
    folder.mkdir()
    with served(scripted_service(folder, worker, {"model_aliases": {"claude-*": "tiny"}})) as url:
        yield url


def claude(url: str, folder: Path, prompt: str) -> str:
    home = folder / "home"
    home.mkdir()
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_AUTH_TOKEN": "x",
        "ANTHROPIC_MODEL": "tiny",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
        "IS_SANDBOX": "1",
    }
    command = [str(PROGRAM), *FLAGS, "-p", prompt]
    done = subprocess.run(
        command,
        cwd=home,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_text_turn(service: str, tmp_path: Path) -> None:
    assert claude(service, tmp_path, "Say hello") == "Hello there, friend.\n"


def test_a_tool_turn_extends_the_first_prompt(service: str, worker: Worker, tmp_path: Path) -> None:
    assert claude(service, tmp_path, "Use the shell to multiply") == "The shell says 42.\n"
    first, second = (prompt.token_ids for prompt in worker.prompts)
    assert second[: len(first)] == first  # so that the KV cache covers all of it
