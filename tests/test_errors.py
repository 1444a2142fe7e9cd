import re
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from qwen_service import errors
from qwen_service.api.anthropic import errors as anthropic
from qwen_service.api.ollama import errors as ollama
from qwen_service.api.openai import errors as openai
from qwen_service.api.reply import ANSWERS
from qwen_service.errors import ServiceError


def tree(kind: type[ServiceError] = ServiceError) -> Iterator[type[ServiceError]]:
    yield kind
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from tree(child)


ALL = list(tree())


def made(kind: type[ServiceError], message: str) -> ServiceError:
    return errors.UnknownModel("tiny", message, whole=True) if kind is errors.UnknownModel else kind(message)


def drawn() -> dict[str, str]:
    """Class -> parent, as the docstring draws it."""
    parents, path = {}, ["ServiceError"]
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"([│├└─ ]+)(\w+)", line):
            depth = len(found[1]) // 4
            path[depth:] = [found[2]]
            parents[found[2]] = path[depth - 1]
    return parents


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    assert drawn() == {kind.__name__: kind.__mro__[1].__name__ for kind in ALL[1:]}


def test_every_class_has_its_answer() -> None:
    assert set(ANSWERS) == set(ALL)


@pytest.mark.parametrize("kind", ALL)
def test_every_error_is_answered_in_openais_shape(kind: type[ServiceError]) -> None:
    response = openai.error_response(made(kind, 'why "this"'))
    body = orjson.loads(bytes(response.body))
    assert response.status_code in range(400, 600)
    assert response.status_code != 422
    assert list(body) == ["error"]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"] == 'why "this"'
    assert orjson.loads(openai.error_chunk(made(kind, "x")).removeprefix(b"data: "))["error"]["message"] == "x"


@pytest.mark.parametrize("kind", ALL)
def test_every_error_is_answered_in_ollamas_shape(kind: type[ServiceError]) -> None:
    response = ollama.error_response(made(kind, "why"))
    said = "model 'tiny' not found. why" if kind is errors.UnknownModel else "why"  # the words that clients look for
    assert orjson.loads(bytes(response.body)) == {"error": said}
    assert orjson.loads(ollama.error_line(made(kind, "why"))) == {"error": said}
    assert response.headers["content-type"] == "application/json"


@pytest.mark.parametrize("kind", ALL)
def test_every_error_is_answered_in_anthropics_shape(kind: type[ServiceError]) -> None:
    response = anthropic.error_response(made(kind, "why"))
    body = orjson.loads(bytes(response.body))
    assert response.status_code in range(400, 600)
    assert (set(body), body["type"], body["error"]["message"]) == ({"type", "error", "request_id"}, "error", "why")
    assert anthropic.error_chunk(made(kind, "why")).startswith(b"event: error\ndata: {")


@pytest.mark.parametrize("dialect", [openai, ollama, anthropic])
def test_whoever_shall_come_back_is_told_when(dialect: Any) -> None:
    assert dialect.error_response(errors.QueueFull("full", retry_after=2.2)).headers["retry-after"] == "3"
    assert dialect.error_response(errors.Loading("not yet")).headers["retry-after"] == "5"
    assert "retry-after" not in dialect.error_response(errors.InvalidRequest("no")).headers


def test_the_field_at_fault_is_named() -> None:
    assert openai.error_body(errors.InvalidRequest("no", param="n"))["error"]["param"] == "n"


def test_an_error_of_another_module_is_answered_as_its_parent() -> None:
    class Special(errors.PromptTooLong):
        pass

    assert openai.error_body(Special("x"))["error"]["code"] == "context_length_exceeded"
