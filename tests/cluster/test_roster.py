"""What the ingress knows of its replicas."""

import asyncio
from typing import Any

from qwen_service.cluster.roster import Roster
from qwen_service.cluster.wire import Report
from qwen_service.runtime import Capabilities, Limits

LIMITS = Limits(context=2559, prompt=2048)


def report(node: str, **fields: Any) -> Report:
    values: dict[str, Any] = {"phase": "ready", "limits": LIMITS, "capabilities": Capabilities(frozenset()), **fields}
    return Report(node=node, place="card 0", model="m", **values)


async def settle() -> None:
    await asyncio.sleep(0)


async def test_slots_are_those_of_replicas_that_take_work() -> None:
    roster = Roster()
    changes: list[int] = []
    roster.on_change = lambda: changes.append(roster.slots)
    roster.note_reports({"1": report("a"), "2": report("b"), "3": report("c", phase="loading", limits=None), "4": None})
    await settle()
    assert (roster.slots, roster.ready, changes) == (2, True, [2])
    roster.note_reports({"1": report("a", paused="83 C"), "2": report("b")})
    await settle()
    assert changes == [2, 1]


async def test_requests_wait_for_the_first_reports_but_not_for_cards_that_load() -> None:
    roster = Roster()
    assert roster.loads_quickly()
    roster.note_reports({"1": report("a", phase="loading", limits=None)})
    await settle()
    assert not roster.loads_quickly()
    roster.note_reports({"1": report("a")})
    await settle()
    assert roster.loads_quickly()


async def test_requests_wait_for_the_first_report_of_a_new_replica_when_the_last_old_one_has_gone() -> None:
    roster = Roster()
    roster.note_reports({"old": report("a"), "new": None})
    roster.note_reports({"new": None})
    await settle()
    assert not roster.ready
    assert roster.loads_quickly()
    roster.note_reports({})
    await settle()
    assert not roster.loads_quickly()


async def test_a_replica_that_is_gone_is_named_until_another_works_in_its_place() -> None:
    roster = Roster()
    roster.note_reports({"1": report("a"), "2": report("b")})
    roster.note_reports({"2": report("b")})
    await settle()
    assert [(view.node, view.state) for view in roster.views()] == [("a", "gone"), ("b", "ready")]
    assert "card 0 of a: gone for 0 s" in roster.story()
    roster.note_reports({"2": report("b"), "3": report("a")})
    await settle()
    assert [view.state for view in roster.views()] == ["ready", "ready"]


async def test_a_work_has_ended_when_its_replica_says_so_or_is_gone() -> None:
    roster = Roster()
    roster.note_reports({"1": report("a"), "2": report("b")})
    roster.note_routed("k1", "1")
    roster.note_routed("k2", "2")
    await settle()
    assert roster.place_of("k2") == "card 0 of b"
    waits = [asyncio.create_task(roster.ended(key)) for key in ("k1", "k2")]
    await settle()
    assert not any(task.done() for task in waits)
    roster.note_completed("k1")
    roster.note_reports({"1": report("a")})
    async with asyncio.timeout(10):
        await asyncio.gather(*waits)


async def test_prompts_are_fitted_for_the_smallest() -> None:
    roster = Roster()
    roster.note_reports({"1": report("a"), "2": report("b", limits=Limits(context=1024, prompt=512))})
    await settle()
    assert roster.limits == Limits(context=1024, prompt=512, slots=2)
