import asyncio

import pytest

from qwen_service.cancellation import Cancellations
from qwen_service.errors import Cancelled


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
