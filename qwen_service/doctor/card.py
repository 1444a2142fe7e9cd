"""Checks the Axera card: on the bus, known to the driver, accessible, answering, with memory for the model."""

import os
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from qwen_service.card.faults import explain
from qwen_service.card.monitor import Thresholds
from qwen_service.card.reading import AxclSmi, BoardFiles, Reading
from qwen_service.card.smi import Card
from qwen_service.doctor.finding import Finding, fail, ok, warn
from qwen_service.doctor.host import AXCL_TOOLS, Host
from qwen_service.models.installed import InstalledModel
from qwen_service.settings import Settings

PCI_ID = ("1f4b", "0650")  # Axera Semiconductor Co., Ltd, AX650N
DRIVER = "axcl"  # its modules are called axcl_*
OVERLAY = "dtoverlay=pciex1-compat-pi5,no-mip"
DEAD = re.compile(r"device \d+: dead", re.IGNORECASE)
OWN_NUMBER = 3  # the device number that an AX650N was seen to report, in any slot
OUR_OWN = "qwen_service", "qwen-service"
KERNEL_LOGS = ("var/log/kern.log", "var/log/dmesg", "var/log/syslog")


async def examine_card(host: Host, settings: Settings, models: list[InstalledModel]) -> AsyncIterator[Finding]:
    if host.machine.is_board:
        for finding in _answers(host, await BoardFiles(host.root).read(), models):
            yield finding
        return
    cards = host.pci_folders(PCI_ID)
    if not cards:
        yield _no_card(host)
        return
    yield ok("card", f"{len(cards)} on the PCIe bus ({':'.join(PCI_ID)})")
    for finding in (*_driver(host), *_device(host), *_profile(host), *_kernel_log(host, settings)):
        yield finding
    program = host.which("axcl-smi")
    if program is None:
        yield fail("card", "There is no axcl-smi", "Install the vendor's axclhost package for this system.")
        return
    reading = await AxclSmi(program).read()
    for finding in _answers(host, reading, models):
        yield finding
    if reading is not None and not reading.cards:
        for finding in _numbering(host, cards):
            yield finding


def _no_card(host: Host) -> Finding:
    if (host.root / AXCL_TOOLS).is_dir():
        cure = "Check that the card sits firmly and has power, then restart the machine."
        if "Raspberry Pi 5" in host.model and OVERLAY not in host.text("boot/firmware/config.txt"):
            cure += f" Some Raspberry Pi 5 also need the line `{OVERLAY}` in /boot/firmware/config.txt."
        return fail("card", "axclhost is installed, but there is no card on the PCIe bus", cure)
    return ok("card", "no Axera card in this machine: models run on the CPU")


def _driver(host: Host) -> Iterator[Finding]:
    modules = [line.split()[0] for line in host.text("proc/modules").splitlines() if line.startswith(DRIVER)]
    if modules:
        yield ok("driver", f"loaded: {', '.join(sorted(modules))}")
    else:
        yield fail(
            "driver",
            "The card's driver is not loaded",
            "Install axclhost for the running kernel (after a kernel update: again), or `sudo modprobe axcl_host`.",
        )


def _device(host: Host) -> Iterator[Finding]:
    device = host.root / "dev/axcl_host"
    if not device.exists():
        cure = "The driver did not start the card: `dmesg | grep -i axcl` shows why."
        yield fail("driver", "/dev/axcl_host is missing", cure)
    elif not os.access(device, os.R_OK | os.W_OK):
        group = host.group_name(device.stat().st_gid)
        yield fail(
            "driver", "This user may not use /dev/axcl_host", f"sudo usermod -aG {group} $USER, then log in again."
        )
    else:
        yield ok("driver", "/dev/axcl_host can be opened")


def _profile(host: Host) -> Iterator[Finding]:
    scripts = [host.text("etc/profile"), *(host.text(str(p)) for p in (host.root / "etc/profile.d").glob("*.sh"))]
    if any("/usr/lib/axcl" in script or "/usr/bin/axcl" in script for script in scripts):
        yield ok("driver", "/etc/profile sets the paths of AXCL")
    else:
        yield warn(
            "driver",
            "/etc/profile does not set PATH and LD_LIBRARY_PATH for AXCL",
            "Install axclhost anew, or set LD_LIBRARY_PATH=/usr/lib/axcl for the service.",
        )


def _kernel_log(host: Host, settings: Settings) -> Iterator[Finding]:
    engine_log = (settings.log_folder / "model.log").absolute()
    logs = [host.tail(name) for name in (*KERNEL_LOGS, str(engine_log))]
    for fault in {str(fault): fault for fault in map(explain, logs) if fault}.values():
        yield warn("driver", f"The logs show a fault: {fault.meaning}", fault.cure)


def _numbering(host: Host, cards: list[Path]) -> Iterator[Finding]:
    """onnxsim/onnxsim pull request 1215: the driver drops the heartbeats of a card with another number than its bus."""
    buses = {int(card.name.split(":")[1], 16) for card in cards if card.name.count(":") == 2}
    if DEAD.search("".join(host.tail(name) for name in KERNEL_LOGS)) and buses - {OWN_NUMBER}:
        yield warn(
            "card",
            f"The driver called the card dead, on PCIe bus {', '.join(map(str, sorted(buses)))}. A healthy card that calls"
            f" itself {OWN_NUMBER} is not heard by drivers that expect the number of its bus",
            "If it never worked on this machine: take another slot, or a driver with `slot_index_force=3`"
            " (github.com/onnxsim/onnxsim/pull/1215). If it did work: `axcl-smi reboot`.",
        )


def _answers(host: Host, reading: Reading | None, models: list[InstalledModel]) -> Iterator[Finding]:
    if reading is None:
        yield warn("card", "axcl-smi is in use by another program", "Run the doctor again in a moment.")
    elif not reading.cards:
        yield fail("card", reading.fault, "See docs/operations.md, recovery of a lost card.")
    else:
        for card in reading.cards:
            yield _card(card)
            rooms = [found for model in models if (found := _room(card, model))]
            yield from rooms
            if all(room.level == "ok" for room in rooms):
                yield from _holders(host, card, models)


def _card(card: Card) -> Finding:
    degrees = "temperature unknown" if card.temperature is None else f"{card.temperature:g} C"
    text = f"card {card.index} {card.name} answers: {degrees}, driver {card.driver or card.firmware or 'unknown'}"
    if card.temperature is not None and card.temperature > Thresholds().warn_above:
        return warn("card", text, "It is hot: give it a heat sink and air.")
    return ok("card", text)


def _holders(host: Host, card: Card, models: list[InstalledModel]) -> Iterator[Finding]:
    """Programs of others on the card. A card serves several, in turns, as long as its memory suffices."""
    for process in card.processes:
        who = f"{process.name}\n{host.command_line(process.pid)}"
        if not any(own in who for own in (*OUR_OWN, *(str(model.folder) for model in models))):
            yield warn(
                "card",
                f"card {card.index} is shared with {process.name} (pid {process.pid}), which holds {process.cmm_kib // 1024} MiB:"
                " each waits for the other",
                f"Stop it where it is not needed (`systemctl status {process.pid}` names its unit), but never while it"
                " loads: a program killed then can take the card down until a restart.",
            )


def _room(card: Card, model: InstalledModel) -> Finding | None:
    """Whether the model would fit. Memory of our own running model counts as free."""
    need, total = model.spec.card_memory_kib, card.cmm_total
    if need is None or total is None or card.cmm_used is None:
        return None
    others = card.cmm_used - sum(p.cmm_kib for p in card.processes if str(model.folder) in p.name)
    figures = f"{model.name} needs {need // 1024} MiB of card {card.index}, {(total - others) // 1024} MiB are free"
    if need > total:
        return fail("card", figures, "The card is too small for this model; choose another model.")
    if need > total - others:
        holders = ", ".join(f"{p.name} (pid {p.pid})" for p in card.processes) or "something that has ended badly"
        return warn("card", figures, f"The card's memory is held by {holders}: stop it, or `axcl-smi reboot`.")
    return ok("card", figures)
