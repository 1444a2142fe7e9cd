"""The official `ollama` package, as its README uses it."""

from collections.abc import Iterator
from datetime import datetime

import pytest
from ollama import AsyncClient, Client, ResponseError
from openai import OpenAI

from tests.clients.conftest import EVENT, CalendarEvent

HELLO = [{"role": "user", "content": "Say hello"}]


def get_weather(city: str) -> str:
    """Get the weather.

    Args:
        city: Name of the city
    """
    return f"22 degrees ({city})"


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(host=url) as client:
        yield client


def test_a_chat(client: Client) -> None:
    response = client.chat(model="tiny", messages=HELLO)
    assert response.message.content == "Hello there, friend."
    assert response.done_reason == "stop"
    assert response.eval_count == 3
    assert response.total_duration is not None
    assert response.total_duration > 0


def test_a_stream(client: Client) -> None:
    parts = list(client.chat(model="tiny", messages=HELLO, stream=True))
    assert "".join(part.message.content or "" for part in parts) == "Hello there, friend."
    assert [part.done for part in parts][-2:] == [False, True]


def test_a_generation_and_its_continuation(client: Client) -> None:
    first = client.generate(model="tiny", prompt="Hello")
    assert first.response == "Hello there, friend."
    assert first.context
    second = client.generate(model="tiny", prompt="And?", context=first.context, stream=True)
    assert "".join(part.response or "" for part in second) == "Hello there, friend."


def test_a_python_function_as_a_tool(client: Client) -> None:
    messages: list[object] = [{"role": "user", "content": "What is the weather in Paris?"}]
    response = client.chat(model="tiny", messages=messages, tools=[get_weather])  # type: ignore[arg-type]  # as the README
    assert response.message.tool_calls is not None
    (call,) = response.message.tool_calls
    result = {"get_weather": get_weather}[call.function.name](**call.function.arguments)
    messages += [response.message, {"role": "tool", "content": result, "tool_name": call.function.name}]
    answer = client.chat(model="tiny", messages=messages, tools=[get_weather])  # type: ignore[arg-type]  # as the README
    assert answer.message.content == "It is 22 degrees (Paris) in Paris."


def test_structured_output(client: Client) -> None:
    response = client.chat(model="tiny", messages=HELLO, format=CalendarEvent.model_json_schema())
    assert CalendarEvent.model_validate_json(response.message.content or "") == CalendarEvent.model_validate(EVENT)


def test_thinking(client: Client) -> None:
    response = client.chat(model="tiny", messages=HELLO, think=True)
    assert (response.message.thinking, response.message.content) == ("A greeting.", "Hello there, friend.")


def test_models_are_listed_with_dates(client: Client) -> None:
    models = client.list().models
    assert [model.model for model in models] == ["other:latest", "tiny:latest"]
    assert all(isinstance(model.modified_at, datetime) for model in models)


def test_running_models(client: Client) -> None:
    client.generate(model="tiny")
    (running,) = client.ps().models
    assert running.model == "tiny:latest"
    assert running.expires_at is not None
    assert running.expires_at > datetime.now(running.expires_at.tzinfo)


def test_a_model_is_shown(client: Client) -> None:
    shown = client.show("tiny")
    assert shown.modelinfo
    assert shown.capabilities is not None
    assert {"completion", "tools", "thinking"} <= set(shown.capabilities)


def test_errors_have_text_and_status(client: Client) -> None:
    with pytest.raises(ResponseError) as unknown:
        client.chat(model="nope", messages=HELLO)
    assert unknown.value.status_code == 404
    assert unknown.value.error.startswith("model 'nope' not found")
    with pytest.raises(ResponseError) as missing:
        client.embed(model="tiny", input="Hello")
    assert missing.value.status_code == 501


async def test_the_asynchronous_client(url: str) -> None:
    async with AsyncClient(host=url) as client:
        response = await client.chat(model="tiny", messages=HELLO)
        assert response.message.content == "Hello there, friend."
        parts = [part async for part in await client.chat(model="tiny", messages=HELLO, stream=True)]
    assert "".join(part.message.content or "" for part in parts) == "Hello there, friend."


@pytest.fixture
def mario(client: Client) -> Iterator[str]:
    client.create(
        model="Mario",
        from_="tiny",
        system="You are Mario.",
        parameters={"temperature": 0.3, "stop": ["never said"]},
        messages=[{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "It's me!"}],
    )
    yield "mario"
    client.delete("mario")


def test_a_persona_is_made_used_shown_and_deleted(client: Client, mario: str) -> None:
    answer = client.chat(model=mario, messages=HELLO)
    assert (answer.model, answer.message.content) == (mario, "Hello there, friend.")
    assert answer.prompt_eval_count is not None
    plain = client.chat(model="tiny", messages=HELLO).prompt_eval_count
    assert plain is not None
    assert answer.prompt_eval_count > plain + len("You are Mario. Who are you? It's me!")
    assert f"{mario}:latest" in [model.model for model in client.list().models]
    shown = client.show(mario)
    assert shown.modelfile is not None
    assert 'SYSTEM """You are Mario."""' in shown.modelfile
    assert shown.details is not None
    assert shown.details.parent_model == "tiny"


def test_making_one_tells_its_steps(client: Client) -> None:
    steps = [step.status for step in client.create(model="luigi", from_="tiny", system="You are Luigi.", stream=True)]
    assert steps[-1] == "success"
    client.delete("luigi")
    with pytest.raises(ResponseError, match="not found"):
        client.show("luigi")


def test_a_copy_is_a_second_name(client: Client, mario: str) -> None:
    client.copy(mario, "wario")
    client.copy("tiny", "tiny-too")
    names = [model.model for model in client.list().models]
    assert {"wario:latest", "tiny-too:latest"} <= set(names)
    assert client.generate(model="tiny-too", prompt="Hello").response == "Hello there, friend."
    assert "You are Mario." in (client.show("wario").modelfile or "")
    client.delete("wario")
    client.delete("tiny-too")


def test_a_persona_on_a_persona_stands_on_its_model(client: Client, mario: str) -> None:
    client.create(model="mario:tired", from_=mario, parameters={"temperature": 0})
    shown = client.show("mario:tired")
    assert "You are Mario." in (shown.modelfile or "")
    assert "FROM tiny:latest" in (shown.modelfile or "")
    assert "temperature 0" in (shown.modelfile or "")
    client.delete("mario:tired")


def test_openais_clients_see_it_too(client: Client, mario: str, url: str) -> None:
    with OpenAI(base_url=f"{url}/v1", api_key="none") as openai:
        assert mario in [model.id for model in openai.models.list()]
        answer = openai.chat.completions.create(model=mario, messages=[{"role": "user", "content": "Hi"}])
    assert answer.model == mario
