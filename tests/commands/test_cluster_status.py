import pytest

from qwen_service.cluster.node_facts import EngineView, NodeFacts, NodeView
from qwen_service.cluster.ranking import held
from qwen_service.cluster.wire import Report
from qwen_service.commands.cluster_status import as_json, cells, faults, model_of, rows
from qwen_service.runtime import HeldIds, Limits

LIMITS = Limits(context=2048, prompt=2048, slots=1)
HERE = NodeView("a", "10.0.0.1", True, 1, NodeFacts("pi1", "1.0", ("qwen3-4b",), ((0, 51.0),)))
THERE = NodeView("b", "10.0.0.2", True, 1, NodeFacts("pi2", "1.0"))
GONE = NodeView("c", "10.0.0.3", False, 1)
WORKS = EngineView(
    "a",
    "RUNNING",
    Report(
        "pi1",
        "card 0",
        "qwen3-4b",
        "ready",
        temperature=51.0,
        limits=LIMITS,
        held=(held(HeldIds(tuple(range(300)), partly=True)),),
        tokens_per_second=7.42,
    ),
)
LOADS = EngineView("b", "STARTING")


def shown(nodes: list[NodeView], engines: list[EngineView]) -> list[tuple[str, ...]]:
    return [cells(row) for row in rows(nodes, engines)]


def test_a_line_tells_what_a_card_serves_and_holds_how_fast_and_how_hot() -> None:
    line = ("pi1 (10.0.0.1)", "card 0", "qwen3-4b", "ready", "300 tokens", "7.4", "51 C")
    assert shown([HERE], [WORKS]) == [line]
    assert list(faults([HERE], [WORKS], "qwen3-4b")) == []
    assert model_of([LOADS, WORKS]) == "qwen3-4b"


def test_a_card_that_loads_and_a_node_that_is_gone_have_their_lines() -> None:
    assert shown([HERE, THERE, GONE], [WORKS, LOADS])[1:] == [
        ("pi2 (10.0.0.2)", "-", "-", "starting", "-", "-", "-"),
        ("10.0.0.3", "1 card", "-", "gone", "-", "-", "-"),
    ]


def test_a_model_that_is_missing_is_told_with_the_command_that_gets_it() -> None:
    told = list(faults([HERE, THERE, GONE], [WORKS, LOADS], "qwen3-4b"))
    assert told == [
        "The node 10.0.0.3 is gone. Start it again there: qwen-service cluster start --join HEAD",
        "qwen3-4b is missing on pi2 (10.0.0.2). Install it there: qwen-service cluster pull qwen3-4b",
    ]


@pytest.mark.parametrize(
    ("nodes", "engines", "told"),
    [
        (
            [NodeView("a", "10.0.0.1", True, 0, NodeFacts("pi0", "1.0"), is_head=True)],
            [EngineView("b", "STARTING")],
            "qwen3-4b is missing on pi0 (10.0.0.1)",
        ),
        ([HERE], [], "No model is deployed"),
        ([HERE], [WORKS, EngineView("", "STARTING")], "wait for a free card: 1"),
        (
            [HERE, NodeView("b", "10.0.0.2", True, 0, NodeFacts("pi2", "0.9"))],
            [WORKS],
            "versions of qwen-service (0.9, 1.0)",
        ),
        (
            [NodeView("a", "10.0.0.1", True, 1, fault="has not answered for 30 s")],
            [WORKS],
            "10.0.0.1: has not answered",
        ),
        (
            [NodeView("a", "10.0.0.1", True, 1, NodeFacts("pi1", "1.0", fault="axcl-smi hung"))],
            [WORKS],
            "axcl-smi hung",
        ),
        (
            [HERE],
            [EngineView("a", "RUNNING", Report("pi1", "card 0", "m", "failed", error="no CMM"))],
            "card 0 of pi1: no CMM",
        ),
    ],
)
def test_each_fault_is_a_line(nodes: list[NodeView], engines: list[EngineView], told: str) -> None:
    assert [line for line in faults(nodes, engines, "qwen3-4b") if told in line]


def test_programs_get_the_same_as_people() -> None:
    answer = as_json([HERE, THERE], [WORKS], "qwen3-4b")
    assert answer["cards"] == rows([HERE, THERE], [WORKS])
    assert answer["faults"] == list(faults([HERE, THERE], [WORKS], "qwen3-4b"))
    assert isinstance(answer["nodes"], list)
    assert answer["nodes"][0] == {
        "id": "a",
        "address": "10.0.0.1",
        "alive": True,
        "cards": 1,
        "host": "pi1",
        "version": "1.0",
        "models": ["qwen3-4b"],
        "fault": "",
    }
