"""Several conversations that do not fit into the context together, with the real engine."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from qwen_service.chat import ChatRequest, Sampling
from qwen_service.runtime import Piece, Prefill, Prompt
from qwen_service.runtimes.llamacpp.runtime import LlamaCpp

pytestmark = pytest.mark.slow

CONTEXT = 256
DEADLINE = 300.0
END = 2
TOKENS = 90  # of a long reply: three of them outgrow the context together
LONG = Sampling(temperature=0.0, max_tokens=TOKENS, logit_bias={END: -100.0})


@pytest_asyncio.fixture
async def engine(smollm2: Path, tmp_path: Path) -> AsyncIterator[LlamaCpp]:
    runtime = LlamaCpp(model_path=smollm2, state_dir=tmp_path, slots=4, context=CONTEXT)
    limits = await runtime.start(print)
    assert (limits.context, limits.slots) == (CONTEXT, 4)
    yield runtime
    await runtime.stop()


async def prompt_of(engine: LlamaCpp, text: str) -> Prompt:
    return Prompt(tuple(await engine.encode([1, f"user\n{text}", END, "\n", 1, "assistant\n"])), ChatRequest(id="test"))


async def reply(engine: LlamaCpp, prompt: Prompt, sampling: Sampling = LONG, *, pause: float = 0) -> list[Piece]:
    pieces: list[Piece] = []
    async with asyncio.timeout(DEADLINE), aclosing(engine.generate(prompt, sampling)) as items:
        async for item in items:
            if isinstance(item, Prefill):
                assert not pieces
            else:
                pieces.append(item)
                await asyncio.sleep(pause)
    return pieces


def ids_of(pieces: list[Piece]) -> list[int]:
    return [token for piece in pieces for token in piece.token_ids]


async def test_one_conversation_may_use_what_all_slots_share(engine: LlamaCpp) -> None:
    prompt = await prompt_of(engine, " one" * 180)
    assert len(ids_of(await reply(engine, prompt, replace(LONG, max_tokens=60)))) == 60


async def test_replies_that_outgrow_the_context_together_are_all_whole(engine: LlamaCpp) -> None:
    """3 x (29 + 90) tokens in 256. Each goes on counting: whatever is lost, repeated or crossed is seen."""
    starts = (100, 300, 500)
    texts = [" ".join(f"{number}," for number in range(start, start + 6)) for start in starts]
    prompts = [Prompt(tuple(await engine.encode([text])), ChatRequest(id="test")) for text in texts]
    # One is read slowly: the engine does not wait for its reader, and the count of what it holds must not either.
    replies = await asyncio.gather(*(reply(engine, prompt, pause=0.02 * (n == 1)) for n, prompt in enumerate(prompts)))
    for start, pieces in zip(starts, replies, strict=True):
        numbers = "".join(piece.text for piece in pieces).split(",")[:-1]
        assert list(map(int, numbers)) == list(range(start + 6, start + 6 + len(numbers)))
        assert sum(piece.token_count for piece in pieces) == len(ids_of(pieces)) == TOKENS
        assert pieces[-1].finish_reason == "length"
    assert engine._room.has_room(CONTEXT - 50)


async def test_a_bound_reply_is_never_interrupted(engine: LlamaCpp) -> None:
    digits = Sampling(temperature=0.0, max_tokens=90, grammar="root ::= [0-9]{60,70}")
    free = [await prompt_of(engine, f"Tell me about the number {n}.") for n in range(2)]
    bound = await prompt_of(engine, "Write digits.")
    replies = await asyncio.gather(*(reply(engine, prompt) for prompt in free), reply(engine, bound, digits))
    assert [sum(piece.token_count for piece in pieces) for pieces in replies[:2]] == [TOKENS] * 2
    text = "".join(piece.text for piece in replies[2])
    assert text.isdecimal()
    assert 60 <= len(text) <= 70


async def test_bound_replies_without_a_limit_run_together_until_one_must_end(engine: LlamaCpp) -> None:
    digits = Sampling(temperature=0.0, grammar="root ::= [0-9]{150,160}")
    prompts = [await prompt_of(engine, f"Write {n} digits.") for n in range(2)]
    first, second = await asyncio.gather(*(reply(engine, prompt, digits) for prompt in prompts))
    assert len("".join(piece.text for piece in first)) >= 150
    assert second[-1].finish_reason == "length"
    assert 30 < len("".join(piece.text for piece in second)) < 150


async def test_a_client_who_leaves_gives_its_room_back(engine: LlamaCpp) -> None:
    prompts = [await prompt_of(engine, f"{n} " * 30) for n in range(3)]
    tasks = [asyncio.create_task(reply(engine, prompt)) for prompt in prompts]
    await asyncio.sleep(1)
    for task in tasks[:2]:
        task.cancel()
    assert len(ids_of(await tasks[2])) == TOKENS
    assert engine._room.has_room(CONTEXT - 50)
    assert not engine._room._inside
