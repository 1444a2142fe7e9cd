from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_service.chat import ChatRequest, Message, Priority
from qwen_service.pipeline.fairness import FairOrder, Priorities, surplus


@dataclass(frozen=True)
class Asked:
    request: ChatRequest


def line(*clients: str) -> list[Asked]:
    """`a` waits interactively, `-a` in the background."""
    return [
        Asked(ChatRequest(str(n), client=c.lstrip("-"), priority="background" if c[0] == "-" else "interactive"))
        for n, c in enumerate(clients)
    ]


def served(waiting: list[Asked]) -> str:
    """The clients in the order of their turns, when nobody else comes."""
    order, waiting, turns = FairOrder(), list(waiting), ""
    while waiting:
        first = order.sorted(waiting)[0]
        waiting.remove(first)
        order.note_turn(first.request)
        turns += first.request.client
    return turns


def test_one_client_is_served_in_the_order_of_arrival() -> None:
    waiting = line("a", "a", "a")
    assert FairOrder().sorted(waiting) == waiting


def test_a_greedy_client_takes_turns_with_the_others() -> None:
    assert served(line("a", "a", "a", "a", "b", "b", "c")) == "abcabaa"


def test_a_client_that_was_just_served_comes_after_one_that_was_not() -> None:
    order = FairOrder()
    order.note_turn(ChatRequest("0", client="a"))
    assert [w.request.client for w in order.sorted(line("a", "b"))] == ["b", "a"]


def test_one_that_was_served_before_is_not_kept_waiting_by_ever_new_clients() -> None:
    order, waiting = FairOrder(), line("a")
    order.note_turn(ChatRequest("0", client="a"))
    turns = []
    for number in range(5):
        waiting += line(f"new {number}", f"newer {number}")
        first = order.sorted(waiting)[0]
        waiting.remove(first)
        order.note_turn(first.request)
        turns.append(first.request.client)
    assert turns == ["new 0", "newer 0", "a", "new 1", "newer 1"]


def test_background_requests_yield_to_interactive_ones() -> None:
    assert served(line("-a", "-b", "c", "c")) == "ccab"


def test_who_was_served_long_ago_does_not_overtake_who_has_waited_longer() -> None:
    order = FairOrder()
    for client in ("a", "b", "c"):
        order.note_turn(ChatRequest("0", client=client))
    waiting = line("new")
    assert order.sorted(waiting) == waiting
    order.note_turn(ChatRequest("0", client="d"))
    waiting += line("a")
    assert [w.request.client for w in order.sorted(waiting)] == ["new", "a"]


def test_clients_that_have_gone_are_forgotten() -> None:
    order = FairOrder()
    for number in range(1000):
        waiting = line(f"client {number}", "a")
        order.sorted(waiting)
        order.note_turn(waiting[0].request)
    assert len(order._since) <= 3


@pytest.mark.parametrize(
    ("clients", "goes"),
    [
        (("a", "a", "a", "b"), 2),  # the newest of the greedy one, not who has just come
        (("a", "b", "c"), 2),
        (("a", "b", "b"), 2),
        (("a", "a", "b", "b"), 3),
        (("-a", "b", "b", "b"), 0),
        (("a", "-b", "-b", "c"), 2),
        (("a", "-b"), 1),
    ],
)
def test_when_the_line_is_too_long_the_greediest_gives_one_up(clients: tuple[str, ...], goes: int) -> None:
    waiting = line(*clients)
    assert surplus(waiting) is waiting[goes]


@given(st.lists(st.sampled_from(["a", "b", "-a", "c"]), min_size=1, max_size=20))
def test_everybody_is_served_once_and_nobody_waits_for_two_turns_of_another(clients: list[str]) -> None:
    waiting = line(*clients)
    turns = served(waiting)
    assert sorted(turns) == sorted(c.lstrip("-") for c in clients)
    assert surplus(waiting) in waiting


@pytest.mark.parametrize(
    ("asked", "content", "priority"),
    [
        ("", "Hello", "interactive"),
        ("background", "Hello", "background"),
        ("", "### Task:\nGenerate a concise title", "background"),
        ("", "\n ### Task: x", "background"),
        ("interactive", "### Task:\nGenerate", "interactive"),
        ("", "What is a ### Task:?", "interactive"),
        ("nonsense", "Hello", "interactive"),
    ],
)
def test_the_priority_is_what_the_header_says_or_the_message_looks_like(
    asked: str, content: str, priority: Priority
) -> None:
    request = ChatRequest("r", messages=(Message("user", content),))
    marked = Priorities(["### Task:"]).apply(request, asked, "laptop")
    assert (marked.priority, marked.client) == (priority, "laptop")


def test_without_markers_only_the_header_counts() -> None:
    request = ChatRequest("r", messages=(Message("user", "### Task:"),))
    assert Priorities([]).apply(request, "", "").priority == "interactive"
    assert Priorities(["x"]).apply(ChatRequest("r", prompt="x"), "", "").priority == "interactive"
