import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path

import pytest

from qwen_service.chat import (
    ChatRequest,
    Event,
    Finished,
    Message,
    ReasoningDelta,
    Sampling,
    Started,
    TextDelta,
    Tool,
    ToolCall,
    Usage,
)
from qwen_service.errors import Died, PromptTooLong, UnknownModel, Unsupported
from qwen_service.runtime import Capabilities, Limits, Piece, Prefill, Prompt
from tests.fakes import Script, ScriptedRuntime
from tests.serving import Pipeline, loads, model_text, pipeline, says_hi, settings_with_models

HELLO = Message("user", "Hello")
END = 2


def writes(*pieces: str, reason: str = "stop", cached: int = 0) -> Script:
    """One token for each piece, then the end of the turn."""

    async def script(prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Prefill | Piece, None]:
        yield Prefill(len(prompt.token_ids), cached)
        for number, text in enumerate(pieces):
            yield Piece(text, 1, (1000 + number,))
        yield Piece("", 0, (), finish_reason=reason)  # type: ignore[arg-type] # a literal, passed on

    return script


async def answer(made: Pipeline, **fields: object) -> list[Event]:
    request = ChatRequest("r", **{"messages": (HELLO,), **fields})  # type: ignore[arg-type] # fields of any kind
    async with aclosing(made.chat.stream(request)) as events:
        return [event async for event in events]


async def ask(
    folder: Path, script: Script, *, runtime: ScriptedRuntime | None = None, manifest: str = "", **fields: object
) -> list[Event]:
    settings = settings_with_models(folder, "m", manifest=manifest)
    async with pipeline(settings, loads(lambda: runtime or ScriptedRuntime(script))) as made:
        return await answer(made, **fields)


def text_of(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def finished(events: Sequence[Event]) -> Finished:
    last = events[-1]
    assert isinstance(last, Finished)
    return last


async def test_a_reply_starts_streams_and_finishes_with_exact_counts(tmp_path: Path) -> None:
    events = await ask(tmp_path, writes("Hel", "lo", cached=3))
    assert events[0] == Started("m", served_by="llamacpp", prompt_tokens=24)
    assert events[1:3] == [TextDelta("Hel"), TextDelta("lo")]
    assert finished(events).reason == "stop"
    assert finished(events).usage == Usage(prompt_tokens=24, completion_tokens=2, cached_tokens=3)
    assert finished(events).token_ids[-2:] == (1000, 1001)


async def test_the_end_of_the_room_is_told_as_length(tmp_path: Path) -> None:
    assert finished(await ask(tmp_path, writes("Hel", reason="length"))).reason == "length"


async def test_the_engine_is_given_what_the_context_has_room_for(tmp_path: Path) -> None:
    seen: list[Sampling] = []

    async def script(prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Prefill | Piece, None]:
        seen.append(sampling)
        yield Piece("x", 1, (1,), finish_reason="stop")

    await ask(tmp_path, script, sampling=Sampling(max_tokens=100_000))
    assert seen[0].max_tokens == 256 - 24


async def test_a_stop_string_ends_the_reply_and_the_work(tmp_path: Path) -> None:
    closed: list[str] = []

    async def endless(prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Prefill | Piece, None]:
        try:
            for text in ("One. ", "ST", "OP", "never seen"):
                yield Piece(text, 1, (1,))
            raise AssertionError("went on after the stop string")
        finally:
            closed.append("closed")

    events = await ask(tmp_path, endless, stop=("STOP",))
    assert text_of(events) == "One. "
    assert closed == ["closed"]
    assert (finished(events).reason, finished(events).usage.completion_tokens) == ("stop", 3)


async def test_a_call_is_the_finish_reason(tmp_path: Path) -> None:
    call = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
    events = await ask(tmp_path, writes(call), tools=(Tool("f"),))
    (called,) = [event for event in events if isinstance(event, ToolCall)]
    assert (called.name, called.arguments) == ("f", '{"a": 1}')
    assert finished(events).reason == "tool_calls"


async def test_thoughts_are_told_apart_and_counted(tmp_path: Path) -> None:
    events = await ask(tmp_path, writes("<think>", "hm", "</think>", "Yes"))
    assert "".join(event.text for event in events if isinstance(event, ReasoningDelta)) == "hm"
    assert text_of(events) == "Yes"
    assert finished(events).usage.reasoning_tokens == 3


async def test_a_raw_prompt_is_answered_with_raw_text(tmp_path: Path) -> None:
    events = await ask(tmp_path, writes("<think>", "hm"), messages=(), prompt="Once")
    assert text_of(events) == "<think>hm"


async def test_what_the_engine_cannot_honour_is_named(tmp_path: Path) -> None:
    asked = Sampling(temperature=0.5, top_p=0.9, seed=1, presence_penalty=0.0, logit_bias={5: 1.0})
    events = await ask(tmp_path, says_hi, sampling=asked)
    assert events[0] == Started(
        "m", ignored_parameters=("top_p", "presence_penalty", "logit_bias"), served_by="llamacpp", prompt_tokens=24
    )


async def test_the_models_own_defaults_fill_what_is_not_asked_for_and_are_not_reported(tmp_path: Path) -> None:
    seen: list[Sampling] = []

    async def script(prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Prefill | Piece, None]:
        seen.append(sampling)
        yield Piece("x", 1, (1,), finish_reason="stop")

    manifest = "sampling: {temperature: 0.7, top_k: 20}\n"
    events = await ask(tmp_path, script, manifest=manifest, sampling=Sampling(temperature=0.0))
    assert (seen[0].temperature, seen[0].top_k) == (0.0, 20)
    assert events[0] == Started("m", served_by="llamacpp", prompt_tokens=24)


async def test_dropped_messages_are_counted_in_the_first_event(tmp_path: Path) -> None:
    talk = [Message(role, "x" * 50) for role in ("user", "assistant") * 5]
    events = await ask(tmp_path, says_hi, messages=(*talk, HELLO))
    assert isinstance(events[0], Started)
    assert events[0].trimmed_messages > 0


async def test_tools_are_refused_where_the_template_has_no_place_for_them(tmp_path: Path) -> None:
    text = model_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    async with pipeline(settings_with_models(tmp_path, "m"), loads(lambda: ScriptedRuntime(says_hi), text)) as made:
        with pytest.raises(Unsupported) as caught:
            await answer(made, tools=(Tool("f"),))
    assert caught.value.param == "tools"


async def test_logprobs_are_refused_where_the_engine_reports_none(tmp_path: Path) -> None:
    with pytest.raises(Unsupported) as caught:
        await ask(tmp_path, says_hi, sampling=Sampling(top_logprobs=0))
    assert caught.value.param == "logprobs"


async def test_what_cannot_fit_does_not_wait_for_a_turn(tmp_path: Path) -> None:
    runtime = ScriptedRuntime(says_hi)
    with pytest.raises(PromptTooLong):
        await ask(tmp_path, says_hi, runtime=runtime, messages=(Message("user", "x" * 1000),))
    assert runtime.prompts == []


async def test_an_unknown_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match=r"'gpt-5'.*m\."):
        await ask(tmp_path, says_hi, model="gpt-5")


async def test_a_conversation_goes_on_with_the_ids_that_were_generated(tmp_path: Path) -> None:
    runtime = ScriptedRuntime(writes("Hi", " you"))
    async with pipeline(settings_with_models(tmp_path, "m"), loads(lambda: runtime)) as made:
        await answer(made)
        await answer(made, messages=(HELLO, Message("assistant", "Hi you"), Message("user", "More")))
    first, second = (prompt.token_ids for prompt in runtime.prompts)
    assert second[: len(first) + 3] == (*first, 1000, 1001, END)


@pytest.mark.parametrize("how", ["stop string", "unknown ids", "client left"])
async def test_a_reply_that_is_not_exactly_known_is_not_continued(how: str, tmp_path: Path) -> None:
    async def script(prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Prefill | Piece, None]:
        yield Piece("Hi", 2, (1000,) if how == "unknown ids" else (1000, 1001))
        yield Piece(" STOP" if how == "stop string" else "", 1, (1002,), finish_reason="stop")

    runtime = ScriptedRuntime(script)
    async with pipeline(settings_with_models(tmp_path, "m"), loads(lambda: runtime)) as made:
        if how == "client left":
            async with aclosing(made.chat.stream(ChatRequest("r", messages=(HELLO,)))) as events:
                while not isinstance(await anext(events), TextDelta):
                    pass
        else:
            await answer(made, stop=("STOP",))
        await answer(made, messages=(HELLO, Message("assistant", "Hi"), Message("user", "More")))
    assert 1000 not in runtime.prompts[-1].token_ids


async def test_a_client_that_leaves_ends_the_work_and_frees_the_slot(tmp_path: Path) -> None:
    closed = asyncio.Event()

    async def endless(prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Prefill | Piece, None]:
        try:
            while True:
                yield Piece("x", 1, (1,))
        finally:
            closed.set()

    async with pipeline(settings_with_models(tmp_path, "m"), loads(lambda: ScriptedRuntime(endless))) as made:
        async with aclosing(made.chat.stream(ChatRequest("r", messages=(HELLO,)))) as events:
            while not isinstance(await anext(events), TextDelta):
                pass
            assert made.scheduler.running == 1
        assert closed.is_set()
        assert made.scheduler.running == 0
        assert made.models.current is not None
        assert made.models.current.users == 0


async def test_an_engine_that_dies_fails_its_request_and_the_next_one_is_answered(tmp_path: Path) -> None:
    lives = 0

    async def script(prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Prefill | Piece, None]:
        nonlocal lives
        lives += 1
        yield Piece("x", 1, (1,))
        if lives == 1:
            raise Died("killed by signal 9")
        yield Piece("", 0, (), finish_reason="stop")

    async with pipeline(settings_with_models(tmp_path, "m"), loads(lambda: ScriptedRuntime(script))) as made:
        with pytest.raises(Died):
            await answer(made)
        assert finished(await answer(made)).reason == "stop"
        assert made.models.current is not None
        assert made.models.current.supervisors[0].restarts == 1


async def test_logprobs_pass_where_the_engine_has_them(tmp_path: Path) -> None:
    runtime = ScriptedRuntime(says_hi, limits=Limits(256, 255))
    runtime.capabilities = Capabilities(frozenset(), logprobs=True)
    assert text_of(await ask(tmp_path, says_hi, runtime=runtime, sampling=Sampling(top_logprobs=2))) == "Hi"
