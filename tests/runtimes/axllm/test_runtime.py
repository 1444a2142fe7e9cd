import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from qwen_service.chat import ChatRequest, Message, Sampling, Tool, ToolCall
from qwen_service.errors import (
    Died,
    InvalidRequest,
    PromptTooLong,
    QueueTimeout,
    Stalled,
    StartFailed,
    Unsupported,
)
from qwen_service.runtime import Limits, Piece, Prefill, Prompt
from qwen_service.runtimes.axera.program import AxeraProgram
from qwen_service.runtimes.axllm.runtime import AxLlm
from qwen_service.text.tokenizer import LocalTokenizer
from tests.runtimes.simulators.test_simulator_main_api import free_port
from tests.waiting import until

SIMULATOR = Path(__file__).parents[2] / "simulators" / "axllm"
DEADLINE = 20.0


class Rig:
    def __init__(
        self,
        folder: Path,
        environment: Mapping[str, str],
        *,
        stall: float,
        tokenizer: LocalTokenizer | None,
        context: int,
    ) -> None:
        self.record = folder / "record.jsonl"
        self.pid_file = folder / "axllm.pid"
        (folder / "config.json").write_text(json.dumps({"model_name": "qwen3"}))
        self.program = AxeraProgram(
            command=lambda values: [sys.executable, str(SIMULATOR), "serve", str(folder), "--port", values["port"]],
            folder=folder,
            env={**os.environ, "SIM_RECORD": str(self.record), "SIM_CONCURRENCY": "2", **environment},
            port=free_port(),
            pid_file=self.pid_file,
            start_timeout=DEADLINE,
            stall_timeout=stall,
        )
        self.runtime = AxLlm(self.program, tokenizer, expected=Limits(context=context, prompt=context // 2))

    async def start(self) -> None:
        await self.runtime.start(lambda _: None)

    async def ask(self, text: str, **sampling: Any) -> list[Piece]:
        return [
            item async for item in self.runtime.generate(say(text), Sampling(**sampling)) if isinstance(item, Piece)
        ]

    def events(self, kind: str) -> list[Any]:
        lines = self.record.read_text().splitlines() if self.record.exists() else []
        return [event[kind] for event in map(json.loads, lines) if kind in event]


def say(text: str, **fields: Any) -> Prompt:
    return Prompt((), ChatRequest("r1", messages=(Message("user", text),), **fields))


def joined(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


OpenRig = Callable[..., AbstractAsyncContextManager[Rig]]


@pytest.fixture
def rig(tmp_path: Path) -> OpenRig:
    @asynccontextmanager
    async def opened(
        stall: float = DEADLINE, tokenizer: LocalTokenizer | None = None, context: int = 500, **environment: str
    ) -> AsyncIterator[Rig]:
        it = Rig(tmp_path, environment, stall=stall, tokenizer=tokenizer, context=context)
        try:
            yield it
        finally:
            await it.runtime.stop()

    return opened


@pytest.fixture
async def started(rig: OpenRig) -> AsyncIterator[Callable[..., Any]]:
    async with AsyncExitStack() as stack:

        async def start(**options: Any) -> Rig:
            it = await stack.enter_async_context(rig(**options))
            await it.start()
            return it

        yield start


async def test_a_reply_comes_as_pieces_and_ends_with_stop(started: Callable[..., Any]) -> None:
    it = await started()
    pieces = await it.ask("one two three")
    assert [piece.text for piece in pieces] == ["one ", "two ", "three ", ""]
    assert pieces[-1].finish_reason == "stop"
    assert sum(piece.token_count for piece in pieces) == 3


async def test_tokens_are_counted_with_the_models_tokenizer(
    started: Callable[..., Any], small_tokenizer_folder: Path
) -> None:
    text = ["<think>\n", "Gr", "üße", "\n</think>", "\n\n", "from Köln-Ehrenfeld, 12345"]
    tokenizer = LocalTokenizer(small_tokenizer_folder)
    it = await started(tokenizer=tokenizer, SIM_REPLY=json.dumps(text))
    ids = tokenizer.special_ids
    expected = tokenizer.encode_now([ids["<think>"], "\nGrüße\n", ids["</think>"], "\n\nfrom Köln-Ehrenfeld, 12345"])
    assert sum(piece.token_count for piece in await it.ask("x")) == len(expected)


async def test_the_limit_gives_finish_reason_length(started: Callable[..., Any]) -> None:
    it = await started()
    pieces = await it.ask("one two three", max_tokens=2)
    assert joined(pieces) == "one two "
    assert pieces[-1].finish_reason == "length"


async def test_a_request_is_always_bounded_and_says_what_the_neutral_one_means(started: Callable[..., Any]) -> None:
    it = await started(context=100)
    request = ChatRequest(
        "r1",
        messages=(
            Message("system", "be kind"),
            Message("assistant", "", tool_calls=(ToolCall("c1", "f", '{"x": 1}'),)),
            Message("tool", "2", tool_call_id="c1"),
            Message("user", "hello"),
        ),
        tools=(Tool("f", "does it", {"type": "object"}),),
        thinking=True,
    )
    await read_to_its_end(it.runtime.generate(Prompt((1,) * 40, request), Sampling(temperature=0.0)))
    sent = it.events("request")[0]
    assert sent["max_tokens"] == 60
    assert sent["enable_thinking"] is True
    assert (sent["temperature"], sent["top_k"]) == (0.01, 1)
    assert sent["messages"][1]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"x": 1}'}
    assert sent["messages"][2]["tool_call_id"] == "c1"
    assert sent["tools"][0]["function"]["name"] == "f"


async def test_native_tool_calls_go_up_as_the_model_wrote_them(started: Callable[..., Any]) -> None:
    call = '<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>'
    it = await started(SIM_REPLY=json.dumps(["Well. ", call]), SIM_TOOLS="native")
    assert joined(await it.ask("x")) == 'Well. \n<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'


async def test_a_reply_cut_by_axllms_time_limit_ends_with_length(started: Callable[..., Any]) -> None:
    it = await started(SIM_TIME_LIMIT="0.1", SIM_TOKEN="0.06")
    pieces = await it.ask("one two three four")
    assert pieces[-1].finish_reason == "length"


async def test_it_is_warmed_by_a_chat_of_one_token(started: Callable[..., Any]) -> None:
    it = await started(context=1000)
    text = " ".join(f"w{number}" for number in range(60))
    prompt = say(text)
    assert await it.runtime.warm(Prompt(tuple(range(150)), prompt.request))
    assert it.events("request")[0]["max_tokens"] == 1
    assert it.runtime.reusable_tokens(Prompt(tuple(range(160)), prompt.request)) == 150
    assert not await it.runtime.warm(Prompt(tuple(range(150)), prompt.request))  # it is held
    assert not await it.runtime.warm(Prompt(tuple(range(1000, 1400)), prompt.request))  # no room for a question
    assert len(it.events("request")) == 1


async def test_it_is_not_warmed_while_it_works_for_one_that_has_left(started: Callable[..., Any]) -> None:
    it = await started(context=1000, SIM_TOKEN="0.05")
    await leave(it, "a b c d e f")
    assert not await it.runtime.warm(Prompt(tuple(range(150)), say("x").request))


async def test_a_refused_prefill_is_no_failure(started: Callable[..., Any]) -> None:
    it = await started(context=1000)
    empty = ChatRequest("r1", messages=(Message("assistant", "x"),))
    assert not await it.runtime.warm(Prompt(tuple(range(150)), empty))
    assert joined(await it.ask("x")) == "x "


async def test_a_head_of_the_last_time_is_told_as_a_system_message(
    started: Callable[..., Any], small_tokenizer_folder: Path
) -> None:
    tokenizer = LocalTokenizer(small_tokenizer_folder)
    it = await started(tokenizer=tokenizer, context=2000)
    start, end = (tokenizer.special_ids[name] for name in ("<|im_start|>", "<|im_end|>"))
    text = "You are a parrot. " * 40 + "\n\nWith two lines."
    ids = tuple(tokenizer.encode_now([start, f"system\n{text}", end, "\n", start, "user\n"]))
    assert await it.runtime.warm(Prompt(ids, ChatRequest("warming")))
    assert it.events("request")[0]["messages"] == [
        {"role": "system", "content": text},
        {"role": "user", "content": "a"},
    ]
    assert not await it.runtime.warm(Prompt(ids[1:], ChatRequest("warming")))


async def test_requests_at_the_same_time_do_not_mix(started: Callable[..., Any]) -> None:
    it = await started(SIM_TOKEN="0.01")
    first, second = await asyncio.gather(it.ask("a a a a a a"), it.ask("b b b b b b"))
    assert {joined(first), joined(second)} == {"a " * 6, "b " * 6}


async def leave(it: Rig, text: str) -> None:
    async with aclosing(it.runtime.generate(say(text), Sampling())) as pieces:
        await anext(pieces)


async def test_leaving_a_reply_returns_at_once_and_tells_until_when_the_npu_is_busy(
    started: Callable[..., Any],
) -> None:
    it = await started(SIM_TOKEN="0.05")
    await leave(it, "a b c d e f")
    assert len(it.events("token")) < 6
    rest = it.runtime.still_running()
    assert rest is not None
    await rest
    assert len(it.events("token")) == 6
    assert it.runtime.still_running() is None
    assert joined(await it.ask("x y")) == "x y "


async def test_a_request_after_a_cancelled_one_waits_for_the_npu(started: Callable[..., Any]) -> None:
    it = await started(SIM_TOKEN="0.02")
    task = asyncio.create_task(it.ask("a b c d e f"))
    await until(lambda: it.events("token"))
    for _ in range(2):  # the second interrupts the waiting, too
        task.cancel()
        await asyncio.sleep(0)
    assert joined(await it.ask("x y")) == "x y "
    assert it.events("token") == ["a ", "b ", "c ", "d ", "e ", "f ", "x ", "y "]


@pytest.mark.parametrize("status", ["503", "429"])
async def test_an_engine_used_by_others_is_waited_for_and_then_refused(
    started: Callable[..., Any], status: str
) -> None:
    it = await started(SIM_FULL_AFTER="0.05", SIM_FULL_STATUS=status, SIM_FAULT="hang:1", stall=2.0)
    body = {"messages": [{"role": "user", "content": "a b"}], "stream": True}
    url = f"http://127.0.0.1:{it.program.port}/v1/chat/completions"
    async with httpx.AsyncClient() as stranger, AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(stranger.stream("POST", url, json=body))
        with pytest.raises(QueueTimeout, match="requests of other programs"):
            await it.ask("x")


async def test_an_error_that_looks_like_an_empty_completion_is_an_error(started: Callable[..., Any]) -> None:
    it = await started()
    empty = Prompt((), ChatRequest("r1"))
    with pytest.raises(InvalidRequest, match="HTTP 400 and no reason"):
        await read_to_its_end(it.runtime.generate(empty, Sampling()))
    assert joined(await it.ask("x")) == "x "


async def test_what_axllm_cannot_take_is_refused_before_it_is_asked(started: Callable[..., Any]) -> None:
    it = await started(context=10)
    with pytest.raises(Unsupported):
        await read_to_its_end(it.runtime.generate(Prompt((), ChatRequest("r1", prompt="x")), Sampling()))
    with pytest.raises(Unsupported, match="cannot continue a message"):
        await read_to_its_end(it.runtime.generate(Prompt((), ChatRequest("r1", continues=True)), Sampling()))
    with pytest.raises(PromptTooLong):
        await read_to_its_end(it.runtime.generate(Prompt((1,) * 10, say("x").request), Sampling()))
    assert it.events("request") == []


async def test_a_silent_axllm_is_stalled(started: Callable[..., Any]) -> None:
    it = await started(SIM_FAULT="hang:2", stall=2)
    with pytest.raises(Stalled, match=r"\b2 s"):
        await it.ask("a b c")
    assert isinstance(await it.runtime.failed(), Stalled)


async def test_a_long_prompt_may_be_computed_for_longer_than_a_reply_may_be_silent(started: Callable[..., Any]) -> None:
    it = await started(SIM_PREFILL="1.5", stall=0.5)
    prompt = Prompt(tuple(range(240)), say("a b").request)
    pieces = [item async for item in it.runtime.generate(prompt, Sampling()) if isinstance(item, Piece)]
    assert joined(pieces) == "a b "


async def test_a_hang_under_a_prompt_that_is_cached_is_known_soon(started: Callable[..., Any]) -> None:
    """Only what the cache lacks is given time to be computed."""
    it = await started(stall=1, context=3000)
    ids = tuple(range(1000))
    await read_to_its_end(it.runtime.generate(Prompt(ids, say("a").request), Sampling()))
    os.kill(int(it.pid_file.read_text()), signal.SIGSTOP)
    async with asyncio.timeout(20):  # 1000 ids have 50 s
        with pytest.raises(Stalled):
            await read_to_its_end(it.runtime.generate(Prompt((*ids, 7), say("a b").request), Sampling()))


async def test_a_death_in_a_reply_is_reported_by_the_reply_and_by_failed(started: Callable[..., Any]) -> None:
    it = await started(SIM_FAULT="die:2")
    with pytest.raises(Died, match="SIGKILL"):
        await it.ask("a b c")
    assert isinstance(await it.runtime.failed(), Died)
    with pytest.raises(Died):
        await it.ask("a")


async def test_an_idle_death_is_reported_by_failed(started: Callable[..., Any]) -> None:
    it = await started()
    os.kill(int(it.pid_file.read_text()), signal.SIGKILL)
    assert isinstance(await asyncio.wait_for(it.runtime.failed(), DEADLINE), Died)


async def test_a_failed_load_says_why(rig: OpenRig) -> None:
    async with rig(SIM_FAIL="load") as it:
        with pytest.raises(StartFailed, match="driver is not loaded") as failed:
            await it.start()
    assert failed.value.permanent


async def test_a_taken_port_is_refused(rig: OpenRig) -> None:
    async with rig() as it:
        listener = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", it.program.port)
        async with listener:
            with pytest.raises(StartFailed, match="is taken"):
                await it.start()


async def test_a_running_server_is_joined_and_left_running(started: Callable[..., Any]) -> None:
    it = await started()
    guest = AxLlm(it.program, join=True)
    await guest.start(lambda _: None)
    pieces = [item async for item in guest.generate(say("x y"), Sampling()) if isinstance(item, Piece)]
    await guest.stop()
    assert joined(pieces) == "x y "
    assert joined(await it.ask("still here")) == "still here "


async def test_joining_nobody_fails(rig: OpenRig) -> None:
    async with rig() as it:
        guest = AxLlm(it.program, join=True)
        with pytest.raises(StartFailed, match="No axllm"):
            await guest.start(lambda _: None)


async def read_to_its_end(pieces: AsyncGenerator[Prefill | Piece, None]) -> None:
    async for _ in pieces:
        pass


async def test_stop_in_the_middle_of_a_reply_ends_both(started: Callable[..., Any]) -> None:
    it = await started(SIM_TOKEN="0.05")
    async with aclosing(it.runtime.generate(say("a b c d e f g h"), Sampling())) as pieces:
        await anext(pieces)
        await it.runtime.stop()
        with pytest.raises(Died):
            await read_to_its_end(pieces)
