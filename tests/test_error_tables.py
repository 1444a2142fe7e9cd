from collections.abc import Iterator

import pytest

from qwen_service.dialects.ollama import errors as ollama
from qwen_service.dialects.openai import errors as openai
from qwen_service.errors import Busy, QueueFull, ServiceError


def tree(root: type[ServiceError]) -> Iterator[type[ServiceError]]:
    yield root
    for child in root.__subclasses__():
        if child.__module__ == "qwen_service.errors":
            yield from tree(child)


@pytest.mark.parametrize("kind", list(tree(ServiceError)))
def test_every_error_has_an_entry_in_each_dialect(kind: type[ServiceError]) -> None:
    assert kind in openai.TABLE
    assert kind in ollama.TABLE


@pytest.mark.parametrize("kind", list(tree(Busy)))
def test_every_busy_error_says_when_to_come_back(kind: type[Busy]) -> None:
    for error_response in (openai.error_response, ollama.error_response):
        assert error_response(kind("busy", retry_after=2.2)).headers["retry-after"] == "3"


def test_a_full_queue_is_429_for_openai_and_503_for_ollama() -> None:
    assert openai.error_response(QueueFull("full")).status_code == 429
    assert ollama.error_response(QueueFull("full")).status_code == 503
