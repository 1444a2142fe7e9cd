"""docs/api.md against the code it describes."""

import re
from collections.abc import Iterator

import pytest
from pydantic import BaseModel

from qwen_service.api.anthropic import errors as anthropic_errors
from qwen_service.api.anthropic import wire as anthropic_wire
from qwen_service.api.openai import errors, wire
from qwen_service.api.openai.responses.wire import ResponsesBody
from qwen_service.api.reply import ANSWERS
from qwen_service.chat import Sampling
from qwen_service.runtime import Capabilities
from qwen_service.runtimes.axera import repl as ax_repl
from qwen_service.runtimes.axera.api import AxApi
from qwen_service.runtimes.axllm.runtime import AxLlm
from qwen_service.runtimes.llamacpp.runtime import LlamaCpp
from tests import ROOT

PAGE = (ROOT / "docs" / "api.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table under a heading."""
    section = re.split(r"^##+ ", PAGE.partition(f"# {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    assert lines, f"no table under {heading}"
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def named(heading: str) -> Iterator[str]:
    for first, *_ in rows(heading):
        yield from re.findall(r"`([^`]+)`", first)


@pytest.mark.parametrize(
    ("heading", "model"),
    [
        ("OpenAI: POST /v1/chat/completions", wire.ChatCompletionBody),
        ("OpenAI: POST /v1/completions", wire.CompletionBody),
        ("A message", wire.ChatMessage),
        ("OpenAI: POST /v1/responses", ResponsesBody),
        ("Anthropic: POST /v1/messages", anthropic_wire.MessagesBody),
    ],
)
def test_every_field_is_listed_once(heading: str, model: type[BaseModel]) -> None:
    assert sorted(named(heading)) == sorted(model.model_fields)


@pytest.mark.parametrize(
    "heading",
    ["OpenAI: POST /v1/chat/completions", "OpenAI: POST /v1/completions", "OpenAI: POST /v1/responses", "A message"],
)
def test_every_field_is_honoured_refused_or_ignored(heading: str) -> None:
    for name, fate in rows(heading):
        assert re.match(r"honoured|refused|ignored|with `messages`", fate), name


def test_what_is_said_to_be_ignored_beside_the_fields_is_no_field() -> None:
    also = re.search(r"Also ignored: (.+?), and the", PAGE, re.DOTALL)
    assert also
    assert set(re.findall(r"`(\w+)`", also[1])) & set(wire.ChatCompletionBody.model_fields) == set()


@pytest.mark.parametrize(
    ("column", "capabilities"),
    [(1, LlamaCpp.capabilities), (2, Capabilities(ax_repl.SAMPLING)), (3, AxApi.capabilities), (4, AxLlm.capabilities)],
    ids=["llamacpp", "ax_repl", "ax_api", "axllm"],
)
def test_each_engine_honours_what_the_page_says(column: int, capabilities: Capabilities) -> None:
    said = {
        row[0].strip("`").replace("repetition_", "repeat_"): row[column] == "yes"
        for row in rows("Which engine honours what")
    }
    assert said.pop("logprobs") == capabilities.logprobs
    assert said.pop("formats and forced calls by grammar") == capabilities.constrained_output == capabilities.grammars
    assert said == {name: name in capabilities.sampling for name in said}
    assert set(said) == set(Sampling.__dataclass_fields__) - {"top_logprobs", "grammar", "json_schema"}


def test_the_errors_are_those_of_the_table() -> None:
    shown = [(name, int(status), kind.strip("`"), code.strip("`")) for name, status, kind, code in rows("Errors")]
    assert shown == [
        (kind.__name__, status, errors.type_of(status), code or "null") for kind, (status, code) in ANSWERS.items()
    ]


def test_anthropics_errors_are_those_of_the_table() -> None:
    shown = [(name, int(status), kind.strip("`")) for name, status, kind in rows("Anthropic: errors")]
    table = anthropic_errors.TABLE
    assert shown == [(kind.__name__, status, anthropic_errors.type_of(status)) for kind, status in table.items()]
