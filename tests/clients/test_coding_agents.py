"""The real coding agents against a service with a scripted engine: a text turn and a tool turn of each."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from qwen_service.chat import Sampling
from qwen_service.runtime import Prompt
from tests.case_service import Script, scripted_service
from tests.clients.coding_agents import CODERS, Coder, demand, launch, launched
from tests.clients.conftest import served

pytestmark = pytest.mark.agents


@dataclass
class Worker(Script):
    """Says hello, or thinks and has the shell compute when the prompt asks for it and reports what the shell said."""

    context: int = 200_000  # tokens of the scripted tokenizer are letters
    coder: Coder = CODERS[0]

    @property
    def reply_ids(self) -> list[int]:
        """Of the first reply, as the engine generates it: an id a word."""
        return [ord(word[0]) for word in re.findall(r"\S+\s*|\s+", self.call())]

    def call(self) -> str:
        arguments = {self.coder.argument: "echo $((6 * 7))", **self.coder.more}
        return f"<think>\nI must look.\n</think>\n\n<tool_call>\n{json.dumps({'name': self.coder.tool, 'arguments': arguments})}\n</tool_call>"

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
    return Worker(coder=demand(request.param))


@pytest.fixture
def service(tmp_path: Path, worker: Worker) -> Iterator[str]:
    folder = tmp_path / "service"
    folder.mkdir()
    with served(scripted_service(folder, worker, {})) as url:
        yield url


def test_a_text_turn_with_a_small_prompt(service: str, worker: Worker, tmp_path: Path) -> None:
    assert launched(worker.coder, service, tmp_path, "Say hello") == "Hello there, friend."
    (prompt,) = worker.prompts
    assert len(prompt.token_ids) < worker.coder.prompt_bytes


def test_a_tool_turn_extends_the_first_prompt(service: str, worker: Worker, tmp_path: Path) -> None:
    assert launched(worker.coder, service, tmp_path, "Use the shell to multiply").endswith("The shell says 42.")
    first, second = (prompt.token_ids for prompt in worker.prompts)
    known = (*first, *worker.reply_ids)
    assert second[: len(known)] == known  # so that the KV cache covers all of it


REFUSALS = {
    "codex": "Codex ran out of room in the model's context window",
    "claude": "(limit 1999)",
}


@pytest.mark.parametrize("coder", CODERS[:2], ids=list(REFUSALS))
def test_a_prompt_that_is_too_long_is_understood_and_not_sent_again(coder: Coder, tmp_path: Path) -> None:
    demand(coder)
    folder = tmp_path / "service"
    folder.mkdir()
    with served(scripted_service(folder, Script(context=2000), {})) as url:
        done = launch(coder, url, tmp_path, "Say hello")
        metrics = httpx.get(f"{url}/metrics").text
    assert done.returncode == 1
    assert REFUSALS[coder.name] in done.stdout + done.stderr
    assert re.findall(r'^qwen_requests_total{.*status="400"} (.+)$', metrics, re.MULTILINE) == ["1.0"]
