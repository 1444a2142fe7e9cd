"""The context builds of the REPL program: they keep their KV cache, and are given only what is new."""

import asyncio
from contextlib import aclosing

import pytest

from qwen_service.chat import ChatRequest, Sampling
from qwen_service.errors import StartFailed
from qwen_service.runtime import Prompt
from tests.simulated_repl import Rig, exists, reply
from tests.waiting import slow_loop

START = 151644


def prompt(*ids: int) -> Prompt:
    return Prompt(ids, ChatRequest(id="r"))


async def test_a_continued_conversation_sends_only_what_is_new(rig: Rig) -> None:
    runtime = await rig.start(SIM_REPL="context", SIM_REPLY="[40, 41, 42, 43]")
    pid = rig.pid
    said = "".join(map(chr, (73, 74, 75, 76)))
    assert await reply(runtime, prompt(START, 1, 2)) == (said, 4, "stop")
    following = prompt(START, 1, 2, 40, 41, 42, 43, 7, 8)
    assert runtime.reusable_tokens(following) == 7
    assert await reply(runtime, following) == (said, 4, "stop")
    assert rig.pid == pid


async def test_the_model_sees_the_whole_conversation(rig: Rig) -> None:
    runtime = await rig.start(SIM_REPL="context", SIM_REPLY="echo")
    first = await reply(runtime, prompt(START, 40, 41))
    assert first[0] == rig.tokenizer.decode_now([40, 41])
    second = await reply(runtime, prompt(START, 40, 41, 40, 41, 50))
    assert second[0] == rig.tokenizer.decode_now([40, 41, 40, 41, 50])


async def test_another_conversation_gets_a_new_process_and_that_is_no_failure(rig: Rig) -> None:
    runtime = await rig.start(SIM_REPL="context", SIM_REPLY="echo")
    await reply(runtime, prompt(START, 40, 41))
    before, failed = rig.pid, asyncio.create_task(runtime.failed())
    assert await reply(runtime, prompt(START, 60, 61)) == (rig.tokenizer.decode_now([60, 61]), 2, "stop")
    assert rig.pid != before
    assert not exists(before)
    assert not failed.done()
    await runtime.stop()
    await failed


@pytest.mark.parametrize(("limit", "held"), [(1, 0), (2, 23), (3, 23), (4, 0), (5, 26), (6, 26)])
async def test_after_a_stop_it_is_known_what_is_held(rig: Rig, limit: int, held: int) -> None:
    """One id more than were wanted, where the limit is 3k + 1: that cannot be continued."""
    record = rig.folder / "kv.jsonl"
    runtime = await rig.start(SIM_REPL="context", SIM_REPLY="echo", SIM_TOKEN_MS="2", SIM_RECORD=str(record))
    following = prompt(START, *range(40, 60), *range(40, 40 + limit), 70)
    for _ in range(3):  # on a busy machine the program may take longer to stop than its answer may be held
        await reply(runtime, prompt(START, *range(40, 60)), max_tokens=limit)
        if runtime.reusable_tokens(following) == held:
            break
    assert runtime.reusable_tokens(following) == held
    said = rig.tokenizer.decode_now([*range(40, 60), *range(40, 40 + limit), 70])
    assert (await reply(runtime, following))[0] == said
    assert '"corrupt"' not in record.read_text().replace('"corrupt":', "")


async def test_a_slow_event_loop_loses_no_cache(rig: Rig) -> None:
    runtime = await rig.start(SIM_REPL="context", SIM_REPLY="echo", SIM_TOKEN_MS="2")
    async with slow_loop():
        for limit in (2, 3, 5, 6):
            await reply(runtime, prompt(START, *range(40, 60)), max_tokens=limit)
            following = prompt(START, *range(40, 60), *range(40, 40 + limit), 70)
            assert runtime.reusable_tokens(following) > 20, limit


async def test_after_a_stop_during_the_prompt_nothing_is_taken_for_held(rig: Rig) -> None:
    runtime = await rig.start(SIM_REPL="context", SIM_REPLY="echo", SIM_TOKEN_MS="100")
    async with aclosing(runtime.generate(prompt(START, *range(40, 60)), Sampling())) as items:
        await anext(items)
    assert runtime.reusable_tokens(prompt(START, *range(40, 60), 70)) == 0
    assert runtime.reusable_tokens(prompt(START, 70)) == 0


async def test_a_reply_that_ends_at_once_is_empty(rig: Rig) -> None:
    runtime = await rig.start(SIM_REPL="context", SIM_REPLY="[]")
    assert await reply(runtime, prompt(START, 40, 41)) == ("", 0, "stop")
    assert runtime.reusable_tokens(prompt(START, 40, 41, 50)) == 0  # the end of it is in the cache


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 6, 7])
async def test_a_bogus_token_of_a_stopped_reply_is_in_no_text(rig: Rig, limit: int) -> None:
    runtime = await rig.start(SIM_REPL="context", SIM_REPLY="endless", SIM_TOKEN_MS="2", SIM_BOGUS="1")
    expected = rig.tokenizer.decode_now(range(1000, 1000 + limit))
    for _ in range(2):
        assert await reply(runtime, prompt(START, 40, 41), limit) == (expected, limit, "length")


async def test_a_program_that_never_asks_for_its_system_prompt_is_not_ready(rig: Rig) -> None:
    runtime = rig.make(SIM_REPL="context", without="system_prompt")
    with pytest.raises(StartFailed, match="has not asked our tokenizer") as failed:
        await runtime.start(rig.progress.append)
    assert failed.value.permanent
