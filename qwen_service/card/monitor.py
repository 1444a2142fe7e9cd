"""Watches the cards: reads them every few seconds and judges their temperature by thresholds.

Reading never blocks anybody: a hanging axcl-smi is killed after its timeout, and questions meanwhile are answered
from the last reading. Nothing here starts or stops a runtime.
"""

import asyncio
import logging
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Literal

from qwen_service.card.reading import ReadCards, card_reader
from qwen_service.card.smi import Card
from qwen_service.models.machine import Machine
from qwen_service.settings import Settings

log = logging.getLogger(__name__)

CardState = Literal["unknown", "ok", "warm", "paused", "lost"]


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Temperatures in degrees C. New work pauses above `pause_above` and goes on below `resume_below`."""

    warn_above: float = 75
    pause_above: float = 85
    resume_below: float = 75

    def judge(self, before: CardState, temperature: float | None) -> CardState:
        if temperature is None:
            return "paused" if before == "paused" else "ok"
        if temperature > self.pause_above or (before == "paused" and temperature >= self.resume_below):
            return "paused"
        return "warm" if temperature > self.warn_above else "ok"


@dataclass(frozen=True, slots=True)
class CardStatus:
    card: Card
    state: CardState = "unknown"
    reason: str = ""  # for people; empty while the state is ok


@dataclass
class CardMonitor:
    """`statuses` holds the newest status of each card ever seen. `on_change` is called when the state of a card changes.

    `is_there` tells whether this machine has a card; until it does, no card is looked for.
    """

    read: ReadCards
    thresholds: Thresholds = field(default_factory=Thresholds)
    on_change: Callable[[], None] = lambda: None
    is_there: Callable[[], bool] = lambda: True
    statuses: dict[int, CardStatus] = field(default_factory=dict, init=False)
    fault: str = field(default="", init=False)
    _task: asyncio.Task[None] | None = field(default=None, init=False)

    def start(self, interval: float) -> None:
        self._task = asyncio.create_task(self._run(interval), name="card monitor")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _run(self, interval: float) -> None:
        while True:
            try:
                await self.poll()
            except (
                Exception
            ) as error:  # a defect of ours must show in /health, and must not leave a card paused for ever
                log.exception("reading the cards failed for an unexpected reason")
                self.fault = f"The cards cannot be watched: {error!r}"
            await asyncio.sleep(interval)

    async def poll(self) -> None:
        if not (self.statuses or self.is_there()):
            return
        reading = await self.read()
        if reading is None:
            return
        before = {index: status.state for index, status in self.statuses.items()}
        self.fault = reading.fault
        seen = {card.index: self._judge(card) for card in reading.cards}
        gone = {index: self._lost(status) for index, status in self.statuses.items() if index not in seen}
        self.statuses = gone | seen
        self._report(before)

    def pause_reason(self, devices: Collection[int]) -> str:
        """Why no new work should be given to these cards; empty when nothing speaks against it."""
        paused = (status for status in self.statuses.values() if status.state == "paused")
        return next((status.reason for status in paused if status.card.index in devices), "")

    def _judge(self, card: Card) -> CardStatus:
        before = self.statuses[card.index].state if card.index in self.statuses else "unknown"
        state = self.thresholds.judge(before, card.temperature)
        if state == "ok":
            return CardStatus(card, state)
        bound = f"new work waits until it is below {self.thresholds.resume_below:g} C"
        advice = bound if state == "paused" else f"work pauses above {self.thresholds.pause_above:g} C"
        temperature = "not known" if card.temperature is None else f"{card.temperature:g} C"
        return CardStatus(card, state, f"Card {card.index} is hot: its temperature is {temperature}; {advice}.")

    def _lost(self, status: CardStatus) -> CardStatus:
        why = self.fault or f"Card {status.card.index} has vanished from axcl-smi's list."
        return replace(status, state="lost", reason=why)

    def _report(self, before: dict[int, CardState]) -> None:
        changed = [s for index, s in self.statuses.items() if s.state != before.get(index, "unknown")]
        for status in changed:
            level = logging.INFO if status.state == "ok" else logging.WARNING
            log.log(level, "card %d: %s %s", status.card.index, status.state, status.reason)
        if changed:
            self.on_change()


def card_monitor(settings: Settings, machine: Machine, on_change: Callable[[], None]) -> CardMonitor | None:
    """Make the monitor that the settings ask for; None when npu_poll_interval is 0. A card may appear after the start."""
    if not settings.npu_poll_interval:
        return None
    bounds = Thresholds(settings.npu_warn_above, settings.npu_pause_above, settings.npu_resume_below)
    return CardMonitor(card_reader(settings, machine), bounds, on_change, lambda: machine.has_npu)
