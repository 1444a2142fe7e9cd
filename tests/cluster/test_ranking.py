"""The order of replicas for one prompt, without Ray."""

from dataclasses import replace

from qwen_service.cluster.ranking import Standing, held, rank
from qwen_service.runtime import HeldIds

TALK = tuple(range(1000))
OTHER = tuple(range(5000, 6000))


def holding(name: str, ids: tuple[int, ...], *, partly: bool = False, idle: float = 1.0) -> Standing:
    return Standing(name, held=(held(HeldIds(ids, partly)),), idle=idle)


def test_the_card_that_holds_the_talk_comes_first() -> None:
    assert rank((*TALK, 1, 2), [Standing("empty"), holding("other", OTHER), holding("mine", TALK)])[0] == "mine"


def test_three_new_talks_take_three_cards() -> None:
    cards = {name: Standing(name) for name in ("a", "b", "c")}
    taken = []
    for number in range(3):
        talk = tuple(range(number * 2000, number * 2000 + 500))
        chosen = rank(talk, list(cards.values()))[0]
        cards[chosen] = holding(chosen, talk)
        taken.append(chosen)
    assert sorted(taken) == ["a", "b", "c"]


def test_of_full_cards_the_one_that_rested_longest_is_given_up() -> None:
    assert rank((9, 9), [holding("young", TALK, idle=5), holding("old", OTHER, idle=500)]) == ["old", "young"]


def test_how_long_a_forgotten_talk_was_does_not_count() -> None:
    assert rank((9, 9), [holding("long", TALK, idle=9), holding("short", OTHER[:100], idle=5)]) == ["long", "short"]


def test_a_shared_beginning_does_not_drive_a_talk_from_its_card_while_another_is_empty() -> None:
    shared = (*TALK[:300], *OTHER)
    assert rank(shared, [holding("has the beginning", TALK, partly=True), Standing("empty")])[0] == "empty"


def test_who_would_have_to_wait_longer_than_the_prefill_takes_comes_later() -> None:
    busy = replace(holding("mine", TALK), running=1, per_reply=30)
    assert rank((*TALK, 1), [busy, Standing("empty")]) == ["empty", "mine"]
    assert rank((*TALK, 1), [replace(busy, per_reply=2), Standing("empty")]) == ["mine", "empty"]


def test_an_engine_with_several_slots_forgets_nothing_while_one_is_free() -> None:
    roomy = replace(holding("roomy", TALK, partly=True), slots=4)
    assert rank(OTHER, [holding("full", TALK), roomy]) == ["roomy", "full"]


def test_what_loads_or_is_hot_is_left_out_while_others_can_work() -> None:
    loading, hot, well = Standing("loading", ready=False), Standing("hot", paused=True), Standing("well", running=9)
    assert rank(TALK, [loading, hot, well]) == ["well"]
    assert rank(TALK, [loading, hot]) == ["hot"]
    assert rank(TALK, [loading]) == ["loading"]
    assert rank(TALK, []) == []
