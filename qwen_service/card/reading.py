"""Reads the cards once, through axcl-smi or the files of the board itself, and reboots a card."""

import asyncio
import shutil
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_service.card.faults import explain
from qwen_service.card.smi import Card, read_board, read_table
from qwen_service.errors import DeviceLost
from qwen_service.models.machine import Machine
from qwen_service.process.child import run_tool
from qwen_service.settings import Settings

ALREADY_RUNNING = "is already running"  # axcl-smi takes one caller at a time
REBOOT_TIMEOUT = 60.0  # seconds; a reboot resets the card and loads its firmware


@dataclass(frozen=True, slots=True)
class Reading:
    """The result of one reading. `fault` says in plain words what is wrong, and the cure."""

    cards: tuple[Card, ...] = ()
    fault: str = ""


ReadCards = Callable[[], Coroutine[Any, Any, Reading | None]]  # None: axcl-smi was busy, try again


class AxclSmi:
    """Cards on PCIe, through the vendor's tool."""

    def __init__(self, program: str = "axcl-smi", timeout: float = 5.0) -> None:
        self._program, self._timeout = program, timeout

    @property
    def is_installed(self) -> bool:
        return shutil.which(self._program) is not None

    async def read(self) -> Reading | None:
        try:
            result = await run_tool([self._program], self._timeout)
        except TimeoutError:
            return Reading(fault=f"The card does not answer: axcl-smi hung for {self._timeout:g} s (npu_timeout).")
        except OSError as error:
            return Reading(fault=f"axcl-smi cannot be run: {error}. It comes with the axclhost package.")
        if ALREADY_RUNNING in result.output:
            return None
        if cards := read_table(result.output):
            return Reading(cards)
        known = explain(result.output)
        last_words = " ".join(result.output.split())[-200:]
        return Reading(fault=str(known) if known else f"axcl-smi shows no card: {last_words or 'no output'}")

    async def reboot(self, index: int) -> None:
        """Reset the card; all that runs on it is lost. Raises DeviceLost."""
        try:
            result = await run_tool([self._program, "reboot", "-d", str(index)], REBOOT_TIMEOUT, input=b"y\n")
        except (OSError, TimeoutError) as error:
            raise DeviceLost(
                f"Card {index} could not be rebooted: {error or f'axcl-smi reboot hung for {REBOOT_TIMEOUT:g} s'}"
            ) from error
        if result.returncode != 0:
            raise DeviceLost(f"Card {index} could not be rebooted: {result.output.strip()[-200:]}")


class BoardFiles:
    """The AX650 board's own NPU, through /proc and /sys under `root`."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._cmm = root / "proc/ax_proc/mem_cmm_info"
        self._thermal = root / "sys/class/thermal/thermal_zone0/temp"

    async def read(self) -> Reading | None:
        return await asyncio.to_thread(self._read)

    def _read(self) -> Reading:
        try:
            memory = self._cmm.read_text(errors="replace")
        except OSError as error:
            return Reading(fault=f"{self._cmm} cannot be read: {error.strerror}. The NPU's driver is not loaded.")
        try:
            thermal = self._thermal.read_text(errors="replace")
        except OSError:  # the board has no such sensor, or the sensor has no value just now
            thermal = ""
        return Reading((read_board(memory, thermal),))


def card_reader(settings: Settings, machine: Machine) -> ReadCards:
    """Return the function that reads the cards of this machine, or the board's own NPU."""
    if machine.is_board:
        return BoardFiles(machine.root).read
    return AxclSmi(settings.axcl_smi, settings.npu_timeout).read


def card_memory(settings: Settings, machine: Machine) -> int | None:
    """Return the KiB of the smallest of the cards in `devices`; None: unknown. Not within a running loop."""
    if not machine.has_npu:
        return None
    reading = asyncio.run(card_reader(settings, machine)())
    cards = reading.cards if reading is not None else ()
    used = [card.cmm_total for card in cards if card.index in settings.devices and card.cmm_total is not None]
    return min(used, default=None)
