"""The real coding agents, as scripts/install_agents.sh installs them, started by `qwen-service launch`."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from qwen_service.chat import Sampling
from qwen_service.runtime import Prompt
from tests.case_service import Script, scripted_service
from tests.clients.conftest import served
from tests.service_process import ROOT

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "qwen-service-agents"
PROGRAMS = Path(os.environ.get("QWEN_SERVICE_AGENTS", CACHE)) / "node_modules" / ".bin"
PATIENCE = 100.0  # seconds: ten times what the slowest takes to start


@dataclass(frozen=True)
class Coder:
    """An agent that runs without asking, and the tool by which it runs a command."""

    name: str
    flags: tuple[str, ...]
    tool: str
    argument: str
    more: dict[str, Any] = field(default_factory=dict)
    prompt_bytes: int = 6_000  # at most, tools and instructions


CODERS = [
    Coder(
        "codex",
        ("exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"),
        "exec_command",
        "cmd",
    ),
    Coder("claude", ("--dangerously-skip-permissions", "-p"), "Bash", "command", {"description": "Multiply"}),
    Coder("opencode", ("run",), "bash", "command", {"description": "Multiply"}, prompt_bytes=12_000),
]
pytestmark = pytest.mark.agents


@dataclass
class Worker(Script):
    """Says hello, or has the shell compute when the prompt asks for it and reports what the shell said."""

    context: int = 200_000  # tokens of the scripted tokenizer are letters
    coder: Coder = CODERS[0]

    @property
    def reply_ids(self) -> list[int]:
        """Of the first reply, as the engine generates it: an id a word."""
        return [ord(word[0]) for word in re.findall(r"\S+\s*|\s+", self.call())]

    def call(self) -> str:
        arguments = {self.coder.argument: "echo $((6 * 7))", **self.coder.more}
        return f"<tool_call>\n{json.dumps({'name': self.coder.tool, 'arguments': arguments})}\n</tool_call>"

    def reply_to(self, prompt: Prompt, sampling: Sampling) -> str:
        last = prompt.request.messages[-1]
        if last.role == "tool":
            return f"The shell says {last.content.strip().splitlines()[-1]}."
        if any(m.role == "user" and "Use the shell" in m.content for m in prompt.request.messages):
            return self.call()
        return "Hello there, friend."


@pytest.fixture(
    params=[pytest.param(c, id=c.name, marks=[pytest.mark.slow] if c.name == "opencode" else []) for c in CODERS]
)
def worker(request: pytest.FixtureRequest) -> Worker:
    coder: Coder = request.param
    if not (PROGRAMS / coder.name).exists():
        pytest.skip(f"{coder.name} is not there: scripts/install_agents.sh")
    return Worker(coder=coder)


@pytest.fixture
def service(tmp_path: Path, worker: Worker) -> Iterator[str]:
    folder = tmp_path / "service"
    folder.mkdir()
    with served(scripted_service(folder, worker, {})) as url:
        yield url


def launched(coder: Coder, url: str, folder: Path, prompt: str) -> str:
    home, work = folder / "home", folder / "work"
    home.mkdir()
    work.mkdir()
    environment = {
        "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
        "HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "IS_SANDBOX": "1",  # Claude Code asks for it where it may run as root
    }
    command = [sys.executable, "-m", "qwen_service", "launch", coder.name, "--url", url, "--", *coder.flags, prompt]
    done = subprocess.run(
        command,
        cwd=work,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not any((home / name).exists() for name in (".codex", ".claude", ".claude.json"))
    return done.stdout.strip()


def test_a_text_turn_with_a_small_prompt(service: str, worker: Worker, tmp_path: Path) -> None:
    assert launched(worker.coder, service, tmp_path, "Say hello") == "Hello there, friend."
    (prompt,) = worker.prompts
    assert len(prompt.token_ids) < worker.coder.prompt_bytes


def test_a_tool_turn_extends_the_first_prompt(service: str, worker: Worker, tmp_path: Path) -> None:
    assert launched(worker.coder, service, tmp_path, "Use the shell to multiply").endswith("The shell says 42.")
    first, second = (prompt.token_ids for prompt in worker.prompts)
    known = (*first, *worker.reply_ids)
    assert second[: len(known)] == known  # so that the KV cache covers all of it
