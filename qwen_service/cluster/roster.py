"""The replicas as an ingress knows them. The router updates it from its own thread."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qwen_service.cluster.wire import Report
from qwen_service.operation.state import ReplicaView
from qwen_service.runtime import Capabilities, Limits

FORGOTTEN_AFTER = 3600.0  # seconds after which a node that is gone is not named any more


@dataclass(slots=True)
class _Member:
    report: Report
    replica: str
    gone_since: float | None = None


class Roster:
    """The roster. `on_change` is called in the ingress's loop. Other threads may call the methods `note_...` only."""

    def __init__(self) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self._loop = asyncio.get_running_loop()
        self._members: dict[str, _Member] = {}  # by place, so that a new replica takes the line of its predecessor
        self._unheard = 0  # replicas that run and have not reported yet
        self._working: dict[str, str] = {}  # key of a work -> its replica
        self._change = asyncio.Event()

    # -- called by the router -----------------------------------------------------------------------------------

    def note_reports(self, reports: Mapping[str, Report | None]) -> None:
        """Note the reports of all running replicas, by id; None: no report yet."""
        self._tell(lambda: self._take(reports))

    def note_routed(self, key: str, replica: str) -> None:
        self._tell(lambda: self._working.update({key: replica}))

    def note_completed(self, key: str) -> None:
        self._tell(lambda: self._working.pop(key, None))

    # -- called by the ingress ----------------------------------------------------------------------------------

    @property
    def slots(self) -> int:
        """The number of simultaneous generations on all replicas that take work now."""
        return sum(report.limits.slots for report in self._able if report.limits and not report.paused)

    @property
    def ready(self) -> bool:
        return bool(self._able)

    def loads_quickly(self) -> bool:
        """Whether a request should wait for an engine: one is ready, or a first report is due.

        Ray counts a replica as running when its engine is ready, and its first report comes a moment later: in a redeploy
        of two cards that is when the last old replica has just gone.
        """
        return self.ready or self._unheard > 0 or not self._members

    @property
    def limits(self) -> Limits:
        """The limits that every replica has: a prompt is fitted before a replica is chosen."""
        known = [report.limits for report in self._able if report.limits is not None]
        return Limits(
            context=min(limits.context for limits in known),
            prompt=min(limits.prompt for limits in known),
            slots=sum(limits.slots for limits in known),
        )

    @property
    def capabilities(self) -> Capabilities:
        return next(report.capabilities for report in self._able if report.capabilities is not None)

    def story(self) -> str:
        """The state of all replicas in words."""
        parts = [f"{member.report.where}: {_state(member)}" for member in self._members.values()]
        return "; ".join(parts) or "no engine has reported yet"

    def place_of(self, key: str) -> str:
        """The place where a work runs, for messages."""
        replica = self._working.get(key)
        found = next((m.report.where for m in self._members.values() if replica and m.replica == replica), "")
        return found or "an engine of the cluster"

    def views(self) -> tuple[ReplicaView, ...]:
        return tuple(_view(member) for member in sorted(self._members.values(), key=lambda m: m.report.where))

    async def until(self, condition: Callable[["Roster"], bool]) -> None:
        while not condition(self):
            self._change.clear()
            await self._change.wait()

    async def ended(self, key: str) -> None:
        """Wait until the work has ended, or its replica is gone."""
        await self.until(lambda roster: key not in roster._working)

    # -----------------------------------------------------------------------------------------------------------

    @property
    def _able(self) -> list[Report]:
        return [m.report for m in self._members.values() if m.gone_since is None and m.report.ready]

    def _tell(self, change: Callable[[], object]) -> None:
        def apply() -> None:
            change()
            self._change.set()
            self.on_change()

        self._loop.call_soon_threadsafe(apply)

    def _take(self, reports: Mapping[str, Report | None]) -> None:
        now = time.monotonic()
        self._unheard = sum(report is None for report in reports.values())
        for replica, report in reports.items():
            if report is not None:
                self._members[report.where] = _Member(report, replica)
        for where, member in list(self._members.items()):
            if member.replica not in reports:
                member.gone_since = member.gone_since or now
                if now - member.gone_since > FORGOTTEN_AFTER:
                    del self._members[where]
        self._working = {key: replica for key, replica in self._working.items() if replica in reports}


def _state(member: _Member) -> str:
    if member.gone_since is not None:
        return f"gone for {time.monotonic() - member.gone_since:.0f} s"
    report = member.report
    return " ".join(filter(None, (report.phase, report.progress, report.error if not report.ready else report.paused)))


def _view(member: _Member) -> ReplicaView:
    report = member.report
    gone = member.gone_since is not None
    return ReplicaView(
        node=report.node,
        place=report.place,
        model=report.model,
        state="gone" if gone else "paused" if report.paused else report.phase,
        reason="" if report.ready and not report.paused and not gone else _state(member),
        restarts=report.restarts,
        running=0 if gone else report.running,
        held_tokens=tuple(cache.length for cache in report.held),
        tokens_per_second=round(report.tokens_per_second, 2),
        temperature=report.temperature,
    )
