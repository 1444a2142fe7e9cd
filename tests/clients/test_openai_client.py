"""The official `openai` package, as its README uses it."""

import json

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam

from tests.clients.conftest import EVENT, CalendarEvent

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Say hello"}]
WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def test_a_chat_completion(client: OpenAI) -> None:
    completion = client.chat.completions.create(model="tiny", messages=HELLO)
    assert completion.choices[0].message.content == "Hello there, friend."
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 3


def test_a_stream(client: OpenAI) -> None:
    stream = client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
    chunks = list(stream)
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello there, friend."
    assert [chunk.choices[0].finish_reason for chunk in chunks][-2:] == [None, "stop"]


def test_usage_in_a_stream(client: OpenAI) -> None:
    options: openai.types.chat.ChatCompletionStreamOptionsParam = {"include_usage": True}
    *_, last = client.chat.completions.create(model="tiny", messages=HELLO, stream=True, stream_options=options)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.total_tokens == last.usage.prompt_tokens + 3


def test_the_streaming_helper_puts_a_completion_together(client: OpenAI) -> None:
    with client.chat.completions.stream(model="tiny", messages=HELLO) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(deltas) == "Hello there, friend."
    assert final.choices[0].message.content == "Hello there, friend."


def test_a_tool_is_called_and_its_result_read(client: OpenAI) -> None:
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is the weather in Paris?"}]
    first = client.chat.completions.create(model="tiny", messages=messages, tools=[WEATHER]).choices[0]
    assert first.finish_reason == "tool_calls"
    assert first.message.tool_calls is not None
    (call,) = first.message.tool_calls
    assert call.type == "function"
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    messages += [first.message.to_dict(), {"role": "tool", "tool_call_id": call.id, "content": "22 degrees"}]  # type: ignore[list-item]  # as the README does
    second = client.chat.completions.create(model="tiny", messages=messages, tools=[WEATHER])
    assert second.choices[0].message.content == "It is 22 degrees in Paris."


def test_a_tool_call_in_a_stream_is_put_together_by_the_helper(client: OpenAI) -> None:
    with client.chat.completions.stream(model="tiny", messages=HELLO, tools=[WEATHER]) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        message = stream.get_final_completion().choices[0].message
    assert [event.name for event in done] == ["get_weather"]
    assert message.tool_calls is not None
    assert message.tool_calls[0].function.arguments == '{"city": "Paris"}'


def test_parse_gives_an_object_of_the_class(client: OpenAI) -> None:
    completion = client.chat.completions.parse(model="tiny", messages=HELLO, response_format=CalendarEvent)
    assert completion.choices[0].message.parsed == CalendarEvent.model_validate(EVENT)


def test_parse_gives_the_arguments_of_a_tool_as_an_object(client: OpenAI) -> None:
    tools = [openai.pydantic_function_tool(CalendarEvent)]
    completion = client.chat.completions.parse(model="tiny", messages=HELLO, tools=tools)
    assert completion.choices[0].message.tool_calls is not None
    assert completion.choices[0].message.tool_calls[0].function.parsed_arguments == CalendarEvent.model_validate(EVENT)


def test_reasoning_is_apart_from_the_answer(client: OpenAI) -> None:
    completion = client.chat.completions.create(model="tiny", messages=HELLO, reasoning_effort="low")
    message = completion.choices[0].message
    assert message.content == "Hello there, friend."
    assert message.to_dict()["reasoning_content"] == "A greeting."


def test_a_text_completion(client: OpenAI) -> None:
    assert client.completions.create(model="tiny", prompt="Once").choices[0].text == "Hello there, friend."


def test_models_are_listed(client: OpenAI) -> None:
    assert sorted(model.id for model in client.models.list()) == ["other", "tiny"]
    assert client.models.retrieve("tiny").object == "model"


def test_errors_are_the_clients_own_classes(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-9", messages=HELLO)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="tiny", messages=HELLO, n=1000)
    assert wrong.value.param == "n"


async def test_the_asynchronous_client(url: str) -> None:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        completion = await client.chat.completions.create(model="tiny", messages=HELLO)
        assert completion.choices[0].message.content == "Hello there, friend."
        stream = await client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == "Hello there, friend."


async def test_the_asynchronous_streaming_helper(url: str) -> None:
    async with (
        AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
        client.chat.completions.stream(model="tiny", messages=HELLO, response_format=CalendarEvent) as stream,
    ):
        final = await stream.get_final_completion()
    assert final.choices[0].message.parsed == CalendarEvent.model_validate(EVENT)
