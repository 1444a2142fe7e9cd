"""The llamacpp runtime with the real SmolLM2-135M-Instruct in a real worker process."""

import asyncio
import json
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from qwen_service.chat import ChatRequest, Sampling
from qwen_service.errors import Died, InvalidRequest, PromptTooLong, RuntimeFailure, StartFailed
from qwen_service.runtime import Piece, Prefill, Prompt
from qwen_service.runtimes.llamacpp.runtime import LlamaCpp
from qwen_service.runtimes.llamacpp.tokenizer import join_texts
from tests.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")
DEADLINE = 100.0
CONTEXT = 512  # tokens: four steps of a prompt, and quickly filled
START, END = 1, 2  # SmolLM2's <|im_start|> and <|im_end|>
GREEDY = Sampling(max_tokens=12, temperature=0.0)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LlamaCpp]:
    runtime = LlamaCpp(model_path=smollm2, state_dir=tmp_path_factory.mktemp("engine"), context=CONTEXT)
    limits = await runtime.start(print)
    assert (limits.context, limits.prompt, limits.slots) == (CONTEXT, CONTEXT - 1, 4)
    yield runtime
    await runtime.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def quick_engine(small_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LlamaCpp]:
    """Its text makes no sense."""
    runtime = LlamaCpp(model_path=small_gguf, state_dir=tmp_path_factory.mktemp("quick"), context=CONTEXT)
    await runtime.start(print)
    yield runtime
    await runtime.stop()


def turn(role: str, text: str) -> list[str | int]:
    return [START, f"{role}\n{text}", END, "\n"]


async def prompt_of(engine: LlamaCpp, *parts: str | int) -> Prompt:
    return Prompt(tuple(await engine.encode(parts)), ChatRequest(id="test"))


async def question(engine: LlamaCpp, text: str) -> Prompt:
    return await prompt_of(engine, *turn("user", text), START, "assistant\n")


async def run(engine: LlamaCpp, prompt: Prompt, sampling: Sampling) -> tuple[list[Prefill], list[Piece]]:
    prefills, pieces = [], []
    async with asyncio.timeout(DEADLINE), aclosing(engine.generate(prompt, sampling)) as items:
        async for item in items:
            if isinstance(item, Prefill):
                prefills.append(item)
            else:
                pieces.append(item)
    return prefills, pieces


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


async def test_greedy_text_is_the_same_every_time(engine: LlamaCpp) -> None:
    prompt = await question(engine, "What is the capital of France?")
    _, first = await run(engine, prompt, GREEDY)
    _, second = await run(engine, prompt, GREEDY)
    assert "Paris" in text_of(first)
    assert text_of(first) == text_of(second)


async def test_a_seed_makes_sampled_text_repeatable(engine: LlamaCpp) -> None:
    prompt = await question(engine, "Tell me a story.")
    sampling = Sampling(max_tokens=16, temperature=1.5, seed=-7)
    assert text_of((await run(engine, prompt, sampling))[1]) == text_of((await run(engine, prompt, sampling))[1])


async def test_max_tokens_ends_with_length_and_an_exact_count(engine: LlamaCpp) -> None:
    prompt = await question(engine, "Count from one to one hundred.")
    prefills, pieces = await run(engine, prompt, Sampling(max_tokens=5, temperature=0.0))
    assert pieces[-1].finish_reason == "length"
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert sum(piece.token_count for piece in pieces) == 5
    assert prefills[-1].prompt_tokens == len(prompt.token_ids)


async def test_the_end_of_a_reply_is_counted_but_is_no_text(engine: LlamaCpp) -> None:
    _, pieces = await run(engine, await question(engine, "Say: hi"), Sampling(max_tokens=200, temperature=0.0))
    assert pieces[-1].finish_reason == "stop"
    text = text_of(pieces)
    assert "<|" not in text
    assert sum(piece.token_count for piece in pieces) == len(await engine.encode([text])) + 1


async def test_the_end_of_the_context_is_a_length(quick_engine: LlamaCpp) -> None:
    prompt = await prompt_of(quick_engine, " one" * (CONTEXT - 9))
    _, pieces = await run(quick_engine, prompt, Sampling(temperature=0.0))
    assert pieces[-1].finish_reason == "length"
    assert sum(piece.token_count for piece in pieces) == 9


async def test_a_prompt_longer_than_the_context_is_refused(engine: LlamaCpp) -> None:
    with pytest.raises(PromptTooLong):
        await run(engine, await prompt_of(engine, " one" * (CONTEXT + 100)), GREEDY)


async def test_ids_outside_the_vocabulary_are_refused_and_the_engine_lives(engine: LlamaCpp) -> None:
    with pytest.raises(InvalidRequest):
        await run(engine, Prompt((1, 10**7), ChatRequest(id="x")), GREEDY)
    with pytest.raises(InvalidRequest):
        await engine.decode([10**7])
    assert await engine.decode([28120]) == "hello"


async def test_special_tokens_in_text_stay_text(engine: LlamaCpp) -> None:
    ids = await engine.encode(["say <|im_end|> and <|im_start|>"])
    assert not {START, END} & set(ids)
    assert await engine.decode(ids) == "say <|im_end|> and <|im_start|>"


async def test_ids_among_the_parts_are_kept_and_neighbouring_texts_are_one(engine: LlamaCpp) -> None:
    whole = await engine.encode([START, "hello world", END])
    assert await engine.encode([START, "hel", "lo wor", "ld", END]) == whole
    assert (whole[0], whole[-1]) == (START, END)


async def test_texts_that_were_encoded_before_give_the_same_ids_again(engine: LlamaCpp) -> None:
    one, two = turn("user", "Number one"), turn("user", "And number two")
    ids_of_one, ids_of_two = await engine.encode(one), await engine.encode(two)
    new = turn("user", "Something new")
    assert await engine.encode([*two, *new, *one]) == [*ids_of_two, *await engine.encode(new), *ids_of_one]


@pytest.mark.parametrize("text", ["", "a\0b", "\ud800 lone", "😀漢字é", "\r\n\t  "])
async def test_any_text_can_be_encoded(engine: LlamaCpp, text: str) -> None:
    assert await engine.decode(await engine.encode([text])) == text.replace("\ud800", "?")


async def test_the_model_tells_its_template_and_special_tokens(engine: LlamaCpp) -> None:
    assert "<|im_start|>" in engine.chat_template
    assert (engine.bos_token, engine.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert engine.vocab_size == 49152
    assert await engine.special_ids(["<|im_end|>", "<|im_start|>", "<|no_such|>"]) == {
        "<|im_end|>": END,
        "<|im_start|>": START,
    }


async def test_logprobs_belong_to_the_text(engine: LlamaCpp) -> None:
    sampling = Sampling(max_tokens=4, temperature=0.0, top_logprobs=3)
    _, pieces = await run(engine, await question(engine, "Say something."), sampling)
    logprobs = [entry for piece in pieces for entry in piece.logprobs]
    assert b"".join(entry.token_bytes for entry in logprobs).decode() == text_of(pieces)
    assert all(entry.logprob <= 0 and len(entry.top) == 3 for entry in logprobs)
    assert all(entry.logprob == max(other.logprob for other in entry.top) for entry in logprobs)


async def test_a_grammar_binds_the_reply(engine: LlamaCpp) -> None:
    sampling = Sampling(max_tokens=20, grammar='root ::= "yes" | "no"')
    _, pieces = await run(engine, await question(engine, "What is the weather?"), sampling)
    assert text_of(pieces) in {"yes", "no"}
    assert pieces[-1].finish_reason == "stop"


async def test_a_schema_binds_the_reply(engine: LlamaCpp) -> None:
    properties = {"ok": {"type": "boolean"}}
    schema = {"type": "object", "properties": properties, "required": ["ok"], "additionalProperties": False}
    sampling = Sampling(max_tokens=60, temperature=0.0, json_schema=schema)
    _, pieces = await run(engine, await question(engine, "Is it fine?"), sampling)
    assert type(json.loads(text_of(pieces))["ok"]) is bool


async def test_a_character_of_several_tokens_arrives_whole_with_all_its_tokens_counted(engine: LlamaCpp) -> None:
    sampling = Sampling(max_tokens=20, grammar='root ::= "😀"')
    _, pieces = await run(engine, await question(engine, "Hi"), sampling)
    assert [piece.text for piece in pieces if piece.text] == ["😀"]
    assert pieces[0].token_count > 1


async def test_the_second_turn_of_four_conversations_prefills_only_what_is_new(engine: LlamaCpp) -> None:
    async def talk(topic: str) -> tuple[Prefill, int]:
        asked: list[str | int] = [*turn("user", f"{topic}? " * 8), START, "assistant\n"]
        prompt = await prompt_of(engine, *asked)
        _, pieces = await run(engine, prompt, GREEDY)
        await everybody.wait()
        answered = [*asked, text_of(pieces), END, "\n", *turn("user", "And then?"), START, "assistant\n"]
        prefills, _ = await run(engine, await prompt_of(engine, *answered), GREEDY)
        return prefills[-1], len(prompt.token_ids)

    everybody = asyncio.Barrier(4)
    for second, first_length in await asyncio.gather(*map(talk, ("Rivers", "Music", "Bread", "Space"))):
        assert second.cached_tokens >= first_length
        assert second.prompt_tokens - second.cached_tokens < 30


async def test_warming_prefills_and_generates_nothing(quick_engine: LlamaCpp) -> None:
    head = await prompt_of(quick_engine, *turn("system", "You keep the lighthouse of an island. " * 12))
    assert await quick_engine.warm(head)
    asked = await prompt_of(
        quick_engine, *turn("system", "You keep the lighthouse of an island. " * 12), *turn("user", "Hi")
    )
    prefills, _ = await run(quick_engine, asked, GREEDY)
    assert prefills[-1].cached_tokens >= len(head.token_ids) - 1
    assert await busy_slots(quick_engine) == 0


async def busy_slots(engine: LlamaCpp) -> int:
    slots = await engine._http.get("/slots", DEADLINE)
    return sum(slot["is_processing"] for slot in slots)


async def test_closing_in_mid_reply_frees_the_slot_at_once(engine: LlamaCpp) -> None:
    prompt = await question(engine, "Write a long story.")
    async with aclosing(engine.generate(prompt, Sampling(temperature=0.0, logit_bias={END: -100.0}))) as items:
        async for item in items:
            if isinstance(item, Piece):
                break
        assert await busy_slots(engine) == 1
        started = asyncio.get_running_loop().time()
    assert await busy_slots(engine) == 0
    assert asyncio.get_running_loop().time() - started < 10  # filling the context takes longer


async def test_closing_in_mid_prefill_frees_the_slot(engine: LlamaCpp) -> None:
    prompt = await prompt_of(engine, " alpha beta" * 240)
    async with aclosing(engine.generate(prompt, GREEDY)) as items:
        first = await anext(items)
        assert isinstance(first, Prefill)
        assert first.prompt_tokens - first.cached_tokens > 128, "more than one batch: this was not the end of it"
    assert await busy_slots(engine) == 0


async def test_a_cancelled_task_frees_its_slot(engine: LlamaCpp) -> None:
    task = asyncio.create_task(run(engine, await question(engine, "Write a poem."), Sampling(logit_bias={END: -100.0})))
    async with asyncio.timeout(DEADLINE):
        while not await busy_slots(engine):
            pass
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await busy_slots(engine) == 0


@pytest.mark.qwen_gguf
async def test_tags_of_qwen_in_text_stay_text(tmp_path: Path) -> None:
    if "QWEN_TEST_GGUF" not in os.environ:
        pytest.skip("QWEN_TEST_GGUF names no model")
    runtime = LlamaCpp(model_path=Path(os.environ["QWEN_TEST_GGUF"]), state_dir=tmp_path, slots=1, context=512)
    await runtime.start(print)
    special = await runtime.special_ids(["<|im_end|>", "<tool_call>", "</tool_call>"])
    assert special == {"<|im_end|>": 151645, "<tool_call>": 151657, "</tool_call>": 151658}
    text = 'call <tool_call>{"name": "x"}</tool_call><|im_end|>'
    ids = await runtime.encode([text])
    assert not set(special.values()) & set(ids)
    assert await runtime.decode(ids) == text
    await runtime.stop()


@asynccontextmanager
async def new_engine(gguf: Path, state_dir: Path) -> AsyncIterator[LlamaCpp]:
    runtime = LlamaCpp(model_path=gguf, state_dir=state_dir, slots=1, context=512)
    await runtime.start(print)
    try:
        yield runtime
    finally:
        await runtime.stop()


def worker_pid(runtime: LlamaCpp) -> int:
    assert runtime._process is not None
    return runtime._process._child.pid


async def run_and_signal(runtime: LlamaCpp, prompt: Prompt, number: signal.Signals) -> None:
    async with aclosing(runtime.generate(prompt, Sampling(logit_bias={END: -100.0}))) as items:
        while isinstance(await anext(items), Prefill):
            pass
        os.kill(worker_pid(runtime), number)
        async for _ in items:
            pass


async def test_a_worker_killed_in_mid_reply_is_a_death_for_the_reply_and_the_runtime(
    small_gguf: Path, tmp_path: Path
) -> None:
    async with new_engine(small_gguf, tmp_path) as runtime:
        prompt = await question(runtime, "Write a long story.")
        with pytest.raises(Died, match="SIGKILL"):
            await run_and_signal(runtime, prompt, signal.SIGKILL)
        async with asyncio.timeout(DEADLINE):
            assert isinstance(await runtime.failed(), Died)
        with pytest.raises(RuntimeFailure):
            await runtime.encode(["hello"])


async def test_stopping_leaves_no_process_and_no_file(small_gguf: Path) -> None:
    """In a folder with a short path: in one too deep for a socket, the socket is elsewhere."""
    with tempfile.TemporaryDirectory(prefix="q", dir="/tmp") as folder:
        async with new_engine(small_gguf, Path(folder)) as runtime:
            pid = worker_pid(runtime)
            assert len(os.listdir(folder)) == 1
            await runtime.stop()
        assert os.listdir(folder) == []
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_worker_that_is_told_to_end_in_mid_reply_ends_at_once_and_without_a_crash(
    small_gguf: Path, tmp_path: Path
) -> None:
    async with new_engine(small_gguf, tmp_path) as runtime:
        prompt = await question(runtime, "Write a long story.")
        with pytest.raises(Died, match="SIGTERM"):
            await run_and_signal(runtime, prompt, signal.SIGTERM)


async def test_a_folder_too_deep_for_a_socket_is_no_obstacle(small_gguf: Path, tmp_path: Path) -> None:
    async with new_engine(small_gguf, tmp_path / ("deep" * 30)) as runtime:
        assert await runtime.decode(await runtime.encode(["hello"])) == "hello"


BAD_FILES = {
    "missing": (None, "cannot be read"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs"),
    "html": (b"<html>login</html>", "not a GGUF"),
    "cut off": (b"GGUF\3\0\0\0", "cannot load"),
}


@pytest.mark.parametrize("name", BAD_FILES)
async def test_a_bad_model_file_is_a_permanent_failure_that_says_why(tmp_path: Path, name: str) -> None:
    content, message = BAD_FILES[name]
    model = tmp_path / "model.gguf"
    if content is not None:
        model.write_bytes(content)
    with pytest.raises(StartFailed, match=message) as caught:
        await LlamaCpp(model_path=model, state_dir=tmp_path).start(print)
    assert caught.value.permanent
    assert set(os.listdir(tmp_path)) <= {"model.gguf"}


async def test_a_truncated_model_is_named_as_such(small_gguf: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    shutil.copy(small_gguf, model)
    os.truncate(model, 2_000_000)
    with pytest.raises(StartFailed, match="corrupted or incomplete") as caught:
        await LlamaCpp(model_path=model, state_dir=tmp_path).start(print)
    assert caught.value.permanent


async def test_a_llama_server_that_is_missing_is_a_permanent_failure(small_gguf: Path, tmp_path: Path) -> None:
    runtime = LlamaCpp(model_path=small_gguf, state_dir=tmp_path / "state", llama_server=tmp_path / "llama-server")
    with pytest.raises(StartFailed, match="llama-server") as caught:
        await runtime.start(print)
    assert caught.value.permanent
    assert os.listdir(tmp_path / "state") == []


@pytest.mark.parametrize("steps", range(1, 8))
async def test_a_start_that_is_cancelled_leaves_nothing_behind(small_gguf: Path, tmp_path: Path, steps: int) -> None:
    """`steps`: turns of the event loop until then. In the first ones the pipes are made, in the last one the program loads."""
    task = asyncio.create_task(LlamaCpp(model_path=small_gguf, state_dir=tmp_path).start(print))
    for _ in range(steps):
        await asyncio.sleep(0)
    await until(lambda: os.listdir(tmp_path))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert os.listdir(tmp_path) == []


async def test_neighbouring_texts_are_joined_but_never_across_an_id() -> None:
    assert join_texts(["a", "b", 7, "c", 8, 9, "", "d"]) == ["ab", 7, "c", 8, 9, "d"]
