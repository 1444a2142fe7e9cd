"""Warming around an engine that plays a card: its cache is held whole, and can only grow or be reset."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qwen_service.chat import ChatRequest, Message, Sampling, TextDelta
from qwen_service.engines.manager import ModelManager
from qwen_service.engines.waiting_room import WaitingRoom
from qwen_service.errors import Died
from qwen_service.models.catalog import Catalog
from qwen_service.models.machine import Machine
from qwen_service.pipeline.chat_completion import ChatCompletion
from qwen_service.pipeline.conversation import SessionManager
from qwen_service.pipeline.fairness import Priorities
from qwen_service.pipeline.head_file import NAME, HeadFile, StoredHead
from qwen_service.pipeline.scheduler import Scheduler
from qwen_service.pipeline.stable_prefix import StablePrefix
from qwen_service.pipeline.warming import Warmer
from qwen_service.runtime import Capabilities, Limits, Piece, Prefill, Prompt
from tests.fakes import ScriptedRuntime
from tests.serving import loads, settings_with_models
from tests.waiting import until

SYSTEM = Message("system", "You are a parrot of few words. " * 3)
DEADLINE = 10.0


class Card(ScriptedRuntime):
    """Says `says`, a letter a token; after a reply that was closed its cache holds more than anybody has seen."""

    def __init__(self, says: str, *, warms: Any = "all", dies: bool = False) -> None:
        super().__init__(self.script, limits=Limits(context=900, prompt=900))
        self.capabilities = Capabilities(sampling=frozenset(), warms=warms)
        self.says, self.dies = says, dies
        self.held: tuple[int, ...] = ()
        self.warmed: list[str] = []
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def script(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Prefill | Piece, None]:
        cached = self.reusable_tokens(prompt)
        self.held = (*prompt.token_ids, 0, 0)
        yield Prefill(len(prompt.token_ids), cached)
        for letter in self.says:
            yield Piece(letter, 1, (ord(letter),))
        self.held = (*prompt.token_ids, *map(ord, self.says))
        yield Piece(finish_reason="stop")

    def reusable_tokens(self, prompt: Prompt) -> int:
        count = len(self.held)
        return count if count < len(prompt.token_ids) and prompt.token_ids[:count] == self.held else 0

    async def warm(self, prompt: Prompt) -> bool:
        self.warmed.append("".join(map(chr, prompt.token_ids)))
        await self.go_on.wait()
        if self.dies:
            raise Died("It has died of it.")
        self.held = prompt.token_ids
        return True


@dataclass
class House:
    card: Card
    chat: ChatCompletion
    warmer: Warmer
    models: ModelManager
    scheduler: Scheduler

    async def ask(self, *messages: Message, leave_after: int = 0, **fields: Any) -> str:
        text = ""
        request = ChatRequest("r", messages=messages, **fields)
        async with aclosing(self.chat.stream(request)) as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    text += event.text
                    if len(text) == leave_after:
                        break
        return text

    async def warmed(self, count: int) -> list[str]:
        """What has been prefilled, when there are so many and nothing is going on."""
        await until(lambda: len(self.card.warmed) >= count)
        await self.quiet()
        return self.card.warmed

    async def quiet(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0.005)


@asynccontextmanager
async def house(folder: Path, make: Callable[[], Card], **settings: Any) -> AsyncIterator[House]:
    made = settings_with_models(folder, "m", **settings)
    made.state_folder.mkdir(exist_ok=True)
    cards: list[Card] = []

    def bring() -> Card:
        cards.append(make())
        return cards[-1]

    room = WaitingRoom(made.queue_size, 60)
    scheduler = Scheduler(room)
    warmers: list[Warmer] = []

    def changed() -> None:
        scheduler.dispatch()
        for warmer in warmers:
            warmer.nudge()

    models = ModelManager(
        made, Catalog.load(made.models_dir), Machine(), on_change=changed, loaders=loads(bring), room=room
    )
    sessions = SessionManager()
    warmer = Warmer(models, sessions, scheduler, HeadFile(made.state_folder))
    warmers.append(warmer)
    chat = ChatCompletion(
        models,
        sessions,
        scheduler,
        warmer=warmer,
        stable_prefix=StablePrefix(),
        priorities=Priorities(("### Task:",)),
    )
    await models.start()
    assert models.current is not None
    await models.current.first_load_done()
    warmer.start()
    try:
        yield House(cards[0], chat, warmer, models, scheduler)
    finally:
        await warmer.stop()
        await models.stop()


def user(text: str) -> Message:
    return Message("user", text)


async def test_after_a_whole_reply_nothing_is_prefilled(tmp_path: Path) -> None:
    async with house(tmp_path, lambda: Card("Hello")) as it:
        await it.ask(SYSTEM, user("Hi"))
        await it.quiet()
        assert it.card.warmed == []


@pytest.mark.parametrize("how", ["stop", "left"])
async def test_a_reply_that_cannot_be_continued_is_prefilled_as_its_client_knows_it(tmp_path: Path, how: str) -> None:
    async with house(tmp_path, lambda: Card("One, two, three")) as it:
        said = await (
            it.ask(SYSTEM, user("Count"), stop=(", three",)) if how == "stop" else it.ask(SYSTEM, user("Count"), leave_after=8)
        )  # fmt: skip
        assert said == "One, two"
        (prefilled,) = await it.warmed(1)
        assert "One, two\2" in prefilled
        assert "three" not in prefilled
        held = len(it.card.held)
        await it.ask(SYSTEM, user("Count"), Message("assistant", said), user("Go on"))
        assert it.warmer.counts.hits == 1
        assert len(it.card.prompts[-1].token_ids) > held
        assert it.warmer.counts.conversations == 1


async def test_a_head_that_two_conversations_begin_with_is_prefilled_and_remembered(tmp_path: Path) -> None:
    async with house(tmp_path, lambda: Card("Yes")) as it:
        await it.ask(SYSTEM, user("Is the lamp on?"))
        await it.ask(SYSTEM, user("Is the door shut?"))
        (prefilled,) = await it.warmed(1)
        assert SYSTEM.content in prefilled
        assert "Is the" not in prefilled
        await it.ask(SYSTEM, user("And the window?"))
        assert it.warmer.counts.hits == 1
    stored = (tmp_path / "state" / NAME).read_text()
    assert json.loads(stored)["m"]["ids"] == list(map(ord, prefilled))
    async with house(tmp_path, lambda: Card("Yes")) as again:
        assert await again.warmed(1) == [prefilled]
        assert again.warmer.counts.heads == 1


async def test_a_clock_in_the_head_costs_two_requests_and_none_after_these(tmp_path: Path) -> None:
    def spoken(minute: int) -> tuple[Message, Message]:
        return Message("system", f"It is 10:{minute:02}.\n{SYSTEM.content}"), user(f"Is lamp {minute} on?")

    async with house(tmp_path, lambda: Card("Yes")) as it:
        await it.ask(*spoken(1))
        await it.ask(*spoken(2))
        (prefilled,) = await it.warmed(1)
        assert SYSTEM.content in prefilled
        assert "10:" not in prefilled
        for minute in (3, 4):
            await it.ask(*spoken(minute))
            await it.warmed(minute - 1)
        assert it.warmer.counts.hits == 2


async def test_an_engine_that_starts_on_a_cpu_is_given_the_head_and_nothing_later(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    HeadFile(tmp_path / "state").put("m", StoredHead(b"h", tuple(map(ord, SYSTEM.content))))
    async with house(tmp_path, lambda: Card("One, two, three", warms="head")) as it:
        assert await it.warmed(1) == [SYSTEM.content]
        await it.ask(SYSTEM, user("Count"), stop=(", three",))
        await it.quiet()
        assert len(it.card.warmed) == 1


async def test_a_head_that_an_engine_dies_of_is_not_given_to_the_next(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    HeadFile(tmp_path / "state").put("m", StoredHead(b"h", tuple(map(ord, SYSTEM.content))))
    async with house(tmp_path, lambda: Card("Hi", dies=True)) as it:
        await it.warmed(1)
    async with house(tmp_path, lambda: Card("Hi")) as again:
        await again.quiet()
        assert again.card.warmed == []


async def test_a_request_that_comes_meanwhile_waits_for_the_rest_and_finds_it_held(tmp_path: Path) -> None:
    async with house(tmp_path, lambda: Card("One, two, three")) as it:
        it.card.go_on.clear()
        said = await it.ask(SYSTEM, user("Count"), stop=(", three",))
        await it.warmed(1)
        task = asyncio.create_task(it.ask(SYSTEM, user("Count"), Message("assistant", said), user("Go on")))
        await until(lambda: it.scheduler.waiting == 1)
        await it.quiet()
        assert it.scheduler.running == 0
        it.card.go_on.set()
        await asyncio.wait_for(task, DEADLINE)
        assert it.warmer.counts.hits == 1


async def test_nothing_is_prefilled_while_somebody_is_served(tmp_path: Path) -> None:
    async with house(tmp_path, lambda: Card("One, two, three")) as it:
        request = ChatRequest("r", messages=(SYSTEM, user("Count")))
        async with aclosing(it.chat.stream(request)) as events:
            await anext(events)
            it.warmer.nudge()
            await it.quiet()
            assert it.card.warmed == []


async def test_what_is_warm_is_told_until_a_request_comes(tmp_path: Path) -> None:
    async with house(tmp_path, lambda: Card("One, two, three")) as it:
        assert it.models.current is not None
        (supervisor,) = it.models.current.supervisors
        assert it.warmer.warm(supervisor) is None
        await it.ask(SYSTEM, user("Count"), stop=(", three",))
        await it.warmed(1)
        warm = it.warmer.warm(supervisor)
        assert warm is not None
        assert (warm.kind, warm.tokens) == ("conversation", len(it.card.held))
        await it.ask(SYSTEM, user("Something else"))
        assert it.warmer.warm(supervisor) is None


async def test_after_a_title_was_made_the_conversation_is_prefilled_again(tmp_path: Path) -> None:
    async with house(tmp_path, lambda: Card("Hello")) as it:
        await it.ask(SYSTEM, user("Hi"))
        await it.ask(user("### Task: a title"))
        (prefilled,) = await it.warmed(1)
        assert "Hi\2" in prefilled
        assert "Task" not in prefilled
        await it.ask(SYSTEM, user("Hi"), Message("assistant", "Hello"), user("How are you?"))
        assert it.warmer.counts.hits == 1


async def test_raw_prompts_are_left_alone(tmp_path: Path) -> None:
    async with house(tmp_path, lambda: Card("One, two, three")) as it:
        request = ChatRequest("r", prompt="Once upon", stop=("two",))
        async with aclosing(it.chat.stream(request)) as events:
            async for _ in events:
                pass
        await it.quiet()
        assert it.card.warmed == []
