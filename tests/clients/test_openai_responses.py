"""The Responses API with the official `openai` package, as its README uses it."""

import json
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.responses import FunctionToolParam, Response

from tests.clients.conftest import EVENT, CalendarEvent

WEATHER: FunctionToolParam = {
    "type": "function",
    "name": "get_weather",
    "strict": True,
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def test_a_response(client: OpenAI) -> None:
    response = client.responses.create(model="tiny", instructions="Be kind.", input="Say hello")
    assert (response.output_text, response.status) == ("Hello there, friend.", "completed")
    assert response.usage is not None
    assert response.usage.output_tokens == 3


def test_a_stream(client: OpenAI) -> None:
    events = list(client.responses.create(model="tiny", input="Say hello", stream=True))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == "Hello there, friend."
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == "Hello there, friend."


def test_the_streaming_helper_puts_a_response_together(client: OpenAI) -> None:
    with client.responses.stream(model="tiny", input="Say hello", reasoning={"effort": "low"}) as stream:
        thoughts = [event.delta for event in stream if event.type == "response.reasoning_summary_text.delta"]
        response = stream.get_final_response()
    assert "".join(thoughts) == "A greeting."
    assert response.output_text == "Hello there, friend."


@pytest.mark.parametrize("streamed", [False, True])
def test_a_tool_loop(client: OpenAI, streamed: bool) -> None:
    def answer(items: list[Any]) -> Response:
        if not streamed:
            return client.responses.create(model="tiny", input=items, tools=[WEATHER], store=False)
        with client.responses.stream(model="tiny", input=items, tools=[WEATHER], store=False) as stream:
            return stream.get_final_response()

    items: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
    first = answer(items)
    (call,) = first.output
    assert call.type == "function_call"
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Paris"})
    items += [*first.output, {"type": "function_call_output", "call_id": call.call_id, "output": "22 degrees"}]
    assert answer(items).output_text == "It is 22 degrees in Paris."


def test_parse_gives_an_object_of_the_class(client: OpenAI) -> None:
    response = client.responses.parse(model="tiny", input="Science fair on Friday", text_format=CalendarEvent)
    assert response.output_parsed == CalendarEvent.model_validate(EVENT)


def test_parse_gives_the_arguments_of_a_tool_as_an_object(client: OpenAI) -> None:
    tools = [openai.pydantic_function_tool(CalendarEvent)["function"]]
    given: Any = [{"type": "function", **tool} for tool in tools]
    (call,) = client.responses.parse(model="tiny", input="Science fair", tools=given).output
    assert call.type == "function_call"
    assert json.loads(call.arguments) == EVENT


def test_tokens_are_counted(client: OpenAI) -> None:
    counted = client.responses.input_tokens.count(model="tiny", input="Say hello", tools=[WEATHER])
    usage = client.responses.create(model="tiny", input="Say hello", tools=[WEATHER]).usage
    assert usage is not None
    assert counted.input_tokens == usage.input_tokens


def test_errors_are_the_clients_own_classes(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.responses.create(model="gpt-9", input="Hi")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="send the whole conversation") as stored:
        client.responses.create(model="tiny", input="Hi", previous_response_id="resp_1")
    assert stored.value.param == "previous_response_id"
    with pytest.raises(openai.BadRequestError) as long:
        client.responses.create(model="tiny", input="x" * 30_000)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError, match="No response is stored here"):
        client.responses.retrieve("resp_1")


async def test_the_asynchronous_client(url: str) -> None:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        response = await client.responses.create(model="tiny", input="Say hello")
        assert response.output_text == "Hello there, friend."
        stream = await client.responses.create(model="tiny", input="Say hello", stream=True)
        deltas = [event.delta async for event in stream if event.type == "response.output_text.delta"]
    assert "".join(deltas) == "Hello there, friend."
