import asyncio

import pytest

from qwen_service.process.uninterrupted import finish_even_if_cancelled


async def test_the_result_and_the_failure_are_passed_on() -> None:
    async def fails() -> None:
        raise KeyError("x")

    assert await finish_even_if_cancelled(asyncio.sleep(0, "done")) == "done"
    with pytest.raises(KeyError):
        await finish_even_if_cancelled(fails())


@pytest.mark.parametrize("fails", [False, True])
async def test_a_cancelled_caller_ends_when_the_work_has_ended(fails: bool) -> None:
    go_on, steps = asyncio.Event(), list[str]()

    async def work() -> None:
        await go_on.wait()
        steps.append("worked")
        if fails:
            raise KeyError("x")

    caller = asyncio.create_task(finish_even_if_cancelled(work()))
    await asyncio.sleep(0)
    for _ in range(3):  # by a client who leaves, an administrator, the end of the service
        caller.cancel()
        await asyncio.sleep(0)
        assert not caller.done()
    go_on.set()
    await asyncio.wait([caller])
    assert caller.cancelled()
    assert steps == ["worked"]
