import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_service.chat import ChatRequest, Message, Sampling, Tool, ToolCall
from qwen_service.engines.served import ServedModel
from qwen_service.errors import InvalidRequest, PromptTooLong
from qwen_service.pipeline.conversation import REMEMBERED_REPLIES, Fitted, SessionManager
from qwen_service.runtime import Limits
from qwen_service.text.tokenizer import LocalTokenizer
from tests.serving import SPECIAL_IDS, TEMPLATE, installed, model_text

START, END, THINK, END_THINK = SPECIAL_IDS.values()
OPENING_TEMPLATE = TEMPLATE + "{% if enable_thinking %}{{ '<think>\n' }}{% endif %}"
LIMITS = Limits(context=200, prompt=199)
QUESTION = Message("user", "And now?")


def served(name: str = "m", **spec: Any) -> ServedModel:
    return ServedModel(installed(name, **spec), ())


async def fit(
    messages: Sequence[Message],
    sessions: SessionManager | None = None,
    *,
    model: ServedModel | None = None,
    limits: Limits = LIMITS,
    template: str = TEMPLATE,
    **request: Any,
) -> Fitted:
    asked = ChatRequest("r1", messages=tuple(messages), **request)
    return await (sessions or SessionManager()).fit(model or served(), model_text(template), limits, asked)


def talk(turns: int, length: int = 10) -> list[Message]:
    return [
        message
        for n in range(turns)
        for message in (
            Message("user", f"{n:03} ".ljust(length, "q")),
            Message("assistant", f"{n:03} ".ljust(length, "a")),
        )
    ]


def kept(fitted: Fitted) -> tuple[Message, ...]:
    return fitted.prompt.request.messages


async def test_what_fits_is_left_alone() -> None:
    messages = [Message("system", "Be brief."), *talk(2), QUESTION]
    fitted = await fit(messages)
    assert kept(fitted) == tuple(messages)
    assert fitted.trimmed == 0
    assert fitted.max_tokens == LIMITS.context - len(fitted.prompt.token_ids)


async def test_the_oldest_turns_are_dropped_and_counted() -> None:
    messages = [*talk(20), QUESTION]
    fitted = await fit(messages)
    assert 0 < len(kept(fitted)) < len(messages)
    assert kept(fitted) == tuple(messages[fitted.trimmed :])
    assert len(fitted.prompt.token_ids) + fitted.max_tokens == LIMITS.context


async def test_room_for_a_quarter_of_the_context_is_kept_for_the_reply() -> None:
    fitted = await fit([*talk(20), QUESTION])
    assert fitted.max_tokens >= LIMITS.context // 4


async def test_a_short_reply_needs_less_room() -> None:
    messages = [*talk(3, length=14), QUESTION]
    short = await fit(messages, sampling=Sampling(max_tokens=5))
    assert (short.max_tokens, short.trimmed) == (5, 0)
    assert (await fit(messages)).trimmed > 0


async def test_system_messages_stay_wherever_they_stand() -> None:
    messages = [Message("system", "First rule"), *talk(10), Message("system", "Second rule"), *talk(3), QUESTION]
    fitted = await fit(messages)
    assert fitted.trimmed
    assert [message.content for message in kept(fitted) if message.role == "system"] == ["First rule", "Second rule"]
    assert kept(fitted)[-1] == QUESTION


def roles(draw: st.DrawFn) -> list[Message]:
    """Turns of a user message and what follows it: replies, and calls with their results."""
    messages = [Message("system", "S" * draw(st.integers(0, 20)))] if draw(st.booleans()) else []
    for turn in range(draw(st.integers(0, 12))):
        messages.append(Message("user", f"u{turn} " + "x" * draw(st.integers(0, 60))))
        for call in range(draw(st.integers(0, 2))):
            name = f"c{turn}-{call}"
            messages.append(Message("assistant", tool_calls=(ToolCall(name, "f"),)))
            messages.append(Message("tool", "r" * draw(st.integers(0, 40)), tool_call_id=name))
        messages.append(Message("assistant", "y" * draw(st.integers(0, 60))))
    return [*messages, Message("user", "last")]


@given(st.composite(roles)(), st.integers(60, 400))
async def test_what_is_kept_is_whole_turns_up_to_the_last_message(messages: list[Message], context: int) -> None:
    fitted = await fit(messages, limits=Limits(context, context - 1))
    held = kept(fitted)
    assert held[-1] == messages[-1]
    assert [m for m in messages if m.role == "system"] == [m for m in held if m.role == "system"]
    rest = [m for m in held if m.role != "system"]
    assert rest == messages[len(messages) - len(rest) :]
    assert rest[0].role == "user"
    called = {call.id for message in held for call in message.tool_calls}
    assert called == {m.tool_call_id for m in held if m.role == "tool"}
    assert len(fitted.prompt.token_ids) < context


async def test_a_result_of_the_last_turn_stays_with_its_call_and_its_question() -> None:
    last = [QUESTION, Message("assistant", tool_calls=(ToolCall("c", "f"),)), Message("tool", "18", tool_call_id="c")]
    fitted = await fit([*talk(20), *last])
    assert fitted.trimmed
    assert kept(fitted)[-3:] == tuple(last)


async def test_what_cannot_fit_is_refused_with_the_numbers() -> None:
    with pytest.raises(PromptTooLong) as caught:
        await fit([Message("system", "s"), *talk(3), Message("user", "x" * 500)])
    assert caught.value.param == "messages"
    for number in ("530", "199", "200"):
        assert number in caught.value.message


@pytest.mark.parametrize("how", ["truncate", "configured"])
async def test_trimming_can_be_turned_off_by_request_and_by_configuration(how: str) -> None:
    sessions = SessionManager(overflow="error" if how == "configured" else "trim")
    with pytest.raises(PromptTooLong):
        await fit([*talk(20), QUESTION], sessions, truncate=how == "configured")


async def test_without_trimming_the_whole_context_may_be_prompt() -> None:
    messages = [*talk(4, length=8), QUESTION]
    fitted = await fit(messages, truncate=False)
    assert fitted.trimmed == 0
    assert fitted.max_tokens < LIMITS.context // 4


async def test_a_prompt_budget_trims_to_less_than_the_context() -> None:
    fitted = await fit([*talk(5), QUESTION], model=served(prompt_budget=80))
    assert len(fitted.prompt.token_ids) <= 80
    assert fitted.trimmed


async def test_a_long_last_message_may_pass_the_prompt_budget_but_not_the_context() -> None:
    fitted = await fit([Message("user", "x" * 120)], model=served(prompt_budget=80))
    assert len(fitted.prompt.token_ids) > 120


async def test_a_client_can_ask_for_a_smaller_context_but_not_for_a_larger_one() -> None:
    small = await fit([*talk(20), QUESTION], context_size=100)
    assert len(small.prompt.token_ids) + small.max_tokens == 100
    large = await fit([QUESTION], context_size=100_000)
    assert len(large.prompt.token_ids) + large.max_tokens == LIMITS.context


async def test_the_prompt_limit_of_an_engine_holds_beside_its_context() -> None:
    fitted = await fit([*talk(20), QUESTION], limits=Limits(context=1000, prompt=120))
    assert len(fitted.prompt.token_ids) <= 120
    assert fitted.max_tokens > 800


async def test_the_configured_length_holds_where_a_request_names_none() -> None:
    sessions = SessionManager(default_max_tokens=7)
    assert (await fit([QUESTION], sessions)).max_tokens == 7
    assert (await fit([QUESTION], sessions, sampling=Sampling(max_tokens=9))).max_tokens == 9


async def test_a_raw_prompt_is_neither_rendered_nor_trimmed() -> None:
    fitted = await fit([], prompt="<|im_start|>x")
    assert fitted.prompt.token_ids == (START, ord("x"))
    assert (await fit([], prompt=(7, 8))).prompt.token_ids == (7, 8)
    with pytest.raises(PromptTooLong) as caught:
        await fit([], prompt="x" * 200)
    assert caught.value.param == "prompt"


async def test_ids_of_a_raw_prompt_that_are_no_tokens_are_refused(tokenizer: LocalTokenizer) -> None:
    text = replace(model_text(TEMPLATE), tokenizer=tokenizer)
    with pytest.raises(InvalidRequest, match="no token 999999"):
        await SessionManager().fit(served(), text, LIMITS, ChatRequest("r1", prompt=(7, 999_999)))
    with pytest.raises(PromptTooLong):
        await SessionManager().fit(served(), text, LIMITS, ChatRequest("r1", prompt=(999_999,) * 200))


@pytest.mark.parametrize(("thinking", "starts"), [(True, True), (False, False), (None, False)])
async def test_a_template_that_opens_the_think_block_is_noticed(thinking: bool | None, starts: bool) -> None:
    fitted = await fit([QUESTION], template=OPENING_TEMPLATE, thinking=thinking)
    assert fitted.starts_in_reasoning is starts


async def grown(sessions: SessionManager, turns: int, *, limits: Limits = LIMITS) -> list[Fitted]:
    """A conversation as a client leads it: each request holds all that was said before."""
    messages: list[Message] = []
    requests = []
    for turn in talk(turns)[::2]:
        messages.append(turn)
        fitted = await fit(messages, sessions, limits=limits, thinking=False)
        requests.append(fitted)
        reply = Message("assistant", f"reply to {turn.content}")
        sessions.remember(served(), fitted.prompt, reply, [*map(ord, reply.content), END])
        messages.append(reply)
    return requests


async def test_a_continued_conversation_extends_what_the_cache_holds() -> None:
    first, second = await grown(SessionManager(), 2)
    held = (*first.prompt.token_ids, *map(ord, "reply to 000 qqqqqq"), END)
    assert second.prompt.token_ids[: len(held)] == held
    assert second.prompt.token_ids[-6:-2] == (THINK, 10, 10, END_THINK)
    assert second.prompt.token_ids.count(THINK) == 2  # the empty block of the first turn is held, not re-rendered
    assert second.prompt.token_ids.count(END) == 3


async def test_the_end_of_turn_token_is_written_once_whether_or_not_the_engine_reports_it() -> None:
    reply = Message("assistant", "Hi")
    continued = []
    for ids in ([72, 105], [72, 105, END]):
        sessions = SessionManager()
        first = await fit([QUESTION], sessions)
        sessions.remember(served(), first.prompt, reply, ids)
        continued.append((await fit([QUESTION, reply, QUESTION], sessions)).prompt.token_ids)
    assert continued[0] == continued[1]


async def test_the_cut_stays_where_it_is_for_several_turns() -> None:
    requests = await grown(SessionManager(), 60, limits=Limits(2000, 1999))
    cuts = [fitted.trimmed for fitted in requests]
    assert cuts == sorted(cuts)
    assert len(set(cuts)) == 3  # none, and twice a quarter of the budget
    extended = [
        later.prompt.token_ids[: len(earlier.prompt.token_ids)] == earlier.prompt.token_ids
        for earlier, later in pairwise(requests)
    ]
    assert sum(extended) >= len(extended) / 2


@pytest.mark.parametrize(
    "change",
    [
        lambda r: replace(r, messages=(Message("user", "And then?"), *r.messages[1:])),
        lambda r: replace(r, messages=(r.messages[0], Message("assistant", "Ho"), *r.messages[2:])),
        lambda r: replace(r, tools=(Tool("f"),)),
        lambda r: replace(r, template_kwargs={"note": "x"}),
    ],
    ids=["question", "reply", "tools", "template arguments"],
)
async def test_another_conversation_does_not_continue_the_held_one(change: Any) -> None:
    sessions = SessionManager()
    reply = Message("assistant", "Hi")
    first = await fit([QUESTION], sessions)
    sessions.remember(served(), first.prompt, reply, [500, 501])
    request = ChatRequest("r2", messages=(QUESTION, reply, QUESTION))
    assert 500 in (await sessions.fit(served(), model_text(), LIMITS, request)).prompt.token_ids
    assert 500 not in (await sessions.fit(served(), model_text(), LIMITS, change(request))).prompt.token_ids


async def test_another_model_does_not_get_the_ids_of_this_one() -> None:
    sessions = SessionManager()
    reply = Message("assistant", "Hi")
    first = await fit([QUESTION], sessions)
    sessions.remember(served("one"), first.prompt, reply, [500])
    assert 500 in (await fit([QUESTION, reply, QUESTION], sessions, model=served("one"))).prompt.token_ids
    assert 500 not in (await fit([QUESTION, reply, QUESTION], sessions, model=served("two"))).prompt.token_ids


async def test_white_space_around_a_reply_and_its_thoughts_do_not_matter() -> None:
    sessions = SessionManager()
    first = await fit([QUESTION], sessions)
    sessions.remember(served(), first.prompt, Message("assistant", " Hi\n"), [500])
    back = Message("assistant", "Hi", reasoning="which a client may send back or not")
    assert 500 in (await fit([QUESTION, back, QUESTION], sessions)).prompt.token_ids


async def test_arguments_of_a_call_are_compared_by_value() -> None:
    sessions = SessionManager()
    first = await fit([QUESTION], sessions)
    sessions.remember(
        served(), first.prompt, Message("assistant", tool_calls=(ToolCall("a", "f", '{"b":1, "a":2}'),)), [500]
    )
    back = Message("assistant", tool_calls=(ToolCall("z", "f", '{"a": 2, "b": 1}'),))
    assert 500 in (await fit([QUESTION, back, QUESTION], sessions)).prompt.token_ids


async def test_held_thoughts_are_given_up_before_messages_are() -> None:
    sessions = SessionManager()
    reply = Message("assistant", "Hi")
    first = await fit([QUESTION], sessions)
    sessions.remember(served(), first.prompt, reply, [500] * 150)
    fitted = await fit([QUESTION, reply, QUESTION], sessions)
    assert fitted.trimmed == 0
    assert 500 not in fitted.prompt.token_ids


async def test_only_the_latest_replies_are_remembered() -> None:
    sessions = SessionManager()
    reply = Message("assistant", "Hi")
    questions = [Message("user", f"{n}") for n in range(REMEMBERED_REPLIES + 1)]
    for question in questions:
        first = await fit([question], sessions)
        sessions.remember(served(), first.prompt, reply, [500])
    assert 500 not in (await fit([questions[0], reply, QUESTION], sessions)).prompt.token_ids
    assert 500 in (await fit([questions[1], reply, QUESTION], sessions)).prompt.token_ids


@pytest.mark.no_cover
@pytest.mark.parametrize("length", [10, 1000])
async def test_a_huge_conversation_is_fitted_quickly(length: int) -> None:
    messages = [Message("system", "s"), *talk(3_000_000 // length // 2, length), QUESTION]
    began = time.process_time()
    fitted = await fit(messages, limits=Limits(2048, 2047))
    assert time.process_time() - began < 10  # about 0.3 s; with a render for each dropped turn it would be minutes
    assert kept(fitted)[-1] == QUESTION
    assert fitted.max_tokens < 2048


async def test_a_reply_that_goes_on_with_a_message_is_not_held_as_one_of_its_own() -> None:
    sessions, half = SessionManager(), Message("assistant", "One, ")
    first = await fit([QUESTION, half], sessions, continues=True)
    assert first.prompt.token_ids[-len(half.content) :] == tuple(map(ord, half.content))
    sessions.remember(served(), first.prompt, Message("assistant", "two"), [500])
    later = await fit([QUESTION, half, Message("assistant", "two"), QUESTION], sessions)
    assert 500 not in later.prompt.token_ids
