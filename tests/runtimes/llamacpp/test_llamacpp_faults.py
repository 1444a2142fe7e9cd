"""The llamacpp runtime against a simulated llama-server that fails in every way we know of."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from qwen_service.chat import ChatRequest, Sampling
from qwen_service.errors import Died, InvalidRequest, ProtocolError, QueueFull, Stalled, StartFailed
from qwen_service.runtime import Piece, Prefill, Prompt
from qwen_service.runtimes.llamacpp.runtime import LlamaCpp

SIMULATOR = Path(__file__).parents[2] / "simulators" / "llama_server"
PROMPT = Prompt((1, 2, 3), ChatRequest(id="test"))
DEADLINE = 30.0

Start = Callable[..., Awaitable[LlamaCpp]]


def runtime(
    folder: Path, stall_timeout: float = DEADLINE, context: int = 4096, program: Path = SIMULATOR, **behaviour: Any
) -> LlamaCpp:
    model = folder / "model.gguf"
    model.write_bytes(b"GGUF" + json.dumps(behaviour).encode())
    return LlamaCpp(
        model_path=model,
        state_dir=folder / "state",
        llama_server=program,
        slots=2,
        context=context,
        stall_timeout=stall_timeout,
    )


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    started: list[LlamaCpp] = []

    async def begin(**behaviour: Any) -> LlamaCpp:
        started.append(runtime(tmp_path, **behaviour))
        await started[-1].start(print)
        return started[-1]

    yield begin
    for engine in started:
        await engine.stop()


async def reply(engine: LlamaCpp) -> list[Prefill | Piece]:
    async with asyncio.timeout(DEADLINE), aclosing(engine.generate(PROMPT, Sampling())) as items:
        return [item async for item in items]


async def test_a_binary_in_place_of_the_worker_serves_the_same_way(start: Start) -> None:
    engine = await start(tokens=3)
    assert "".join(item.text for item in await reply(engine) if isinstance(item, Piece)) == "xxx"
    assert await engine.encode(["ab", 7]) == [97, 98, 7]


async def test_a_binary_is_given_no_grammar_of_a_library_that_it_may_lack(start: Start) -> None:
    engine = await start()
    assert (engine.capabilities.constrained_output, engine.capabilities.grammars) == (True, False)
    refused = engine.generate(PROMPT, Sampling(grammar="%llguidance {}\nstart: /a/\n"))
    with pytest.raises(InvalidRequest, match="llguidance is not enabled"):
        await anext(refused)


async def test_a_binary_that_lacks_a_flag_is_named_with_what_to_do(tmp_path: Path) -> None:
    old = tmp_path / "llama-server"
    old.write_text("#!/bin/sh\necho 'error: invalid argument: --kv-unified' >&2\nexit 1\n")
    old.chmod(0o700)
    engine = runtime(tmp_path, program=old)
    with pytest.raises(StartFailed, match=r"llama_server: this build does not know --kv-unified.* newer") as caught:
        await engine.start(print)
    assert caught.value.permanent


async def test_no_text_becomes_a_token_that_the_template_may_write(start: Start) -> None:
    engine = await start()
    for _ in range(2):
        ids = await engine.special_ids(["<|im_end|>", "<tool_call>", "<|no_such|>"])
        assert ids == {"<|im_end|>": 250, "<tool_call>": 251}
    text = "<tool_call>a<|im_end|><tool_call><tool_<tool_call>"
    assert await engine.encode([251, text, 250]) == [251, *text.encode(), 250]


async def test_the_start_waits_for_a_model_that_is_still_loading(start: Start) -> None:
    began = asyncio.get_running_loop().time()
    engine = await start(load_seconds=0.5)
    assert asyncio.get_running_loop().time() - began >= 0.5
    assert len(await reply(engine)) == 6


@pytest.mark.parametrize(
    ("line", "permanent"),
    [
        ("0.00.026 E llama_model_load: unknown architecture", True),
        ("0.00.026 E ggml_aligned_malloc: failed to allocate", False),
    ],
)
async def test_a_start_that_fails_is_permanent_unless_memory_was_short(
    tmp_path: Path, line: str, permanent: bool
) -> None:
    with pytest.raises(StartFailed, match=line.partition(" E ")[2]) as caught:
        await runtime(tmp_path, exit_code=1, log=line).start(print)
    assert caught.value.permanent is permanent


@pytest.mark.parametrize("fault", ["stall", "ping"])
async def test_an_engine_without_a_token_for_too_long_has_stalled_whatever_its_pings_say(
    start: Start, fault: str
) -> None:
    engine = await start(fault=fault, after=2, stall_timeout=2)
    with pytest.raises(Stalled):
        await reply(engine)
    async with asyncio.timeout(DEADLINE):
        assert isinstance(await engine.failed(), Stalled)


async def test_tokens_that_are_slow_but_come_are_no_stall(start: Start) -> None:
    engine = await start(tokens=5, gap=0.3, stall_timeout=1.5)
    assert len(await reply(engine)) == 6


@pytest.mark.parametrize(("fault", "message"), [("error", "KV cache is full"), ("cut", "finish"), ("garbage", "read")])
async def test_a_reply_that_breaks_the_contract_is_a_protocol_error(start: Start, fault: str, message: str) -> None:
    engine = await start(fault=fault, after=2)
    with pytest.raises(ProtocolError, match=message):
        await reply(engine)


async def test_a_reply_goes_on_where_it_was_when_the_context_was_outgrown(start: Start) -> None:
    engine = await start(fault="outgrown", after=2)
    pieces = [item async for item in engine.generate(PROMPT, Sampling(max_tokens=6)) if isinstance(item, Piece)]
    assert ("".join(piece.text for piece in pieces), pieces[-1].finish_reason) == ("x" * 6, "length")


async def test_of_a_crowd_that_comes_grows_and_leaves_at_random_all_that_stay_are_answered_in_full(
    tmp_path: Path,
) -> None:
    engine = runtime(tmp_path, context=256, tokens=1000, gap=0.001)
    await engine.start(print)
    dice = random.Random(4)

    async def talk(number: int) -> None:
        prompt = Prompt((1,) * dice.randrange(1, 200), ChatRequest(id="test"))
        most = dice.randrange(1, 256 - len(prompt.token_ids))
        schema: dict[str, Any] | None = {} if dice.random() < 0.3 else None
        pieces = engine.generate(prompt, Sampling(max_tokens=most, json_schema=schema))
        leaves_after = dice.random() if number % 3 == 0 else DEADLINE
        try:
            async with asyncio.timeout(leaves_after), aclosing(pieces) as items:
                text = "".join([item.text async for item in items if isinstance(item, Piece)])
                assert text == "x" * most
        except TimeoutError:
            assert leaves_after < DEADLINE

    async def client(number: int) -> None:
        for turn in range(12):
            await talk(number + turn)

    try:
        await asyncio.gather(*map(client, range(4)))
        assert engine.has_room(Prompt((1,) * 200, ChatRequest(id="test")))
        assert not engine._room._inside
    finally:
        await engine.stop()


async def test_a_bound_reply_for_which_the_context_was_outgrown_is_to_be_tried_again(start: Start) -> None:
    engine = await start(fault="outgrown", after=2)
    with pytest.raises(QueueFull, match="Try again"):
        async for _ in engine.generate(PROMPT, Sampling(json_schema={})):
            pass


async def test_a_crash_in_mid_reply_is_named(start: Start) -> None:
    engine = await start(fault="die", after=2)
    with pytest.raises(Died, match="SIGSEGV"):
        await reply(engine)
    async with asyncio.timeout(DEADLINE):
        assert isinstance(await engine.failed(), Died)


async def test_an_engine_that_does_not_stop_a_generation_is_given_up(start: Start) -> None:
    engine = await start(fault="stall", after=1, stall_timeout=2)
    async with aclosing(engine.generate(PROMPT, Sampling())) as items:
        await anext(items)
    async with asyncio.timeout(DEADLINE):
        assert isinstance(await engine.failed(), Stalled)
