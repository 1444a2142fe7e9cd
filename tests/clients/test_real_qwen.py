"""Every tool and JSON feature with a real Qwen: QWEN_TEST_GGUF names a GGUF with Qwen's chat template.

    QWEN_TEST_GGUF=qwen2.5-coder-0.5b.gguf ./scripts/test.sh -m qwen_gguf

What is asserted is form, which grammar and parser owe, and only as much sense as half a billion parameters have.
"""

import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from ollama import Client
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from pydantic import BaseModel, Field

from qwen_service.app import create_app
from qwen_service.config import load_settings
from tests.clients.conftest import served

pytestmark = [pytest.mark.qwen_gguf, pytest.mark.slow, pytest.mark.timeout(600)]

USER: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is the weather in Paris?"}]


def function(name: str, description: str, **properties: Any) -> ChatCompletionToolParam:
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


WEATHER = function("get_weather", "Weather of a city", city={"type": "string"})
ADD = function("add", "Add two numbers", a={"type": "number"}, b={"type": "number"})


class Person(BaseModel):
    name: str = Field(pattern="^[A-Z][a-z]{1,20}$")
    age: int = Field(ge=0, le=150)
    hobbies: list[str] = Field(max_length=3)


@asynccontextmanager
async def real_service(gguf: str, folder: Path) -> AsyncIterator[FastAPI]:
    settings = {"model_path": gguf, "models_dir": folder, "state_dir": folder, "context_size": 4096, "slots": 2}
    app = create_app(load_settings(settings))
    async with app.router.lifespan_context(app):
        yield app


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    gguf = os.environ.get("QWEN_TEST_GGUF")
    if not gguf:
        pytest.skip("QWEN_TEST_GGUF names no model")
    with served(real_service(gguf, tmp_path_factory.mktemp("qwen"))) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="none") as client:  # retries while the model is loading
        yield client


@pytest.fixture
def model(client: OpenAI) -> str:
    return client.models.list().data[0].id


def test_a_tool_is_called_and_its_result_understood(client: OpenAI, model: str) -> None:
    first = client.chat.completions.create(model=model, messages=USER, tools=[WEATHER, ADD], temperature=0).choices[0]
    assert first.finish_reason == "tool_calls"
    assert first.message.tool_calls is not None
    (call,) = first.message.tool_calls
    assert call.type == "function"
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    result: ChatCompletionMessageParam = {"role": "tool", "tool_call_id": call.id, "content": "31 degrees, sunny"}
    messages = [*USER, first.message.to_dict(), result]
    answer = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=100)  # type: ignore[arg-type]  # as the README does
    assert "31" in (answer.choices[0].message.content or "")


def test_a_required_call_is_made_whatever_is_asked(client: OpenAI, model: str) -> None:
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Tell me a joke."}]
    with client.chat.completions.stream(
        model=model, messages=messages, tools=[WEATHER, ADD], tool_choice="required", max_tokens=200, temperature=0
    ) as events:
        choice = events.get_final_completion().choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls
    for call in choice.message.tool_calls:
        keys = {"get_weather": {"city"}, "add": {"a", "b"}}[call.function.name]
        assert set(json.loads(call.function.arguments)) == keys


def test_a_named_tool_is_called_and_no_other(client: OpenAI, model: str) -> None:
    choice = client.chat.completions.create(
        model=model,
        messages=USER,
        tools=[WEATHER, ADD],
        tool_choice={"type": "function", "function": {"name": "add"}},
        parallel_tool_calls=False,
        temperature=0,
    ).choices[0]
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert call.function.name == "add"
    assert {type(value) for value in json.loads(call.function.arguments).values()} <= {int, float}


def test_several_calls_in_one_reply(client: OpenAI, model: str) -> None:
    text = "Call get_weather for Oslo and get_weather for Rome."
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": text}]
    choice = client.chat.completions.create(
        model=model, messages=messages, tools=[WEATHER], tool_choice="required", temperature=0, max_tokens=200
    ).choices[0]
    assert choice.message.tool_calls is not None
    assert len({call.id for call in choice.message.tool_calls}) == len(choice.message.tool_calls) >= 2


def test_no_call_is_made_where_none_is_wanted(client: OpenAI, model: str) -> None:
    choice = client.chat.completions.create(
        model=model, messages=USER, tools=[WEATHER], tool_choice="none", temperature=0, max_tokens=30
    ).choices[0]
    assert choice.message.tool_calls is None
    assert choice.message.content


def test_json_of_a_schema_with_a_pattern_and_bounds(client: OpenAI, model: str) -> None:
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Invent a person."}]
    completion = client.chat.completions.parse(model=model, messages=messages, response_format=Person, max_tokens=300)
    assert isinstance(completion.choices[0].message.parsed, Person)


def test_any_json_object(client: OpenAI, model: str) -> None:
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Two colours as JSON."}]
    completion = client.chat.completions.create(
        model=model, messages=messages, response_format={"type": "json_object"}, temperature=0, max_tokens=300
    )
    assert isinstance(json.loads(completion.choices[0].message.content or ""), dict)


def test_a_schema_with_words_the_grammar_does_not_know_still_bounds_the_reply(client: OpenAI, model: str) -> None:
    schema = {"type": "array", "items": {"enum": ["red", "blue"]}, "minItems": 2, "maxItems": 2, "uniqueItems": True}
    completion = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": 'The colours red and blue as JSON: ["red", "blue"]'}],
        response_format={"type": "json_schema", "json_schema": {"name": "colours", "schema": schema}},
        temperature=0,
    )
    assert sorted(json.loads(completion.choices[0].message.content or "")) == ["blue", "red"]


def test_ollamas_tools_and_format(url: str, model: str) -> None:
    with Client(host=url) as client:
        called = client.chat(model=model, messages=[{"role": "user", "content": "Add 2 and 3."}], tools=[dict(ADD)])
        assert called.message.tool_calls is not None
        assert called.message.tool_calls[0].function.arguments == {"a": 2, "b": 3}
        person = client.generate(model=model, prompt="Invent a person.", format=Person.model_json_schema())
        assert Person.model_validate_json(person.response or "")


def test_filling_in_the_middle(url: str, model: str) -> None:
    with Client(host=url) as client:
        filled = client.generate(
            model=model,
            prompt="def add(a, b):\n    return ",
            suffix="\n\n\nprint(add(1, 2))\n",
            options={"temperature": 0, "num_predict": 20},
        )
    assert "a + b" in (filled.response or "")
