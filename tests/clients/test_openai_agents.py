"""`openai-agents`, whose agents speak the Responses API: a tool loop, a typed answer, a stream."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from agents import Agent, ModelSettings, OpenAIResponsesModel, RunConfig, Runner, function_tool
from openai import AsyncOpenAI

from tests.clients.conftest import EVENT, CalendarEvent

QUIET = RunConfig(tracing_disabled=True)  # traces would go to OpenAI


@function_tool
def get_weather(city: str) -> str:
    """Get the weather of a city."""
    return f"22 degrees ({city})"


@pytest.fixture
async def model(url: str) -> AsyncIterator[OpenAIResponsesModel]:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield OpenAIResponsesModel("tiny", client)


async def test_a_tool_loop(model: OpenAIResponsesModel) -> None:
    agent = Agent(name="Weather", instructions="Be brief.", model=model, tools=[get_weather])
    result = await Runner.run(agent, "What is the weather in Paris?", run_config=QUIET)
    assert result.final_output == "It is 22 degrees (Paris) in Paris."
    assert [type(item).__name__ for item in result.new_items] == [
        "ToolCallItem",
        "ToolCallOutputItem",
        "MessageOutputItem",
    ]


async def test_a_typed_answer(model: OpenAIResponsesModel) -> None:
    agent = Agent(name="Calendar", model=model, output_type=CalendarEvent)
    result = await Runner.run(agent, "Science fair on Friday", run_config=QUIET)
    assert result.final_output == CalendarEvent.model_validate(EVENT)


async def test_a_stream_and_a_second_turn(model: OpenAIResponsesModel) -> None:
    agent = Agent(name="Greeter", model=model, model_settings=ModelSettings(store=False))
    result = Runner.run_streamed(agent, "Say hello", run_config=QUIET)
    kinds = [event.data.type async for event in result.stream_events() if event.type == "raw_response_event"]
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert result.final_output == "Hello there, friend."
    again: list[Any] = [*result.to_input_list(), {"role": "user", "content": "And again"}]
    assert (await Runner.run(agent, again, run_config=QUIET)).final_output == "Hello there, friend."
