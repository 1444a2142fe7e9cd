"""A request router for Ray Serve that uses the order of ranking.py.

Ray copies this module by value, so classes that it shares with other modules are defined there. It may run in its own thread.
"""

import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from qwen_service.cluster.ranking import Held, Standing, held, rank
from qwen_service.cluster.roster import Roster
from qwen_service.cluster.wire import Report, Work
from qwen_service.runtime import HeldIds

REMEMBERED = 4096  # works whose end is not yet known


@dataclass(frozen=True, slots=True)
class _Routed:
    """The prompt that a replica was just sent, which its next report will contain."""

    key: str
    cache: Held
    at: float


class PrefixRouter(RequestRouter):
    def initialize_state(self, report_period: float = 1.0, **_: Any) -> None:
        self._trust = 10 * report_period  # seconds for which a routed prompt counts without being reported
        self._routed: dict[str, _Routed] = {}  # by replica
        self._reported: dict[str, tuple[Report, float]] = {}  # replica -> its report, and when it came
        self._keys: OrderedDict[str, str] = OrderedDict()  # Ray's id of a request -> key of its work

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        work = _work_of(pending_request)
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        ids = work.prompt.token_ids if work is not None else ()
        order = rank(ids, [self._standing(replica) for replica in candidate_replicas])
        return [[by_name[name]] for name in order]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:  # noqa: ARG002
        work, name = _work_of(pending_request), replica_id.unique_id
        if work is None:
            return
        self._routed[name] = _Routed(work.key, held(HeldIds(work.prompt.token_ids, partly=True)), time.monotonic())
        self._keys[pending_request.metadata.internal_request_id] = work.key
        if len(self._keys) > REMEMBERED:
            self._keys.popitem(last=False)
        if (roster := _roster()) is not None:
            roster.note_routed(work.key, name)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:  # noqa: ARG002
        key, roster = self._keys.pop(internal_request_id, None), _roster()
        if key is not None and roster is not None:
            roster.note_completed(key)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        now, names = time.monotonic(), {replica.replica_id.unique_id for replica in replicas}
        for replica in replicas:
            name, report = replica.replica_id.unique_id, _report(replica)
            if report is not None and (name not in self._reported or self._reported[name][0] is not report):
                self._reported[name] = (report, now)
        self._reported = {name: known for name, known in self._reported.items() if name in names}
        self._routed = {name: routed for name, routed in self._routed.items() if name in names}
        self._tell_roster()

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_died(replica_id)
        self._reported.pop(replica_id.unique_id, None)
        self._tell_roster()

    def _tell_roster(self) -> None:
        if (roster := _roster()) is not None:
            known = {replica_id.unique_id: None for replica_id in self.curr_replicas}
            roster.note_reports({**known, **{name: report for name, (report, _) in self._reported.items()}})

    def _standing(self, replica: RunningReplica) -> Standing:
        name, now = replica.replica_id.unique_id, time.monotonic()
        running = self.replica_queue_len_cache.get(replica.replica_id) or 0
        if name not in self._reported:
            return Standing(name, ready=False, running=running)
        report, at = self._reported[name]
        standing = Standing(
            name,
            ready=report.ready,
            paused=bool(report.paused),
            slots=report.limits.slots if report.limits else 1,
            running=running,
            held=report.held,
            per_id=report.per_id,
            per_reply=report.per_reply,
            idle=report.idle + (now - at),
        )
        return self._with_routed(standing, report, now)

    def _with_routed(self, standing: Standing, report: Report, now: float) -> Standing:
        routed = self._routed.get(standing.name)
        if routed is None or routed.key in report.seen or now - routed.at > self._trust:
            return standing
        others = standing.held[: standing.slots - 1]
        return replace(standing, held=(routed.cache, *others), idle=now - routed.at)


def _work_of(request: PendingRequest | None) -> Work | None:
    first = request.args[0] if request is not None and request.args else None
    return first if isinstance(first, Work) else None


def _report(replica: RunningReplica) -> Report | None:
    return replica.routing_stats.get("report") if replica.routing_stats else None


def _roster() -> Roster | None:
    """The roster of the ingress in this process; None when there is no ingress here."""
    try:
        found = getattr(serve.get_replica_context().servable_object, "roster", None)
    except RayServeException:
        return None
    return found if isinstance(found, Roster) else None
