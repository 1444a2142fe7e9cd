import pytest

from qwen_service.chat import ChatRequest, Message
from qwen_service.pipeline.stable_prefix import StablePrefix
from qwen_service.text.template import ChatTemplate

ENTITIES = "- light.kitchen: on\n- sensor.time_to_live: 12"


def system(clock: str) -> Message:
    return Message("system", f"You are a voice assistant.\n{clock}\nAnswer briefly.\n{ENTITIES}")


def clock(minute: int) -> str:
    return f"Current time is 10:{minute:02}:17. Today's date is 2026-11-27."


def user(text: str) -> Message:
    return Message("user", text)


def moved(minute: int) -> Message:
    return Message("system", clock(minute), moved=True)


STABLE = Message("system", f"You are a voice assistant.\nAnswer briefly.\n{ENTITIES}")


def applied(prefix: StablePrefix, *messages: Message, late_system: bool = True) -> tuple[Message, ...]:
    return prefix.applied(ChatRequest("r", messages=messages), late_system=late_system).messages


def seasoned() -> StablePrefix:
    """It has seen that the clock runs."""
    prefix = StablePrefix()
    for minute in (1, 2):
        applied(prefix, system(clock(minute)), user("Hi"))
    return prefix


def test_a_line_stays_until_it_is_seen_to_change() -> None:
    prefix = StablePrefix()
    first = (system(clock(1)), user("Is the lamp on?"))
    assert applied(prefix, *first) == first
    assert applied(prefix, *first) == first


def test_a_clock_moves_before_the_question_and_all_else_stays() -> None:
    prefix = StablePrefix()
    applied(prefix, system(clock(1)), user("Is the lamp on?"))
    request = ChatRequest("r", messages=(system(clock(2)), user("And now?")))
    changed = prefix.applied(request, late_system=True)
    assert changed.messages == (STABLE, moved(2), user("And now?"))
    assert changed.moved_lines == 1


def test_once_it_has_moved_it_moves_each_time() -> None:
    prefix = seasoned()
    for _ in range(2):
        assert applied(prefix, system(clock(2)), user("Same minute"))[0] == STABLE


def test_where_the_template_takes_no_late_system_message_the_line_heads_the_question() -> None:
    changed = applied(seasoned(), system(clock(3)), user("And now?"), late_system=False)
    assert changed == (STABLE, user(f"{clock(3)}\n\nAnd now?"))


def test_in_later_turns_it_stays_where_it_was() -> None:
    prefix = seasoned()
    first = applied(prefix, system(clock(3)), user("One"))
    reply = Message("assistant", "1")
    second = applied(prefix, system(clock(4)), user("One"), reply, user("Two"))
    assert second == (*first, reply, moved(4), user("Two"))
    third = applied(prefix, system(clock(5)), user("One"), reply, user("Two"), reply, user("Three"))
    assert third == (*second, reply, moved(5), user("Three"))


def test_a_question_that_is_asked_again_gets_the_time_of_now() -> None:
    prefix = seasoned()
    applied(prefix, system(clock(3)), user("One"))
    assert applied(prefix, system(clock(4)), user("One")) == (STABLE, moved(4), user("One"))


def test_while_tools_are_called_the_question_keeps_its_time() -> None:
    prefix = seasoned()
    first = applied(prefix, system(clock(3)), user("One"))
    rest = (Message("assistant", "calls"), Message("tool", "result", tool_call_id="1"))
    assert applied(prefix, system(clock(4)), user("One"), *rest) == (*first, *rest)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("It is 10:00.", "It is 11:30."),
        ("Date: 2026-11-27", "Date: 2026-11-28"),
        ("Heute ist der 27.11.2026", "Heute ist der 28.11.2026"),
        ("Today is Nov 27, 2026", "Today is Nov 28, 2026"),
        ("Today is 27 November 2026.", "Today is 28 November 2026."),
        ("now = 2026-11-27T10:00:17Z", "now = 2026-11-27T10:05:01Z"),
    ],
)
def test_times_and_dates(one: str, other: str) -> None:
    prefix = StablePrefix()
    applied(prefix, system(one), user("Hi"))
    assert applied(prefix, system(other), user("Hi")) == (STABLE, Message("system", other, moved=True), user("Hi"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("The room has 21 degrees.", "The room has 22 degrees."),  # no time
        ("Today is Friday, 10:00.", "Today is Sunday, 10:01."),  # differs in more than digits
        ("10:00 " + "x" * 300, "10:01 " + "x" * 300),  # a whole prompt in one line
        ("Version 1.2.3", "Version 1.2.4"),
        ("The router is 192.168.10.12", "The router is 192.168.10.13"),
    ],
)
def test_nothing_else_is_ever_moved(one: str, other: str) -> None:
    prefix = StablePrefix()
    applied(prefix, system(one), user("Hi"))
    second = (system(other), user("Hi"))
    assert applied(prefix, *second) == second


def test_lines_of_users_and_of_later_system_messages_stay() -> None:
    prefix = StablePrefix()
    for minute in (1, 2):
        messages = (Message("system", "Be kind."), user(clock(minute)), Message("system", clock(minute)), user("Hi"))
        assert applied(prefix, *messages) == messages


def test_a_system_message_of_nothing_but_a_clock_goes() -> None:
    prefix = StablePrefix()
    for minute in (1, 2):
        changed = applied(prefix, Message("system", clock(minute)), user("Hi"))
    assert changed == (moved(2), user("Hi"))


def test_what_moves_is_known_after_a_restart_by_its_digest() -> None:
    learned: list[list[str]] = []
    prefix = StablePrefix(on_learned=learned.append)
    for minute in (1, 2, 3):
        applied(prefix, system(clock(minute)), user("Hi"))
    ((digest,),) = learned
    assert len(digest) == 32
    assert applied(StablePrefix([digest]), system(clock(4)), user("Hi")) == (STABLE, moved(4), user("Hi"))


def test_counting_remembers_nothing() -> None:
    prefix = StablePrefix()
    for minute in (1, 2):
        request = ChatRequest("r", messages=(system(clock(minute)), user("Hi")))
        assert prefix.applied(request, late_system=True, only_count=True) == request


@pytest.mark.parametrize(
    "request_", [ChatRequest("r", prompt=clock(1)), ChatRequest("r", messages=(system(clock(1)),))]
)
def test_what_has_no_question_is_left_alone(request_: ChatRequest) -> None:
    assert seasoned().applied(request_, late_system=True) == request_


IN_PLACE = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
FIRST_ONLY = "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('no') }}{% endif %}{{ m.content }}{% endfor %}"
DROPS = "{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}{% endif %}{% endfor %}"
GATHERS = "{% for m in messages if m.role == 'system' %}{{ m.content }}{% endfor %}" + DROPS


@pytest.mark.parametrize(("source", "takes"), [(IN_PLACE, True), (FIRST_ONLY, False), (DROPS, False), (GATHERS, False)])
def test_whether_a_template_takes_a_late_system_message(source: str, takes: bool) -> None:
    assert ChatTemplate(source, {}).takes_late_system is takes
