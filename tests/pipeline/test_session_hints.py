from collections.abc import Sequence
from pathlib import Path

import pytest

from qwen_service.chat import ChatRequest
from qwen_service.engines.waiting_room import WaitingRoom
from qwen_service.pipeline import scheduler
from qwen_service.pipeline.scheduler import Scheduler, SessionHints
from qwen_service.runtime import Prompt
from tests.fakes import ScriptedRuntime
from tests.live_service import live_service
from tests.serving import says_hi, served_model


class Card(ScriptedRuntime):
    """Holds the beginning of what it was given last."""

    held = 0

    def reusable_tokens(self, prompt: Prompt) -> int:
        return self.held


def request(session: str, client: str = "me") -> ChatRequest:
    return ChatRequest("r", session=session, client=client)


async def taken(cards: Sequence[Card], *requests: ChatRequest) -> list[int]:
    """The card of each request, one after the other."""
    scheduler = Scheduler(WaitingRoom(4, 30))
    found = []
    async with served_model(*cards, on_change=scheduler.dispatch) as model:
        for each in requests:
            async with scheduler.turn(model, Prompt((1,), each)) as turn:
                found.append([id(card) for card in cards].index(id(turn.engine.runtime)))
    return found


async def test_a_session_stays_on_its_card_where_the_idlest_would_have_been_taken() -> None:
    cards = [Card(says_hi), Card(says_hi)]
    first, other, again, and_again = await taken(cards, *map(request, ("a", "b", "a", "a")))
    assert first == again == and_again != other
    assert len(set(await taken(cards, request(""), request("")))) == 2


async def test_what_a_card_holds_counts_more_than_the_hint() -> None:
    cards = [Card(says_hi), Card(says_hi)]
    cards[1].held = 3
    assert await taken(cards, request("a")) == [1]
    cards[0].held = 4
    assert await taken(cards, request("a"), request("a")) == [0, 0]


async def test_the_same_name_of_another_client_is_another_session() -> None:
    cards = [Card(says_hi), Card(says_hi)]
    mine, theirs, mine_again, theirs_again = await taken(
        cards, request("a"), request("a", "you"), request("a"), request("a", "you")
    )
    assert mine == mine_again != theirs == theirs_again


def test_the_oldest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "MOST_SESSIONS", 2)
    hints = SessionHints()
    for name in ("a", "b", "a", "c"):
        hints.note(request(name), f"place of {name}")
    assert [hints.place(request(name)) for name in ("a", "b", "c", "")] == ["place of a", "", "place of c", ""]


@pytest.mark.parametrize("name", ["X-Session-Id", "session-id", "x-claude-code-session-id"])
async def test_headers_name_the_session(tmp_path: Path, name: str) -> None:
    async with live_service(tmp_path) as live:
        live.engine.gate.set()
        assert (await live.chat(headers={name: "mine" + "x" * 1000})).status_code == 200
        answer = await live.chat(headers={name: "a"}, prompt_cache_key="b")
        assert answer.status_code == 200
        sessions = [prompt.request.session for prompt in live.engine.runtimes[0].prompts]
    assert sessions == ["mine" + "x" * 252, "a"]


async def test_a_prompt_cache_key_names_the_session(tmp_path: Path) -> None:
    async with live_service(tmp_path) as live:
        live.engine.gate.set()
        assert (await live.chat(prompt_cache_key="mine")).status_code == 200
        body = {"input": "Hi", "prompt_cache_key": "mine too"}
        assert (await live.http.post("/v1/responses", json=body)).status_code == 200
        sessions = [prompt.request.session for prompt in live.engine.runtimes[0].prompts]
    assert sessions == ["mine", "mine too"]
