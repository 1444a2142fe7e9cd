"""Brings a lost card back before a runtime is started on it."""

import asyncio
import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from qwen_service.card.faults import CardFault
from qwen_service.card.reading import AxclSmi
from qwen_service.card.smi import Card
from qwen_service.errors import DeviceLost, StartFailed
from qwen_service.models.machine import Machine
from qwen_service.runtime import LoadProgress
from qwen_service.settings import Settings

log = logging.getLogger(__name__)

MEMORY = 600.0  # seconds that a runtime's complaints about its card are remembered


class CardRecovery:
    """Reboots lost cards, at most `per_hour` times an hour; 0: never. Without the driver's `device_file` it does nothing."""

    def __init__(
        self, smi: AxclSmi, device_file: Path, *, per_hour: int, patience: float = 60.0, pause: float = 1.0
    ) -> None:
        self._smi, self._device_file = smi, device_file
        self._per_hour, self._patience, self._pause = per_hour, patience, pause
        self._reboots: deque[float] = deque()
        self._complaints: defaultdict[int, list[float]] = defaultdict(list)
        self._suspected: set[int] = set()

    def note(self, index: int, fault: CardFault) -> None:
        """Remember that a runtime complained of its card: the card may be lost although axcl-smi lists it."""
        if fault.reboot_after:
            now = time.monotonic()
            self._complaints[index] = [then for then in self._complaints[index] if now - then < MEMORY] + [now]
            if len(self._complaints[index]) >= fault.reboot_after:
                self._suspected.add(index)

    def will_reboot(self, index: int) -> bool:
        """Whether the card will be rebooted before the next start, so that the start is worth trying."""
        return index in self._suspected and self._may_reboot and self._reboots_this_hour() < self._per_hour

    async def prepare(self, index: int, needed_kib: int) -> None:
        """Wait until the card answers and has `needed_kib` of its memory free.

        Raises DeviceLost when it does not come back. What may not be rebooted, or stays full, is left to the runtime to
        complain about.
        """
        card = await self._wait_for(index, lambda _: True)
        if card is None and not self._may_reboot:
            return
        if card is None or self.will_reboot(index):
            await self._reboot(index)
            card = await self._wait_for(index, lambda found: found is not None)
        if card is None:
            raise DeviceLost(
                f"Card {index} did not come back within {self._patience:g} s after its reboot. Restart the machine."
            )
        if not _has_room(card, needed_kib):
            await self._wait_for(index, lambda found: found is not None and _has_room(found, needed_kib))

    @property
    def _may_reboot(self) -> bool:
        return self._per_hour > 0 and self._device_file.exists() and self._smi.is_installed

    async def _reboot(self, index: int) -> None:
        if self._reboots_this_hour() >= self._per_hour:
            raise DeviceLost(
                f"Card {index} does not answer and was rebooted {self._per_hour} times in the last hour already"
                " (npu_reboots_per_hour). Restart the machine; look at power and cooling."
            )
        self._reboots.append(time.monotonic())
        self._suspected.discard(index)
        self._complaints[index].clear()
        log.warning("card %d is lost; axcl-smi reboots it (reboot %d within an hour)", index, len(self._reboots))
        await self._smi.reboot(index)

    def _reboots_this_hour(self) -> int:
        while self._reboots and time.monotonic() - self._reboots[0] > 3600:
            self._reboots.popleft()
        return len(self._reboots)

    async def _wait_for(self, index: int, good: Callable[[Card | None], bool]) -> Card | None:
        """Wait until the card is `good`, at most `patience` seconds. Returns its last reading."""
        card, deadline = None, time.monotonic() + self._patience
        while time.monotonic() < deadline:
            if (reading := await self._smi.read()) is not None:
                card = next((found for found in reading.cards if found.index == index), None)
                if good(card):
                    break
            await asyncio.sleep(self._pause)
        return card


async def prepare_cards(
    recovery: CardRecovery | None, devices: Sequence[int], needed_kib: int, progress: LoadProgress
) -> None:
    """Bring lost cards back, and wait until the memory of the last program is free.

    Raises StartFailed.
    """
    if recovery is None:
        return
    for device in devices:
        progress(f"looking at card {device}")
        try:
            await recovery.prepare(device, needed_kib)
        except DeviceLost as error:
            raise StartFailed(error.message) from error


@contextmanager
def reboot_may_help(recovery: CardRecovery | None, devices: Sequence[int]) -> Iterator[None]:
    """Mark a failed start as not permanent when the card will be rebooted before the next start."""
    try:
        yield
    except StartFailed as failure:
        if recovery is None or not any(map(recovery.will_reboot, devices)):
            raise
        raise StartFailed(failure.message) from failure


def card_recovery(settings: Settings, machine: Machine) -> CardRecovery | None:
    """Make the recovery that the settings ask for; None on the board itself, whose NPU cannot be rebooted alone."""
    if machine.is_board:
        return None
    per_hour = settings.npu_reboots_per_hour if settings.npu_recovery == "reboot" else 0
    smi = AxclSmi(settings.axcl_smi, settings.npu_timeout)
    return CardRecovery(smi, machine.root / "dev/axcl_host", per_hour=per_hour)


def _has_room(card: Card, needed_kib: int) -> bool:
    return card.cmm_free is None or card.cmm_free >= needed_kib
