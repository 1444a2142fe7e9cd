import asyncio
import random

import pytest

from qwen_service.runtimes.llamacpp.kv_room import KvRoom, Stay

SIZE = 1600  # so that a reply is promised 100 tokens at its beginning


def stay(used: int, most: int = SIZE, *, fixed: bool = False) -> Stay:
    return Stay(used, most, can_pause=not fixed)


async def entering(room: KvRoom, one: Stay) -> asyncio.Task[None]:
    task = asyncio.create_task(room.enter(one))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return task


async def test_one_conversation_may_have_all() -> None:
    room = KvRoom(SIZE)
    alone = stay(SIZE - 1)
    await room.enter(alone)
    room.grow(alone, SIZE)
    assert not alone.interrupted
    assert not room.has_room(1)


async def test_what_fits_beside_the_others_enters_at_once() -> None:
    room = KvRoom(SIZE)
    for _ in range(3):
        await room.enter(stay(400))
    assert not room.has_room(101)
    waits = await entering(room, stay(101))
    assert not waits.done()
    waits.cancel()


async def test_nobody_overtakes_one_who_waits() -> None:
    room = KvRoom(SIZE)
    first, long, short = stay(400), stay(1500), stay(10)
    await room.enter(first)
    waits_long = await entering(room, long)
    waits_short = await entering(room, short)
    assert (waits_long.done(), waits_short.done(), room.has_room(1)) == (False, False, False)
    room.leave(first)
    await waits_long
    assert not waits_short.done()
    room.leave(long)
    await waits_short


async def test_a_client_who_leaves_the_line_makes_way_for_the_next() -> None:
    room = KvRoom(SIZE)
    first, long, short = stay(400), stay(1500), stay(10)
    await room.enter(first)
    waits_long = await entering(room, long)
    waits_short = await entering(room, short)
    waits_long.cancel()
    room.leave(long)
    await waits_short


async def test_the_youngest_makes_room_and_comes_back_before_those_who_came_later() -> None:
    room = KvRoom(SIZE)
    told: list[str] = []
    old, young, later = stay(700), stay(700), stay(10)
    old.interrupt, young.interrupt = lambda: told.append("old"), lambda: told.append("young")
    await room.enter(old)
    await room.enter(young)
    waits_later = await entering(room, later)
    room.grow(young, 790)
    assert told == []
    room.grow(old, 800)
    assert told == ["young"]
    waits_young = await entering(room, young)
    assert (waits_young.done(), waits_later.done()) == (False, False)
    room.grow(old, 1500)
    room.leave(old)
    await asyncio.gather(waits_young, waits_later)
    assert told == ["young"]


async def test_one_that_cannot_go_on_later_holds_all_it_may_need() -> None:
    room = KvRoom(SIZE)
    bound, free = stay(100, 900, fixed=True), stay(500)
    await room.enter(free)
    await room.enter(bound)
    other = await entering(room, stay(10, 800, fixed=True))
    assert not other.done()
    room.grow(free, 700)
    assert free.interrupted  # though it came first: the other one could not go on
    other.cancel()


async def test_of_those_that_cannot_pause_the_youngest_without_a_bound_ends() -> None:
    room = KvRoom(SIZE)
    old, young = (Stay(100, SIZE, can_pause=False, can_end=True) for _ in range(2))
    await room.enter(old)
    await room.enter(young)  # neither waits for the other's end
    room.grow(young, 700)
    free = stay(100)
    await room.enter(free)
    room.grow(old, 790)
    assert (old.interrupted, young.interrupted, free.interrupted) == (False, False, True)
    room.grow(old, 860)
    assert (old.interrupted, young.interrupted) == (False, True)
    room.leave(young)
    room.grow(old, SIZE)
    assert not old.interrupted


@pytest.mark.parametrize("seed", range(20))
async def test_together_they_never_outgrow_it_and_all_come_to_their_end(seed: int) -> None:
    dice = random.Random(seed)
    room = KvRoom(SIZE)
    running: dict[Stay, int] = {}  # what each really holds

    async def talk(prompt: int, reply: int, fixed: bool) -> int:
        one = stay(prompt, min(SIZE, prompt + reply), fixed=fixed)
        held = prompt
        while held < one.most:
            await room.enter(one)
            while held < one.most and not one.interrupted:
                held += 1
                running[one] = held
                assert sum(running.values()) <= SIZE
                room.grow(one, held)
                await asyncio.sleep(0)
            running.pop(one, None)
            assert not (one.interrupted and fixed)
        room.leave(one)
        return held

    talks = [(dice.randrange(1, 1500), dice.randrange(1, 400), dice.random() < 0.3) for _ in range(12)]
    async with asyncio.timeout(60):
        ends = await asyncio.gather(*(talk(*one) for one in talks))
    assert ends == [min(SIZE, prompt + reply) for prompt, reply, _ in talks]
