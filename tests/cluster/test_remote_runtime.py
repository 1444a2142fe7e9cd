"""The seam over the network, with streams that are played."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Self

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from qwen_service.chat import ChatRequest, Sampling
from qwen_service.cluster.remote_runtime import ATTEMPTS, RemoteRuntime
from qwen_service.cluster.roster import Roster
from qwen_service.cluster.wire import Item, Report, Work
from qwen_service.errors import Busy, Died, Loading, QueueFull, RuntimeFailure, StartFailed
from qwen_service.runtime import Capabilities, Limits, Piece, Prefill, Prompt

pytestmark = pytest.mark.ray

PROMPT = Prompt((1, 2, 3), ChatRequest("r"))
CAN = Capabilities(frozenset({"max_tokens"}))
READY = Report("pi", "card 0", "m", "ready", limits=Limits(2559, 2048), capabilities=CAN)


class Played:
    """A stream of these items; an exception among them is raised, None never comes."""

    def __init__(
        self, items: Sequence[Item | BaseException | None], on_cancel: Callable[[], None] = lambda: None
    ) -> None:
        self._items = list(items)
        self._on_cancel = on_cancel

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        if not self._items:
            raise StopAsyncIteration
        item = self._items.pop(0)
        if item is None:
            await asyncio.Event().wait()
            raise AssertionError
        if isinstance(item, BaseException) and not isinstance(item, Busy | RuntimeFailure):
            raise item
        return item

    def cancel(self) -> None:
        self._on_cancel()


def runtime_of(*streams: Played, waits: float = 20.0, roster: Roster | None = None) -> tuple[RemoteRuntime, list[Work]]:
    works: list[Work] = []

    def call(work: Work) -> Played:
        works.append(work)
        return streams[len(works) - 1]

    return RemoteRuntime(call, roster or Roster(), waits=waits), works


async def all_of(runtime: RemoteRuntime) -> list[Prefill | Piece]:
    return [item async for item in runtime.generate(PROMPT, Sampling())]


async def test_items_come_as_the_replica_sent_them() -> None:
    items: list[Prefill | Piece] = [Prefill(3, 1), Piece("a", 1), Piece("b", 1, finish_reason="stop")]
    runtime, works = runtime_of(Played(items))
    assert await all_of(runtime) == items
    assert [work.prompt for work in works] == [PROMPT]


async def test_an_error_of_ours_is_raised_as_itself() -> None:
    runtime, _ = runtime_of(Played([Piece("a", 1), QueueFull("later", retry_after=7)]))
    with pytest.raises(QueueFull, match="later") as caught:
        await all_of(runtime)
    assert caught.value.retry_after == 7


async def test_a_replica_that_is_lost_before_its_first_item_is_replaced_by_another() -> None:
    runtime, works = runtime_of(Played([ActorDiedError()]), Played([Piece("a", 1, finish_reason="stop")]))
    assert [item.text for item in await all_of(runtime) if isinstance(item, Piece)] == ["a"]
    assert len({work.key for work in works}) == 2


async def test_a_replica_that_is_lost_later_ends_the_reply_with_an_error() -> None:
    runtime, works = runtime_of(Played([Piece("a", 1), ActorDiedError()]))
    with pytest.raises(Died, match=r"lost while it worked on this request\. Ask again"):
        await all_of(runtime)
    assert len(works) == 1


async def test_it_is_not_tried_for_ever() -> None:
    runtime, works = runtime_of(*(Played([ActorDiedError()]) for _ in range(ATTEMPTS)))
    with pytest.raises(Died):
        await all_of(runtime)
    assert len(works) == ATTEMPTS


async def test_a_defect_of_ours_on_the_replica_is_told_as_one() -> None:
    runtime, works = runtime_of(Played([RayTaskError("generate", "trace", KeyError("x"))]))
    with pytest.raises(RuntimeFailure, match=r"internal error .*KeyError\('x'\)"):
        await all_of(runtime)
    assert len(works) == 1


async def test_a_request_that_nobody_takes_is_told_to_come_back() -> None:
    runtime, _ = runtime_of(Played([None]), waits=0.05)
    with pytest.raises(Loading, match=r"no engine took the request within 0\.05 s: no engine has reported yet"):
        await all_of(runtime)


async def test_closing_it_stops_the_remote_one_and_waits_until_the_card_is_free() -> None:
    roster, cancelled = Roster(), asyncio.Event()
    runtime, works = runtime_of(Played([Piece("a", 1), None], cancelled.set), roster=roster)
    roster.note_reports({"1": READY})
    generation = runtime.generate(PROMPT, Sampling())
    async with aclosing(generation):
        await anext(generation)
        roster.note_routed(works[0].key, "1")
        await asyncio.sleep(0)
        closing = asyncio.create_task(generation.aclose())
        await cancelled.wait()
        assert not closing.done()
        roster.note_completed(works[0].key)
        async with asyncio.timeout(10):
            await closing


async def test_it_starts_when_an_engine_is_ready_and_fails_when_none_is() -> None:
    roster = Roster()
    runtime, _ = runtime_of(roster=roster)
    told: list[str] = []
    starting = asyncio.create_task(runtime.start(told.append))
    await asyncio.sleep(0)
    roster.note_reports({"1": READY})
    async with asyncio.timeout(10):
        assert await starting == Limits(2559, 2048)
    assert (told, runtime.capabilities) == (["no engine has reported yet"], CAN)
    failing = asyncio.create_task(runtime.failed())
    await asyncio.sleep(0)
    roster.note_reports({})
    async with asyncio.timeout(10):
        failure = await failing
    assert isinstance(failure, StartFailed)
    assert "card 0 of pi: gone" in failure.message
