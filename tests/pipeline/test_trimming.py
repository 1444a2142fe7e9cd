from hypothesis import given
from hypothesis import strategies as st

from qwen_service.chat import Message
from qwen_service.pipeline.trimming import cuts, turns_of, without_oldest

ROLES = st.sampled_from(["system", "user", "user", "assistant", "tool"])
MESSAGES = st.lists(st.builds(Message, ROLES, st.text(max_size=80)), min_size=1, max_size=30)
BUDGETS = st.integers(1, 300)


@given(MESSAGES)
def test_turns_are_the_messages_in_order_each_beginning_with_a_user(messages: list[Message]) -> None:
    turns = turns_of(messages)
    assert [message for turn in turns for message in turn] == messages
    assert all(turn[0].role == "user" and len([m for m in turn if m.role == "user"]) == 1 for turn in turns[1:])


@given(MESSAGES, BUDGETS)
def test_the_places_go_from_the_whole_conversation_to_its_last_turn(messages: list[Message], budget: int) -> None:
    turns = turns_of(messages)
    places = cuts(turns, budget)
    assert places[0].turns == 0
    assert places[-1].turns == len(turns) - 1
    assert [cut.turns for cut in places] == sorted({cut.turns for cut in places})
    assert [cut.bytes_left for cut in places] == sorted((cut.bytes_left for cut in places), reverse=True)


@given(MESSAGES, MESSAGES, BUDGETS)
def test_the_places_do_not_move_while_a_conversation_grows(
    messages: list[Message], more: list[Message], budget: int
) -> None:
    before = {cut.turns for cut in cuts(turns_of(messages), budget)[:-1]}
    after = {cut.turns for cut in cuts(turns_of([*messages, Message("user", "next"), *more]), budget)}
    assert before <= after


@given(MESSAGES)
def test_system_messages_and_the_last_turn_always_stay(messages: list[Message]) -> None:
    turns = turns_of(messages)
    for number in range(len(turns)):
        kept = without_oldest(turns, number)
        assert [m for m in kept if m.role == "system"] == [m for m in messages if m.role == "system"]
        assert list(kept[len(kept) - len(turns[-1]) :]) == turns[-1]
    assert without_oldest(turns, 0) == tuple(messages)


def test_what_the_service_has_put_before_a_question_goes_with_it() -> None:
    system, reply = Message("system", "Be kind."), Message("assistant", "Yes")
    clock = [Message("system", f"It is 10:0{minute}.", moved=True) for minute in range(2)]
    questions = [Message("user", f"Question {number}") for number in range(2)]
    turns = turns_of([system, clock[0], questions[0], reply, clock[1], questions[1]])
    assert turns == [[system], [clock[0], questions[0], reply], [clock[1], questions[1]]]
    assert without_oldest(turns, 2) == (system, clock[1], questions[1])
