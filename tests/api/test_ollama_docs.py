"""docs/ollama.md against the code it describes."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen_service.api.ollama import wire

PAGE = (Path(__file__).parents[2] / "docs" / "ollama.md").read_text(encoding="utf-8")
COMMON = set(wire.GenerationFields.model_fields)


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table under a heading."""
    section = re.split(r"^##+ ", PAGE.partition(f"# {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def named(heading: str) -> Iterator[str]:
    for first, *_ in rows(heading):
        yield from re.findall(r"`([^`]+)`", first)


@pytest.mark.parametrize(
    ("heading", "fields"),
    [
        ("POST /api/chat", set(wire.ChatBody.model_fields)),
        ("POST /api/generate", set(wire.GenerateBody.model_fields) - COMMON),
        ("A message", set(wire.ChatMessage.model_fields)),
        ("Options", set(wire.Options.model_fields)),
    ],
)
def test_every_field_is_listed_once_with_its_fate(heading: str, fields: set[str]) -> None:
    assert sorted(named(heading)) == sorted(fields)
    for name, fate in rows(heading):
        assert re.match(r"honoured|refused|ignored", fate), name


def test_the_options_that_no_engine_has_are_named_as_ignored() -> None:
    ignored = [names for names, fate in rows("Options") if fate.startswith("ignored")]
    assert re.findall(r"`(\w+)`", " ".join(ignored)) == list(wire.IGNORED_OPTIONS)
