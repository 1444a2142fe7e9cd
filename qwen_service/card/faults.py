"""What the driver's and the runtimes' error lines about the card mean, in plain words, and what helps."""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CardFault:
    pattern: re.Pattern[str]
    meaning: str
    cure: str
    permanent: bool = False  # restarting the runtime does not help: a person must act
    reboot_after: int = 1  # after so many complaints the card is rebooted; 0: a reboot does not help

    def __str__(self) -> str:
        return f"{self.meaning}. {self.cure}"


def _fault(pattern: str, meaning: str, cure: str, *, permanent: bool = False, reboot_after: int = 1) -> CardFault:
    return CardFault(re.compile(pattern, re.IGNORECASE), meaning, cure, permanent, reboot_after)


FAULTS = (
    _fault(
        r"device \d+: dead|heartbeat (?:lost|timeout)",
        "The card's heartbeat is lost",
        "`axcl-smi reboot -d 0` brings it back, or a restart of the machine; npu_recovery: reboot does it by itself.",
    ),
    _fault(
        r"no device connected|no devices? found",
        "No card was found",
        "See whether lspci shows `Axera Semiconductor Co., Ltd Device 0650`. If not: check seat and power; a"
        " Raspberry Pi 5 may need `dtoverlay=pciex1-compat-pi5,no-mip` in /boot/firmware/config.txt.",
        permanent=True,
    ),
    _fault(
        r"0x8030010b|open /dev/axcl_host fail",
        "The card's driver is not loaded",
        "Install the axclhost package for the running kernel, or load it: `sudo modprobe axcl_host`.",
        permanent=True,
    ),
    _fault(
        r"0x80300186|request ports from device \d+ fail",
        "The card cannot be opened",
        "Another process holds it (`axcl-smi` lists them), or the service's user may not use it.",
        reboot_after=0,
    ),
    _fault(
        r"(?:\[E\]|\bERR ).*AX_ENGINE_Execute",
        "The NPU failed while it computed",
        "The runtime is restarted; if it happens again and again, look at temperature and power.",
        reboot_after=3,
    ),
)


def explain(output: str) -> CardFault | None:
    """Find the first known fault in the output of a runtime, axcl-smi or the kernel. None: the output names none."""
    return next((fault for fault in FAULTS if fault.pattern.search(output)), None)
