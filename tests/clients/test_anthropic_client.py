"""The official `anthropic` package, as its README uses it."""

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic

HELLO: list[Any] = [{"role": "user", "content": "Say hello"}]
WEATHER: Any = {
    "name": "get_weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@pytest.fixture
def client(url: str) -> Iterator[Anthropic]:
    with Anthropic(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def test_a_message(client: Anthropic) -> None:
    message = client.messages.create(model="tiny", max_tokens=1000, messages=HELLO)
    assert [block.type for block in message.content] == ["text"]
    assert message.content[0].to_dict()["text"] == "Hello there, friend."
    assert (message.stop_reason, message.usage.output_tokens) == ("end_turn", 3)


def test_a_stream(client: Anthropic) -> None:
    with client.messages.stream(model="tiny", max_tokens=1000, messages=HELLO) as stream:
        assert "".join(stream.text_stream) == "Hello there, friend."
        final = stream.get_final_message()
    assert (final.stop_reason, final.usage.output_tokens) == ("end_turn", 3)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_tool_loop(client: Anthropic, streamed: bool) -> None:
    def answer(messages: list[Any]) -> anthropic.types.Message:
        given: dict[str, Any] = {"model": "tiny", "max_tokens": 1000, "messages": messages, "tools": [WEATHER]}
        if not streamed:
            message: anthropic.types.Message = client.messages.create(**given)
            return message
        with client.messages.stream(**given) as stream:
            return stream.get_final_message()

    asked = [{"role": "user", "content": "Weather in Paris?"}]
    first = answer(asked)
    call = first.content[-1]
    assert first.stop_reason == "tool_use"
    assert call.type == "tool_use"
    assert (call.name, call.input) == ("get_weather", {"city": "Paris"})
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
    second = answer([*asked, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}])
    assert [block.to_dict().get("text") for block in second.content] == ["It is sunny in Paris."]


def test_tokens_are_counted(client: Anthropic) -> None:
    counted = client.messages.count_tokens(model="tiny", messages=HELLO, tools=[WEATHER])
    usage = client.messages.create(model="tiny", max_tokens=9, messages=HELLO, tools=[WEATHER]).usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_models_are_listed(client: Anthropic) -> None:
    assert sorted(model.id for model in client.models.list()) == ["other", "tiny"]


def test_errors_are_the_packages_own(client: Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as unknown:
        client.messages.create(model="nobody", max_tokens=9, messages=HELLO)
    assert unknown.value.request_id
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > 19999 maximum"):
        client.messages.create(model="tiny", max_tokens=9, messages=[{"role": "user", "content": "x" * 30_000}])
