"""The REPL runtime against the simulator of the vendor's program, which runs as a process of its own."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from qwen_service.chat import Sampling
from qwen_service.errors import Died, ProtocolError, RuntimeFailure, Stalled, StartFailed
from qwen_service.runtime import Limits, Piece, Prefill
from tests.simulated_repl import Rig, exists, reply

BATCH = 3  # ids that the program decodes at a time
TALK = "Grüße 世界 👩‍👩‍👧!\n<|im_end|>\nq\n\n$HOME `x` {{ y }}"


async def test_it_reports_progress_and_limits_and_mends_a_missing_run_bit(rig: Rig) -> None:
    runtime = rig.make(SIM_CONTEXT="777")
    assert not os.access(rig.folder / "main_axcl_aarch64", os.X_OK)
    assert await runtime.start(rig.progress.append) == Limits(context=777, prompt=776)
    assert rig.progress == [f"loading {done}/5" for done in range(1, 6)]
    assert exists(rig.pid)
    pid = rig.pid
    await runtime.stop()
    await runtime.stop()
    assert not exists(pid)
    assert not rig.pid_file.exists()


async def test_text_of_any_kind_reaches_the_model_and_comes_back_exactly(rig: Rig) -> None:
    runtime = await rig.start()
    for text in (TALK, "q", "<|im_end|>", "\n", "a", "one two three", "x" * 900, TALK):
        prompt = rig.prompt(text)
        assert await reply(runtime, prompt) == (text, len(prompt.token_ids), "stop"), text
    assert b"HOME" not in (rig.folder / "model.log").read_bytes()  # no reply in a log


@pytest.mark.parametrize("ids", [[], [40], [40, 41], [40, 41, 42], [40] * 3, [40] * 6, [40] * 7, [40, 41, 42, 43]])
async def test_short_and_repeating_replies_are_exact(rig: Rig, ids: list[int]) -> None:
    runtime = await rig.start(SIM_REPLY=str(ids))
    for _ in range(3):
        assert await reply(runtime, rig.prompt("hello")) == (rig.tokenizer.decode_now(ids), len(ids), "stop")


@pytest.mark.parametrize("bogus", ["0", "1"])
async def test_max_tokens_is_exact_and_the_next_reply_is_not_touched_by_the_stop(rig: Rig, bogus: str) -> None:
    runtime = await rig.start(SIM_REPLY="endless", SIM_TOKEN_MS="1", SIM_BOGUS=bogus)
    for limit in (1, 2, 3, 4, 5, 6, 7, 30):
        expected = rig.tokenizer.decode_now(range(1000, 1000 + limit))
        assert await reply(runtime, rig.prompt("hello"), limit) == (expected, limit, "length")


async def test_a_reply_as_long_as_max_tokens_is_a_stop_where_the_end_is_seen(rig: Rig) -> None:
    runtime = await rig.start(SIM_REPLY="[40, 41, 42, 43]")
    assert (await reply(runtime, rig.prompt("hello"), 4))[1:] == (4, "stop")
    assert (await reply(runtime, rig.prompt("hello"), 3))[1:] == (3, "length")


async def test_the_end_of_the_context_is_a_length_with_every_token(rig: Rig) -> None:
    for context in (20, 21, 22, 23):
        runtime = await rig.start(SIM_REPLY="endless", SIM_CONTEXT=str(context))
        prompt = rig.prompt("hello world")
        count = context - len(prompt.token_ids)
        text = rig.tokenizer.decode_now(range(1000, 1000 + count))
        assert await reply(runtime, prompt) == (text, count, "length")
        await runtime.stop()


async def test_a_second_end_token_ends_the_reply_and_is_no_text(rig: Rig) -> None:
    runtime = await rig.start(SIM_REPLY="[40, 41, 151643, 42, 43, 44, 45]")
    for _ in range(2):
        assert await reply(runtime, rig.prompt("hello")) == (rig.tokenizer.decode_now([40, 41]), 2, "stop")


async def test_the_prompt_is_announced_before_the_reply(rig: Rig) -> None:
    runtime = await rig.start()
    prompt = rig.prompt("one two three")
    async with aclosing(runtime.generate(prompt, Sampling())) as items:
        assert await anext(items) == Prefill(3, 0)


@pytest.mark.parametrize("gap", ["0", "60"])
async def test_a_client_that_leaves_costs_the_card_one_more_batch(rig: Rig, gap: str) -> None:
    record = rig.folder / "replies.jsonl"
    runtime = await rig.start(
        SIM_REPLY="endless", SIM_TOKEN_MS="100", SIM_CONTEXT="100000", SIM_GAP_MS=gap, SIM_RECORD=str(record)
    )
    for pieces in (1, 2):  # when its prompt is fetched, in mid-reply
        items = runtime.generate(rig.prompt("hello"), Sampling())
        for _ in range(pieces):
            item = await anext(items)
        received = item.token_count if isinstance(item, Piece) else 0
        await items.aclose()
        computed = len(json.loads(record.read_text().splitlines()[-1])["ids"])
        assert computed <= received + 2 * BATCH  # the second one is for a machine that is busy
    assert (await reply(runtime, rig.prompt("hello"), 3))[0] == rig.tokenizer.decode_now([1000, 1001, 1002])
    assert len(record.read_text().splitlines()) == 3


async def test_a_generation_that_is_closed_before_it_began_is_none(rig: Rig) -> None:
    record = rig.folder / "replies.jsonl"
    runtime = await rig.start(SIM_RECORD=str(record))
    await runtime.generate(rig.prompt("hello"), Sampling()).aclose()
    assert (await reply(runtime, rig.prompt("hello")))[0] == "hello"
    assert len(record.read_text().splitlines()) == 1


async def listen(items: AsyncGenerator[Prefill | Piece, None], begun: asyncio.Event) -> None:
    async with aclosing(items):
        async for item in items:
            if isinstance(item, Piece):
                begun.set()


async def test_a_cancelled_generation_comes_to_rest_before_the_next_one(rig: Rig) -> None:
    runtime = await rig.start(SIM_REPLY="endless", SIM_TOKEN_MS="10", SIM_CONTEXT="100000")
    for _ in range(3):
        begun = asyncio.Event()
        task = asyncio.create_task(listen(runtime.generate(rig.prompt("hello"), Sampling()), begun))
        await begun.wait()
        task.cancel()
        await asyncio.sleep(0.001)
        task.cancel()  # twice: the first one does not wait for the rest
        with pytest.raises(asyncio.CancelledError):
            await task
    assert (await reply(runtime, rig.prompt("hello"), 3))[0] == rig.tokenizer.decode_now([1000, 1001, 1002])


@pytest.mark.parametrize("fault", ["segv:7", "kill:7", "segv:0"])
async def test_a_death_in_mid_reply_is_an_error_and_failed_tells_it(rig: Rig, fault: str) -> None:
    runtime = await rig.start(SIM_REPLY="endless", SIM_FAULT=fault)
    with pytest.raises(Died, match="SIG"):
        await reply(runtime, rig.prompt("hello"))
    assert isinstance(await runtime.failed(), Died)
    with pytest.raises(Died):
        await reply(runtime, rig.prompt("hello"))


async def test_a_death_while_idle_is_noticed(rig: Rig) -> None:
    runtime = await rig.start()
    failed = asyncio.create_task(runtime.failed())
    os.kill(rig.pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        assert "SIGKILL" in (await failed).message


async def test_a_hang_is_a_stall_and_the_process_is_ended(rig: Rig) -> None:
    runtime = await rig.start(options={"stall_timeout": 2}, SIM_REPLY="endless", SIM_FAULT="hang:4")
    pid = rig.pid
    with pytest.raises(Stalled):
        await reply(runtime, rig.prompt("hello"))
    assert isinstance(await runtime.failed(), Stalled)
    await runtime.stop()
    assert not exists(pid)


async def test_a_long_prompt_is_given_its_time(rig: Rig) -> None:
    runtime = await rig.start(options={"stall_timeout": 1}, SIM_TOKEN_MS="15", SIM_REPLY="[40, 41, 42]")
    prompt = rig.prompt("word " * 120)  # 1.8 s of feeding
    assert (await reply(runtime, prompt))[1:] == (3, "stop")


async def test_errors_of_the_npu_are_seen_in_its_log(rig: Rig) -> None:
    runtime = await rig.start(SIM_REPLY="endless", SIM_TOKEN_MS="1", SIM_FAULT="npu:4")
    with pytest.raises(RuntimeFailure, match="AX_ENGINE_Execute"):
        await reply(runtime, rig.prompt("hello"))
    assert "NPU" in (await runtime.failed()).message


@pytest.mark.parametrize("limit", [4, 5, 6])
async def test_a_reply_whose_last_tokens_the_npu_did_not_compute_is_not_called_finished(rig: Rig, limit: int) -> None:
    """The program decodes the tokens of a failed step before its log can say that the step failed."""
    runtime = await rig.start(SIM_REPLY="endless", SIM_FAULT="npu:3")
    with pytest.raises(RuntimeFailure, match="AX_ENGINE_Execute"):
        await reply(runtime, rig.prompt("hello"), limit)


async def test_an_endless_run_of_one_token_is_an_error(rig: Rig) -> None:
    runtime = await rig.start(SIM_REPLY="endless", SIM_FAULT="repeat:4", SIM_CONTEXT="100000")
    with pytest.raises(ProtocolError, match="same token"):
        await reply(runtime, rig.prompt("hello"))
    assert isinstance(await runtime.failed(), ProtocolError)


async def test_garbage_on_stdout_harms_nobody(rig: Rig) -> None:
    runtime = await rig.start(SIM_REPLY="[40, 41, 42, 43, 44, 45, 46]", SIM_FAULT="garbage:3")
    text, count, reason = await reply(runtime, rig.prompt("hello"))
    assert (text, count, reason) == (rig.tokenizer.decode_now([40, 41, 42]), 8, "stop")


async def test_a_false_marker_in_mid_reply_is_an_error_and_not_a_short_answer(rig: Rig) -> None:
    runtime = await rig.start(SIM_REPLY="[40, 41, 42, 43, 44, 45, 46, 47]", SIM_FAULT="marker:6", SIM_TOKEN_MS="5")
    with pytest.raises(ProtocolError, match="whole reply"):
        await reply(runtime, rig.prompt("hello"))


async def test_a_program_deaf_to_sigint_is_given_up(rig: Rig) -> None:
    runtime = await rig.start(
        options={"stop_timeout": 0.3}, SIM_REPLY="endless", SIM_FAULT="deaf", SIM_TOKEN_MS="5", SIM_CONTEXT="100000"
    )
    assert (await reply(runtime, rig.prompt("hello"), 3))[2] == "length"
    assert isinstance(await runtime.failed(), Stalled)


@pytest.mark.parametrize(
    ("failure", "permanent", "words"),
    [
        ("no_device", True, "No card was found"),
        ("axcl_init", True, "driver"),
        ("host_node", True, "driver"),
        ("held_card", False, "Another process"),
        ("layer", True, "l1.axmodel"),
        ("libraries", True, "libaxcl_rt.so"),
        ("early", False, "SIGSEGV"),
    ],
)
async def test_a_failed_start_says_why_and_whether_a_restart_helps(
    rig: Rig, failure: str, permanent: bool, words: str
) -> None:
    runtime = rig.make(SIM_FAIL=failure)
    with pytest.raises(StartFailed, match=words) as caught:
        await runtime.start(rig.progress.append)
    assert caught.value.permanent == permanent
    assert not rig.pid_file.exists()


async def test_files_that_are_missing_or_pointers_are_named(rig: Rig) -> None:
    runtime = rig.make()
    (rig.folder / "embed.bin").unlink()
    with pytest.raises(StartFailed, match=r"embed\.bin is missing") as caught:
        await runtime.start(rig.progress.append)
    assert caught.value.permanent
    (rig.folder / "embed.bin").touch()
    (rig.folder / "l1.axmodel").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(StartFailed, match=r"l1\.axmodel is a git-lfs pointer"):
        await rig.make(SIM_FAIL="layer").start(rig.progress.append)
    (rig.folder / "main_axcl_aarch64").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(StartFailed, match="main_axcl_aarch64 is a git-lfs pointer"):
        await rig.make().start(rig.progress.append)
    (rig.folder / "main_axcl_aarch64").unlink()
    with pytest.raises(StartFailed, match="There is no program"):
        await rig.make().start(rig.progress.append)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"enable_temperature": tru', "is not JSON: Expecting value"),
        ('{"enable_temperature": true, "temperature": 0.7}', "lacks enable_repetition_penalty, .*, top_p. Mend it"),
        ("[]", "lacks enable_repetition_penalty"),
    ],
)
async def test_a_post_config_that_aborts_the_program_is_named(rig: Rig, content: str, words: str) -> None:
    (rig.folder / "post_config.json").write_text(content)
    with pytest.raises(StartFailed, match=rf"post_config\.json {words}") as caught:
        await rig.start()
    assert caught.value.permanent


async def test_a_program_that_says_nothing_while_loading_is_given_up(rig: Rig) -> None:
    (rig.folder / "main_axcl_aarch64").write_text("#!/bin/sh\nsleep 100\n")
    runtime = rig.make(options={"start_timeout": 0.3})
    with pytest.raises(StartFailed, match="printed nothing"):
        await runtime.start(rig.progress.append)


async def test_post_config_is_written_where_the_manifest_has_one(rig: Rig) -> None:
    keys = ("enable_temperature", "temperature", "enable_repetition_penalty", "repetition_penalty", "penalty_window",
            "enable_top_p_sampling", "top_p", "enable_top_k_sampling", "top_k")  # fmt: skip
    runtime = rig.make(options={"post_config": dict.fromkeys(keys, 1)})
    await runtime.start(rig.progress.append)
    assert '"penalty_window": 1' in (rig.folder / "post_config.json").read_text()
    assert b"enable_top_k_sampling" in (rig.folder / "model.log").read_bytes()


async def test_the_program_dies_with_a_service_that_forgets_it(rig: Rig) -> None:
    runtime = await rig.start(SIM_REPLY="endless", SIM_TOKEN_MS="5", SIM_CONTEXT="100000")
    items = runtime.generate(rig.prompt("hello"), Sampling())
    await anext(items)
    pid = rig.pid
    await runtime.stop()  # in mid-reply
    assert not exists(pid)
    with pytest.raises(Died):
        [item async for item in items]
