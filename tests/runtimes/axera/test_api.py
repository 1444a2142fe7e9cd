import asyncio
import json
import os
import random
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, nullcontext
from typing import Any

import httpx
import pytest

from qwen_service.chat import Sampling
from qwen_service.errors import Died, PromptTooLong, RuntimeFailure, Stalled, Unsupported
from qwen_service.runtime import Piece, Prefill
from tests.simulated_card import Card, Reply, SimulatedCard, prompt
from tests.waiting import slow_loop

START, END, NEWLINE = 151644, 151645, 198
DEADLINE = 20.0
FIRST = [START, 872, NEWLINE, 9707, END]
LONG = json.dumps(list(range(1000, 1400)))

Started = Callable[..., "asyncio.Future[SimulatedCard]"]


@pytest.fixture
async def started(card: Card) -> AsyncIterator[Started]:
    async with AsyncExitStack() as stack:

        async def start(**options: str | float) -> SimulatedCard:
            it = await stack.enter_async_context(card(**options))
            await it.start()
            it.events()
            return it

        yield start  # type: ignore[misc]  # a coroutine function is a callable that gives an awaitable


def following(ids: list[int], reply: Reply, *question: int) -> list[int]:
    return [*ids, *reply.ids, END, NEWLINE, START, *question, END]


async def test_a_reply_arrives_with_its_exact_ids_and_text(started: Started) -> None:
    ids = [108386, 11319, 144232]  # 你好 in one token, and an emoji that is cut into several
    it = await started(SIM_REPLY=json.dumps([*ids, 9707]))
    reply = await it.ask(FIRST)
    assert (reply.ids, reply.count, reply.reason) == ([*ids, 9707], 4, "stop")
    assert reply.text.startswith("你好")
    assert reply.text.endswith("Hello")


async def test_the_first_conversation_continues_the_opening(started: Started) -> None:
    it = await started(SIM_REPLY="[11]")
    assert (await it.ask(FIRST)).cached == 1
    assert [kv for event, kv in it.seen() if event == "prompt"] == [FIRST]


async def test_a_continued_conversation_prefills_only_what_is_new(started: Started) -> None:
    it = await started(SIM_REPLY="[[11, 12, 13, 14], [21, 22]]")
    first = await it.ask(FIRST)
    second = following(FIRST, first, 872)
    assert it.runtime.reusable_tokens(prompt(second)) == len(FIRST) + 4
    it.events()
    assert (await it.ask(second)).cached == len(FIRST) + 4
    events = it.events()
    assert [event["event"] for event in events] == ["prompt", "reply"]
    assert events[0]["kv"] == second
    assert events[0]["computed"] == 5


async def test_another_conversation_resets_and_is_seen_exactly(started: Started) -> None:
    it = await started(SIM_REPLY="[11]")
    await it.ask(FIRST)
    it.events()
    other = list(range(500, 800))
    assert (await it.ask(other)).cached == 0
    events = it.events()
    assert [(event["event"], event["computed"]) for event in events[:2]] == [("reset", 0), ("prompt", 300)]
    assert events[1]["kv"] == other


async def test_a_long_prompt_follows_a_reset_to_something_where_the_limit_is_not_sure(started: Started) -> None:
    it = await started(SIM_REPLY="[11]", SIM_READY="held")
    other = list(range(500, 800))
    await it.ask(other)
    assert [(event["event"], event["computed"]) for event in it.events()[:2]] == [("reset", 128), ("prompt", 172)]


async def test_asking_again_for_what_is_held_resets(started: Started) -> None:
    it = await started(SIM_REPLY="[[11, 12], [13]]")
    reply = await it.ask(FIRST)
    held = [*FIRST, *reply.ids]
    assert it.runtime.reusable_tokens(prompt(held)) == 0
    it.events()
    await it.ask(held)
    assert ("prompt", held) in list(it.seen())


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 6, 7])
async def test_max_tokens_is_exact_and_the_next_prompt_continues_it(started: Started, limit: int) -> None:
    """Unless the limit is 3k + 1: the program has decoded two ids more by then, and its cache holds one of them."""
    it = await started(SIM_REPLY=LONG, SIM_TOKEN="0.002")
    reply = await it.ask(FIRST, max_tokens=limit)
    assert (reply.ids, reply.count, reply.reason) == (list(range(1000, 1000 + limit)), limit, "length")
    computed = it.events()[-1]
    assert computed["ids"] == list(range(1000, 1000 + -(-limit // 3) * 3))  # not a step more
    again = following(FIRST, reply, 7)
    cached = (await it.ask(again, max_tokens=1)).cached
    assert cached == {0: len(FIRST) + limit - 1, 1: 0, 2: len(FIRST) + limit}[limit % 3]
    assert [kv for event, kv in it.seen() if event == "prompt"] == [again]


@pytest.mark.parametrize("length", [1, 2, 4, 5])
async def test_a_reply_that_ends_by_itself_at_the_limit_ends_with_stop(started: Started, length: int) -> None:
    it = await started(SIM_REPLY=json.dumps(list(range(1000, 1000 + length))))
    assert (await it.ask(FIRST, max_tokens=length)).reason == "stop"


@pytest.mark.parametrize("ids", [[5, 5, 5], [5, 5, 5, 5, 5, 5], [5, 5, 5, 5], [5] * 9, [5], [5, 5]])
async def test_a_repetition_is_not_taken_for_the_end(started: Started, ids: list[int]) -> None:
    it = await started(SIM_REPLY=json.dumps(ids), SIM_TOKEN="0.01")
    assert (await it.ask(FIRST)).ids == ids
    assert (await it.ask([*FIRST, *ids, END])).cached == len(FIRST) + len(ids)


async def test_an_immediate_eos_is_an_empty_reply(started: Started) -> None:
    it = await started(SIM_REPLY=f"[[{END}, 11, 12, 13, 14, 15, 16], [21]]", SIM_TOKEN="0.02")
    reply = await it.ask(FIRST)
    assert (reply.text, reply.ids, reply.reason) == ("", [], "stop")
    it.events()
    again = [*FIRST, 77]
    await it.ask(again)
    assert ("prompt", again) in list(it.seen())


@pytest.mark.parametrize("context", [28, 29, 30])
async def test_a_reply_ends_with_length_where_the_context_ends(started: Started, context: int) -> None:
    it = await started(SIM_REPLY=LONG, SIM_CONTEXT=str(context))
    reply = await it.ask(FIRST)
    assert (reply.count, reply.reason) == (context - len(FIRST), "length")
    again = [*FIRST, *reply.ids, 77]
    await it.ask(again[:8])
    assert [kv for event, kv in it.seen() if event == "prompt"][-1] == again[:8]


async def test_all_sampling_values_are_sent_each_time_and_greedy_is_top_k_1(started: Started) -> None:
    it = await started(SIM_REPLY="[11]")
    await it.ask(FIRST, temperature=0.0, top_k=50, top_p=0.5, repeat_penalty=1.1)
    await it.ask(FIRST)
    greedy, usual = (event["sampling"] for event in it.events() if event["event"] == "prompt")
    assert greedy == {"temperature": 0.0, "repetition_penalty": 1.1, "top-p": 0.5, "top-k": 1}
    assert usual == {"temperature": 0.7, "repetition_penalty": 1.0, "top-p": 0.8, "top-k": 20}


@pytest.mark.parametrize("count", [2, 127, 128, 129, 255, 256])
async def test_every_prompt_up_to_the_limit_fits(started: Started, count: int) -> None:
    it = await started(SIM_REPLY="[11]", SIM_LARGEST="256")
    ids = list(range(1000, 1000 + count))
    assert (await it.ask(ids)).ids == [11]
    assert ("prompt", ids) in list(it.seen())


async def test_a_continuation_that_the_engine_would_refuse_resets_instead(started: Started) -> None:
    it = await started(SIM_REPLY="[11]", SIM_LARGEST="256")
    first = list(range(1000, 1120))
    reply = await it.ask(first)
    longer = following(first, reply, *range(2000, 2129))  # 121 held leave room for one step of 128
    assert len(longer) <= 256
    assert (await it.ask(longer)).cached == 0
    assert ("prompt", longer) in list(it.seen())


async def test_prompts_that_cannot_run_are_refused_before_the_engine_sees_them(started: Started) -> None:
    it = await started(SIM_LARGEST="256")
    with pytest.raises(PromptTooLong):
        await it.ask(list(range(257)))
    with pytest.raises(Unsupported):
        await it.ask([])
    assert it.events() == []


async def test_a_prompt_that_the_engine_refuses_costs_neither_the_engine_nor_the_next_prompt(started: Started) -> None:
    it = await started(SIM_REPLY="[11]", SIM_LARGEST="256", SIM_READY="held")  # so that its limits are not seen
    with pytest.raises(PromptTooLong, match="context may be full"):
        await it.ask(list(range(1000, 1300)))
    assert (await it.ask(FIRST)).ids == [11]
    assert ("prompt", FIRST) in list(it.seen())


async def test_a_build_that_stays_busy_after_a_refusal_has_failed(started: Started) -> None:
    it = await started(SIM_LARGEST="256", SIM_READY="held", SIM_REFUSE="stuck")
    with pytest.raises(Stalled, match="stuck after a refused prompt"):
        await it.ask(list(range(1000, 1300)))
    assert isinstance(await it.runtime.failed(), Stalled)


async def test_warming_makes_the_cache_hold_just_that(started: Started) -> None:
    it = await started(SIM_REPLY="[11]")
    await it.ask(FIRST)
    it.events()
    head = list(range(1000, 1300))
    assert await it.runtime.warm(prompt(head))
    assert [(event["event"], event["kv"]) for event in it.events()] == [("reset", head)]
    again = [*head, 5, 6]
    assert it.runtime.reusable_tokens(prompt(again)) == 300
    assert (await it.ask(again)).cached == 300
    assert [(event["event"], event.get("computed")) for event in it.events()][:1] == [("prompt", 2)]


async def test_what_leaves_no_room_for_a_question_is_not_warmed(started: Started) -> None:
    it = await started(SIM_LARGEST="256")
    assert not await it.runtime.warm(prompt(list(range(1000, 1129))))
    assert not await it.runtime.warm(prompt([]))
    assert await it.runtime.warm(prompt(list(range(1000, 1128))))
    assert [event["event"] for event in it.events()] == ["reset"]


async def test_work_of_others_is_not_waited_for_to_warm(started: Started) -> None:
    it = await started(SIM_REPLY=LONG, SIM_TOKEN="0.05")
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{it.port}") as stranger:
        await stranger.post("/api/generate", json={"prompt": "hello"})
        await it.until("prompt")
        assert not await it.runtime.warm(prompt(FIRST))


async def leave_after(it: SimulatedCard, ids: list[int], pieces: int) -> None:
    async with aclosing(it.runtime.generate(prompt(ids), Sampling())) as items:
        async for item in items:
            pieces -= isinstance(item, Piece)
            if pieces < 0:
                return


async def leave_at_end(items: AsyncGenerator[Prefill | Piece, None], seen: list[Prefill | Piece] | None = None) -> None:
    async for item in items:
        (seen if seen is not None else []).append(item)


async def test_closing_a_reply_stops_the_engine_with_the_batch_that_is_computed(started: Started) -> None:
    it = await started(SIM_REPLY=LONG, SIM_TOKEN="0.1")
    await leave_after(it, FIRST, 1)  # at the second batch
    stopped = next(event for event in it.events() if event["event"] == "reply")
    assert len(stopped["ids"]) <= 9
    assert not stopped["corrupt"]
    again = [*FIRST, *stopped["ids"], 77]
    assert (await it.ask(again, max_tokens=1)).cached == len(again) - 2
    assert ("prompt", again) in list(it.seen())


async def test_closing_during_prefill_stops_it_there(started: Started) -> None:
    it = await started(SIM_REPLY="[11]", SIM_STEP="0.1")
    long = list(range(1000, 3000))  # 16 steps
    await leave_after(it, long, -1)  # at the Prefill event
    happened = [event["event"] for event in it.events()]
    assert happened[-1] == "reply"
    assert "prompt" not in happened
    assert (await it.ask([*FIRST, 5])).ids == [11]
    assert ("prompt", [*FIRST, 5]) in list(it.seen())


async def test_a_stopped_prefill_leaves_the_conversation_before_it(started: Started) -> None:
    it = await started(SIM_REPLY="[11]", SIM_STEP="0.05")
    reply = await it.ask(FIRST)
    await leave_after(it, following(FIRST, reply, *range(1000, 2000)), -1)
    again = following(FIRST, reply, 5)
    assert (await it.ask(again)).cached == len(FIRST) + 1
    assert [kv for event, kv in it.seen() if event == "prompt"][-1] == again


async def test_whenever_a_request_is_cancelled_the_next_prompt_is_seen_exactly(started: Started) -> None:
    """Through reset, /encode, prefill and generation, where a stop is lost or forgets the turn."""
    it = await started(SIM_REPLY="varied", SIM_STEP="0.01", SIM_TOKEN="0.002", SIM_GAP="0.01")
    dice = random.Random(7)
    for turn in range(25):
        ids = [dice.randrange(1000, 90000) for _ in range(dice.randrange(2, 400))]
        task = asyncio.create_task(it.ask(ids))
        await asyncio.sleep(turn * 0.006)
        task.cancel()
        await asyncio.wait({task})
        it.events()
        reply = await it.ask([*ids, 5])
        assert [kv for event, kv in it.seen() if event == "prompt"] == [[*ids, 5]]
        assert reply.reason == "stop"


async def test_work_of_others_is_waited_for_and_not_trusted(started: Started) -> None:
    it = await started(SIM_REPLY="[[11], [12], [13, 14]]", SIM_STEP="0.2")
    reply = await it.ask(FIRST)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{it.port}") as stranger:
        await stranger.post("/api/generate", json={"prompt": "hello"})
        it.events()
        second = following(FIRST, reply, 872)
        assert (await it.ask(second)).cached == 0
    assert [kv for event, kv in it.seen() if event == "prompt"][-1] == second


async def test_a_stranger_between_two_turns_is_noticed(started: Started) -> None:
    it = await started(SIM_REPLY="[[11], [12], [13, 14]]")
    reply = await it.ask(FIRST)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{it.port}") as stranger:
        await stranger.post("/api/chat", json={"messages": [{"role": "user", "content": "hello"}]})
    second = following(FIRST, reply, 872)
    assert (await it.ask(second)).cached == 0
    assert [kv for event, kv in it.seen() if event == "prompt"][-1] == second


async def test_what_a_stranger_stops_is_not_taken_for_the_models_reply(started: Started) -> None:
    """During prefill that leaves one token of garbage, and a cache without the turn."""
    it = await started(SIM_REPLY="[11, 12]", SIM_STEP="0.5")
    task = asyncio.create_task(it.ask(FIRST))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{it.port}") as stranger:
        while not task.done():
            await stranger.get("/api/stop")
            await asyncio.sleep(0.02)
    stopped = await task
    assert (stopped.count, stopped.reason) == (1, "length")
    it.events()
    again = [*FIRST, *stopped.ids, END]
    assert (await it.ask(again)).cached == 0
    assert ("prompt", again) in list(it.seen())


async def test_a_death_in_a_reply_is_reported_by_the_reply_and_by_failed(started: Started) -> None:
    it = await started(SIM_REPLY=LONG, SIM_FAULT="segv:10")
    with pytest.raises(Died, match="SIGSEGV"):
        await it.ask(FIRST)
    assert isinstance(await asyncio.wait_for(it.runtime.failed(), DEADLINE), Died)
    with pytest.raises(Died):
        await it.ask(FIRST)


async def test_an_idle_death_is_reported_by_failed(started: Started) -> None:
    it = await started()
    os.kill(int(it.pid_file.read_text()), signal.SIGKILL)
    assert "SIGKILL" in (await asyncio.wait_for(it.runtime.failed(), DEADLINE)).message


async def test_a_silent_npu_is_stalled(started: Started) -> None:
    it = await started(SIM_REPLY=LONG, SIM_FAULT="hang:10", stall_timeout=2)
    with pytest.raises(Stalled, match=r"no sign of life for 2 s"):
        await it.ask(FIRST)
    assert isinstance(await it.runtime.failed(), Stalled)


async def test_execution_errors_in_the_log_end_the_reply(started: Started) -> None:
    it = await started(SIM_REPLY=LONG, SIM_FAULT="npu:4", SIM_TOKEN="0.01")
    with pytest.raises(RuntimeFailure, match="AX_ENGINE_Execute"):
        await it.ask(FIRST)


async def test_an_engine_that_does_not_stop_has_failed(started: Started) -> None:
    it = await started(SIM_REPLY=LONG, SIM_FAULT="deaf", SIM_TOKEN="0.05", stall_timeout=2)
    await leave_after(it, FIRST, 1)
    assert "has not stopped" in (await it.runtime.failed()).message


async def test_stop_ends_the_program_politely_and_is_idempotent(started: Started) -> None:
    it = await started()
    await it.runtime.stop()
    await it.runtime.stop()
    assert "without an error" in (await it.runtime.failed()).message


@pytest.mark.parametrize("loop", [slow_loop, nullcontext])
async def test_stop_in_the_middle_of_a_reply_ends_both(started: Started, loop: Callable[[], Any]) -> None:
    """A program that is stopped within a step decodes one false token more, and the reply looks as if it were whole."""
    it = await started(SIM_REPLY=LONG, SIM_TOKEN="0.05")
    pieces: list[Prefill | Piece] = []
    async with loop(), aclosing(it.runtime.generate(prompt(FIRST), Sampling())) as items:
        await anext(items)
        await it.runtime.stop()
        with pytest.raises(Died):
            await leave_at_end(items, pieces)
    ids = [id_ for piece in pieces if isinstance(piece, Piece) for id_ in piece.token_ids]
    assert ids == list(range(1000, 1000 + len(ids)))
