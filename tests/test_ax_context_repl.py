"""The context builds of the REPL program: they keep their KV cache, and are given only what is new."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from qwen_service.chat import ChatRequest
from qwen_service.runtimes.base import Prompt
from qwen_service.tokenizer import LocalTokenizer
from tests.simulated_repl import Rig, exists, repl_rig, reply

START = 151644


@pytest.fixture(scope="module")
def tokenizer(qwen_tokenizer_folder: Path) -> LocalTokenizer:
    return LocalTokenizer(qwen_tokenizer_folder)


@pytest.fixture
async def rig(tmp_path: Path, tokenizer: LocalTokenizer) -> AsyncIterator[Rig]:
    async with repl_rig(tmp_path, tokenizer) as rig:
        yield rig


def prompt(*ids: int) -> Prompt:
    return Prompt(ids, ChatRequest(id="r"))


async def test_a_continued_conversation_sends_only_what_is_new(rig: Rig) -> None:
    runtime = await rig.start(SIM_REPL="context", SIM_REPLY="[40, 41, 42, 43]")
    assert runtime.capabilities.kv_reuse
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


async def test_after_a_stop_nothing_is_taken_for_held(rig: Rig) -> None:
    runtime = await rig.start(SIM_REPL="context", SIM_REPLY="echo", SIM_TOKEN_MS="2")
    await reply(runtime, prompt(START, *range(40, 60)), max_tokens=3)
    following = prompt(START, *range(40, 60), 40, 41, 42, 70)
    assert runtime.reusable_tokens(following) == 0
    assert (await reply(runtime, following))[0] == rig.tokenizer.decode_now([*range(40, 60), 40, 41, 42, 70])
