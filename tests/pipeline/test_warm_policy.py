from qwen_service.pipeline.warm_policy import (
    ENOUGH,
    UNKNOWN_RHYTHM,
    Option,
    WarmPolicy,
)

HEAD, OTHER = b"head", b"other"
CARD = 1.2 / 128  # seconds per id


def policy(*arrivals: str, head: bytes = HEAD, gap: float = 8.0) -> WarmPolicy:
    """`new` begins a conversation, `on` goes on with it; each is answered in no time, `gap` seconds after the last."""
    made = WarmPolicy()
    for place, arrival in enumerate(arrivals):
        made.arrived(head, place * gap, goes_on=arrival == "on")
        made.ended(place * gap)
    return made


def head(size: int, *, held: bool = False, loses: float | None = None) -> Option:
    return Option("head", size, held, loses, HEAD)


def conversation(size: int, *, held: bool = False, loses: float | None = None) -> Option:
    return Option("conversation", size, held, loses)


def test_a_conversation_that_cannot_be_continued_as_it_is_is_prefilled_anew() -> None:
    option = conversation(700)
    assert policy("new").choose([option], 0.1, seconds_per_id=CARD) == option


def test_what_is_held_is_left_alone() -> None:
    assert policy("new").choose([conversation(700, held=True)], 0.1, seconds_per_id=CARD) is None


def test_a_head_counts_from_its_second_conversation_on() -> None:
    assert policy("new").common_heads == []
    assert policy("new", "on", "on").common_heads == []
    assert policy("new", "new").common_heads == [HEAD]
    assert ENOUGH == 2


def test_where_each_request_begins_anew_the_head_is_worth_more_than_the_conversation() -> None:
    made = policy("new", "new")
    assert made.choose([head(674), conversation(700, held=True)], 8.1, seconds_per_id=CARD) == head(674)


def test_where_conversations_go_on_they_are_kept() -> None:
    made = policy("new", "on", "on", "new", "on")
    assert made.choose([head(674), conversation(700, held=True)], 33.0, seconds_per_id=CARD) is None


def test_a_cache_with_room_for_both_gets_the_head_beside_the_conversation() -> None:
    made = policy("new", "on", "on", "new", "on")
    options = [head(674, loses=0), conversation(700, held=True, loses=0)]
    assert made.choose(options, 33.0, seconds_per_id=CARD / 20) == options[0]


def test_nothing_is_prefilled_where_a_conversation_would_make_room_that_is_worth_more() -> None:
    made = policy("new", "new")
    assert made.choose([head(674, loses=400)], 8.1, seconds_per_id=CARD) == head(674, loses=400)
    assert made.choose([head(674, loses=600)], 8.1, seconds_per_id=CARD) is None


def test_a_conversation_that_is_quiet_for_longer_than_its_rhythm_gives_way_to_the_head() -> None:
    made = policy("new", "on", "on", "new", "on", gap=10.0)
    options = [head(300), conversation(700, held=True)]
    wait = made.next_look(40.0)
    assert wait == 30.0  # three times the rhythm
    assert made.choose(options, 40.0 + wait - 1, seconds_per_id=CARD) is None
    assert made.choose(options, 40.0 + wait, seconds_per_id=CARD) == head(300)
    assert made.next_look(40.0 + wait) is None


def test_a_first_conversation_has_a_minute() -> None:
    assert policy("new").next_look(1.0) == UNKNOWN_RHYTHM - 1.0


def test_while_a_reply_is_computed_there_is_nothing_to_wait_for() -> None:
    made = policy("new")
    made.arrived(HEAD, 5.0, goes_on=True)
    assert made.next_look(6.0) is None


def test_the_head_of_before_the_restart_is_expected_at_once() -> None:
    made = WarmPolicy()
    made.expect(HEAD)
    assert made.common_heads == [HEAD]
    assert made.choose([head(674)], 0.0, seconds_per_id=CARD) == head(674)


def test_an_unlikely_head_is_not_worth_making_others_wait() -> None:
    made = WarmPolicy()
    for place in range(9):
        made.arrived(HEAD if place < 2 else bytes([place]), place, goes_on=False)
        made.ended(place)
    assert made.common_heads == [HEAD]
    assert made.choose([head(1500)], 9.0, seconds_per_id=CARD) is None  # 14 s, and somebody comes each second


def test_the_most_used_head_comes_first() -> None:
    made = policy("new", "new")
    for place in range(3):
        made.arrived(OTHER, 20.0 + place, goes_on=False)
    assert made.common_heads == [OTHER, HEAD]
