"""`langchain-openai`, `langchain-anthropic` and `langchain-ollama`, as their getting-started pages use them."""

import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_ollama import ChatOllama, OllamaLLM
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from tests.clients.conftest import EVENT, CalendarEvent

pytestmark = pytest.mark.usefixtures("careless")


@tool  # type: ignore[untyped-decorator]  # mypy skips LangChain (pyproject.toml)
def get_weather(city: str) -> str:
    """Get the weather of a city."""
    return f"22 degrees ({city})"


each_api = pytest.mark.parametrize("api", ["openai", "responses", "anthropic", "ollama"])


def model_of(api: str, url: str) -> BaseChatModel:
    key = SecretStr("none")
    if api == "anthropic":
        return ChatAnthropic(model_name="tiny", base_url=url, api_key=key, max_retries=0, timeout=60, stop=None)
    if api != "ollama":
        by_responses = api == "responses"
        return ChatOpenAI(
            model="tiny", base_url=f"{url}/v1", api_key=key, max_retries=0, use_responses_api=by_responses
        )
    return ChatOllama(model="tiny", base_url=url, validate_model_on_init=True)


@each_api
def test_invoke(api: str, url: str) -> None:
    message = model_of(api, url).invoke([("system", "Be kind."), ("human", "Say hello")])
    assert message.text == "Hello there, friend."
    assert message.usage_metadata is not None
    assert message.usage_metadata["output_tokens"] == 3


@each_api
def test_stream(api: str, url: str) -> None:
    assert "".join(chunk.text for chunk in model_of(api, url).stream("Say hello")) == "Hello there, friend."


@each_api
async def test_asynchronous(api: str, url: str) -> None:
    model = model_of(api, url)
    assert (await model.ainvoke("Say hello")).text == "Hello there, friend."
    assert "".join([chunk.text async for chunk in model.astream("Say hello")]) == "Hello there, friend."


@each_api
def test_a_tool_is_called_and_its_result_read(api: str, url: str) -> None:
    with_tools = model_of(api, url).bind_tools([get_weather])
    question = HumanMessage("What is the weather in Paris?")
    answer = with_tools.invoke([question])
    assert isinstance(answer, AIMessage)
    result = get_weather.invoke(answer.tool_calls[0])
    assert isinstance(result, ToolMessage)
    assert with_tools.invoke([question, answer, result]).text == "It is 22 degrees (Paris) in Paris."


@each_api
@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(api: str, url: str, method: str) -> None:
    event = model_of(api, url).with_structured_output(CalendarEvent, method=method).invoke("Science fair on Friday")
    assert event == CalendarEvent.model_validate(EVENT)


def test_reasoning_of_chat_ollama(url: str) -> None:
    message = ChatOllama(model="tiny", base_url=url, reasoning=True).invoke("Say hello")
    assert message.text == "Hello there, friend."
    assert message.additional_kwargs["reasoning_content"] == "A greeting."


def test_a_plain_llm(url: str) -> None:
    assert OllamaLLM(model="tiny", base_url=url).invoke("Say hello") == "Hello there, friend."
