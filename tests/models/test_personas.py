"""A model that is another one with a system message, first messages and sampling of its own."""

import logging
from pathlib import Path
from typing import Any

import pytest

from qwen_service.chat import ChatRequest, Message, Sampling
from qwen_service.errors import InvalidRequest
from qwen_service.models.personas import Persona, Personas
from tests.live_service import live_service

MARIO = Persona(
    "Mario:latest",
    "tiny",
    system="You are Mario.",
    parameters={"temperature": 0.3, "num_predict": 40, "seed": -1, "num_ctx": 512, "stop": ["END"]},
    messages=(("user", "Who are you?"), ("assistant", "It's me!")),
)
HI = Message("user", "Hi")


def request(*messages: Message, **fields: Any) -> ChatRequest:
    return ChatRequest("id", "mario", messages, **fields)


@pytest.fixture
def personas(tmp_path: Path) -> Personas:
    found = Personas.load(tmp_path)
    found.put(MARIO)
    return found


def test_its_words_come_before_those_of_the_request(personas: Personas) -> None:
    applied = personas.applied(request(HI))
    assert applied.model == "tiny"
    assert [(message.role, message.content) for message in applied.messages] == [
        ("system", "You are Mario."),
        ("user", "Who are you?"),
        ("assistant", "It's me!"),
        ("user", "Hi"),
    ]
    assert applied.sampling == Sampling(temperature=0.3, max_tokens=40)
    assert (applied.stop, applied.context_size) == (("END",), 512)


def test_what_the_request_says_goes_before(personas: Personas) -> None:
    own = request(
        Message("system", "You are Luigi."),
        HI,
        sampling=Sampling(temperature=0.0, seed=7),
        stop=("X",),
        context_size=64,
    )
    applied = personas.applied(own)
    assert [message.content for message in applied.messages] == ["You are Luigi.", "Who are you?", "It's me!", "Hi"]
    assert applied.sampling == Sampling(temperature=0.0, seed=7, max_tokens=40)
    assert (applied.stop, applied.context_size) == (("X",), 64)


def test_a_prompt_as_it_is_stays_as_it_is(personas: Personas) -> None:
    applied = personas.applied(ChatRequest("id", "mario", prompt="Once"))
    assert (applied.prompt, applied.messages, applied.model) == ("Once", (), "tiny")


def test_it_is_there_after_a_restart_under_its_name_in_any_case(personas: Personas, tmp_path: Path) -> None:
    again = Personas.load(tmp_path)
    assert again.all() == personas.all()
    for name in ("mario", "MARIO", "mario:latest", "library/mario"):
        assert again.find(name) == personas.find("mario")
    assert again.base_of("tiny") == "tiny"


def test_a_tag_makes_another_one(personas: Personas, tmp_path: Path) -> None:
    personas.put(Persona("mario:angry", "tiny", "You are angry."))
    again = Personas.load(tmp_path)
    assert [persona.name for persona in again.all()] == ["mario", "mario:angry"]


def test_removed_it_is_gone(personas: Personas, tmp_path: Path) -> None:
    mario = personas.find("mario")
    assert mario is not None
    personas.remove(mario)
    personas.remove(mario)
    assert Personas.load(tmp_path).all() == personas.all() == []


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a b", "x" * 65, ":tag", "a:b:c", ".hidden", "a\nb", "ü"])
def test_a_name_is_strict(name: str, personas: Personas, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest):
        personas.put(Persona(name, "tiny"))
    assert [path.name for path in (tmp_path / "personas").iterdir()] == ["mario.json"]


@pytest.mark.parametrize(
    "content",
    ["", "{}", "[]", '{"name": "../x", "base": "tiny", "system": "", "parameters": {}, "messages": []}',
     '{"name": "x", "base": "tiny", "system": "", "parameters": {"heat": 1}, "messages": []}',
     '{"name": "x", "base": "tiny", "system": "", "parameters": {}, "messages": [["tool", 3]]}',
     '{"name": "x", "base": 3, "system": "", "parameters": {}, "messages": []}'],
)  # fmt: skip
def test_a_damaged_file_is_told_and_left_out(content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "personas").mkdir()
    (tmp_path / "personas" / "x.json").write_text(content)
    with caplog.at_level(logging.WARNING):
        assert Personas.load(tmp_path).all() == []
    assert "x.json is no persona" in caplog.text


@pytest.mark.parametrize(
    ("path", "body"),
    [("/api/create", {"model": "mario", "from": "model"}), ("/api/copy", {"source": "model", "destination": "mario"})],
)
async def test_only_this_machines_administrators_make_one(path: str, body: dict[str, str], tmp_path: Path) -> None:
    async with live_service(tmp_path) as live:
        foreign = await live.http.post(path, json=body, headers={"X-Forwarded-For": "192.0.2.7"})
        page = await live.http.post(path, json=body, headers={"Origin": live.url})
        local = await live.http.post(path, json=body)
        names = [model["name"] for model in (await live.http.get("/api/tags")).json()["models"]]
    assert (foreign.status_code, page.status_code, local.status_code) == (403, 403, 200)
    assert names == ["model:latest", "mario:latest"]
