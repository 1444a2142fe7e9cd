import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from qwen_service.api.streaming import merged
from qwen_service.chat import Event, TextDelta
from qwen_service.errors import Cancelled
from qwen_service.pipeline.cancellation import Cancellations


async def hang(cancellations: Cancellations, request_id: str) -> None:
    with cancellations.cancellable(request_id):
        await asyncio.Event().wait()


async def started(cancellations: Cancellations, *request_ids: str) -> list[asyncio.Task[None]]:
    tasks = [asyncio.create_task(hang(cancellations, request_id)) for request_id in request_ids]
    await asyncio.sleep(0)
    return tasks


async def test_all_generations_of_a_request_end_with_cancelled_and_no_others() -> None:
    cancellations = Cancellations()
    first, second, other = await started(cancellations, "r1", "r1", "r2")
    assert cancellations.cancel("r1") == 2
    for task in (first, second):
        with pytest.raises(Cancelled):
            await task
    assert cancellations.request_ids == ["r2"]
    assert not other.done()
    other.cancel()


async def test_an_unknown_request_is_told_by_zero() -> None:
    cancellations = Cancellations()
    assert cancellations.cancel("r1") == 0


async def test_a_client_that_leaves_is_still_an_ordinary_cancellation() -> None:
    cancellations = Cancellations()
    (task,) = await started(cancellations, "r1")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cancellations.request_ids == []


async def test_both_at_once_count_as_the_client_leaving() -> None:
    cancellations = Cancellations()
    (task,) = await started(cancellations, "r1")
    cancellations.cancel("r1")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def talk(cancellations: Cancellations, begun: asyncio.Semaphore) -> AsyncGenerator[Event, None]:
    with cancellations.cancellable("r1"):
        begun.release()
        while True:
            yield TextDelta("on and on")


async def test_a_reply_whose_client_does_not_read_is_cancelled_as_any_other() -> None:
    cancellations = Cancellations()

    async def send() -> None:
        async with aclosing(merged([talk(cancellations, asyncio.Semaphore(0))])) as events:
            async for _ in events:
                cancellations.cancel("r1")
                await asyncio.Event().wait()

    with pytest.raises(Cancelled):
        await send()
    assert cancellations.request_ids == []


async def test_several_replies_whose_client_does_not_read_are_cancelled_as_any_other() -> None:
    cancellations, begun = Cancellations(), asyncio.Semaphore(0)
    async with asyncio.timeout(20), aclosing(merged([talk(cancellations, begun) for _ in range(2)])) as events:
        await anext(events)
        for _ in range(2):
            await begun.acquire()
        await asyncio.sleep(0)  # what is generated and not read is bounded, so that they are waiting now
        assert cancellations.cancel("r1") == 2
        with pytest.raises(Cancelled):
            async for _ in events:
                pass
    assert cancellations.request_ids == []
