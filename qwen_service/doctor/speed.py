"""Checks what slows a card or model down: clock, interrupts, PCIe, power, swap, storage.

Nothing is changed. Each finding has the reading, the reason and the command. Where a figure was measured on another
board, the finding says so.
"""

import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from qwen_service.doctor.card import PCI_ID
from qwen_service.doctor.finding import Finding, ok, warn
from qwen_service.doctor.host import Host
from qwen_service.install.progress import human_bytes
from qwen_service.process.child import run_tool
from qwen_service.settings import Settings

TUNING = "`sudo systemctl enable --now qwen-tuning` does this at every start (in a checkout: scripts/tune_host.sh)."
GEN2 = 5.0  # GT/s per lane: the card's maximum, on at most two lanes
GEN3_LINE = re.compile(r"^\s*dtparam=pciex1_gen=3", re.MULTILINE)
# The bits of `vcgencmd get_throttled` for now; 16 bits higher, the same since the machine started.
THROTTLING = {0: "under-voltage", 1: "a capped clock", 2: "throttling", 3: "the soft temperature limit"}
UNUSUAL_PAGES = (
    ", as a Raspberry Pi 5 has them by default. A program that ends with words about page size or alignment was built for"
    " 4 KiB: set `kernel=kernel8.img` in /boot/firmware/config.txt"
)
POWER_BITS = 0x1 | 0x1 << 16
SWAP_IN_USE = 256 * 1024  # KiB: up to this much is usual after a start
SD_CARD = 90  # MB/s that a Raspberry Pi 5 reads from an SD card, at most


async def examine_speed(host: Host, settings: Settings) -> AsyncIterator[Finding]:
    cards = host.pci_folders(PCI_ID)
    findings = (
        *_governor(host, has_card=bool(cards)),
        *_interrupts(host, cards),
        *_links(host, cards),
        *_page_size(host),
        *_swap(host),
        *_storage(host, settings.models_dir),
    )
    for finding in findings:
        yield finding
    if program := host.which("vcgencmd"):
        yield await _throttling(program)


def _governor(host: Host, *, has_card: bool) -> Iterator[Finding]:
    files = sorted((host.root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor"))
    governors = {host.text(str(path)).strip() for path in files} - {""}
    if not governors:
        return
    reading = f"the CPU's governor is {', '.join(sorted(governors))}"
    if has_card and governors != {"performance"}:
        yield warn(
            "speed",
            f"{reading}: between two steps of the card the clock falls, and each step waits for it to rise. On RK3588"
            " boards the governor and the place of interrupts made 19 to 100 %; on a Raspberry Pi 5 nobody has measured it",
            f"`echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor`. {TUNING}",
        )
    else:
        yield ok("speed", reading)


def _interrupts(host: Host, cards: list[Path]) -> Iterator[Finding]:
    """Check the card's interrupts: by default one core serves nearly all interrupts, and the card's are better elsewhere."""
    counts = host.interrupts()
    ours = {path.name for card in cards for path in (host.root / card / "msi_irqs").glob("*")}
    cores = max((len(row) for row in counts.values()), default=0)
    if cores < 2 or not ours & counts.keys():
        return
    others = [
        sum(row[core] for number, row in counts.items() if number not in ours and core < len(row))
        for core in range(cores)
    ]
    busiest = max(range(cores), key=lambda core: others[core])
    for number in sorted(ours & counts.keys(), key=int):
        core = max(range(len(counts[number])), key=lambda core: counts[number][core])
        reading = f"the card's interrupt {number} is served by core {core}"
        if core == busiest and others[core] > sum(others) / 2:
            share = round(100 * others[core] / sum(others))
            yield warn(
                "speed",
                f"{reading}, which also serves {share} % of all others: the card's finished work waits for that core",
                f"`echo {cores - 1 if busiest != cores - 1 else 0} | sudo tee /proc/irq/{number}/smp_affinity_list`. {TUNING}",
            )
        else:
            yield ok("speed", reading)


def _links(host: Host, cards: list[Path]) -> Iterator[Finding]:
    for card in cards:
        speed = _gigatransfers(host.text(f"{card}/current_link_speed"))
        width, most = (host.text(f"{card}/{which}_link_width").strip() for which in ("current", "max"))
        if speed is None:
            continue
        reading = f"the card's PCIe link at {card.name} runs at {speed:g} GT/s on {width or '?'} of {most or '?'} lanes"
        pi = "Raspberry Pi" in host.model  # its PCIe connector has one lane
        if speed < GEN2:
            other = "ask for Gen 2 with `dtparam=pciex1_gen=2`" if pi else "use another slot"
            cure = f"Seat card, HAT and cable anew, or {other}."
            yield warn("speed", f"{reading}; the card can do {GEN2:g}: a bad contact makes a link slower", cure)
        elif not pi and width and most and int(width) < int(most):
            yield warn("speed", f"{reading}: models load more slowly", "Take a slot with more lanes, if there is one.")
        else:
            yield ok("speed", reading)
    if cards and GEN3_LINE.search(host.text("boot/firmware/config.txt")):
        yield warn(
            "speed",
            "/boot/firmware/config.txt asks for PCIe Gen 3, which cannot help: the card is Gen 2 on two lanes at most",
            "Take `dtparam=pciex1_gen=3` out of it, unless another device on the same connector needs it.",
        )


def _gigatransfers(text: str) -> float | None:
    match = re.match(r"([\d.]+) GT/s", text)
    return float(match[1]) if match else None


def _page_size(host: Host) -> Iterator[Finding]:
    match = re.search(r"^KernelPageSize:\s+(\d+) kB", host.text("proc/self/smaps"), re.MULTILINE)
    if match is not None:
        usual = "" if match[1] == "4" else UNUSUAL_PAGES
        yield ok("speed", f"memory pages of {match[1]} KiB{usual}")


def _swap(host: Host) -> Iterator[Finding]:
    rows = [line.split() for line in host.text("proc/swaps").splitlines()[1:]]
    for name, used in ((row[0], int(row[3])) for row in rows if len(row) >= 4):
        if used > SWAP_IN_USE and "zram" not in name:
            yield warn(
                "speed",
                f"{human_bytes(used * 1024)} are swapped out to {name}: what is read back from there stalls a reply",
                "Stop other programs (`top`, then M, sorts by memory), or take a smaller model or `context_size`.",
            )


def _storage(host: Host, models_dir: Path) -> Iterator[Finding]:
    device = host.device_of(models_dir)
    disk = re.sub(r"p\d+$", "", Path(device).name)
    if disk.startswith("mmcblk") and host.text(f"sys/block/{disk}/device/type").strip() in ("SD", ""):
        yield warn(
            "speed",
            f"{models_dir} is on an SD card ({disk}): it reads {SD_CARD} MB/s at most, so that 1.5 GB load in no less"
            f" than {1500 // SD_CARD} s. Replies are not slower",
            "Put models_dir on an NVMe or USB 3 disk; moved models are found where models_dir says.",
        )


async def _throttling(program: str) -> Finding:
    """Check for throttling: a Raspberry Pi's firmware lowers the clock when power or cooling is insufficient."""
    try:
        output = (await run_tool([program, "get_throttled"], 5)).output
    except (OSError, TimeoutError) as error:
        output = str(error)
    match = re.search(r"throttled=0x([0-9a-fA-F]+)", output)
    if match is None:
        return warn(
            "speed",
            f"vcgencmd does not tell whether the clock is lowered: {output.strip()[:100]}",
            "Run the doctor with sudo.",
        )
    bits = int(match[1], 16)
    now = [name for bit, name in THROTTLING.items() if bits >> bit & 1]
    before = [name for bit, name in THROTTLING.items() if bits >> (bit + 16) & 1]
    if not bits:
        return ok("speed", "power and cooling have sufficed since the start of the machine (vcgencmd get_throttled)")
    power = "Use the 27 W supply and a short cable" if bits & POWER_BITS else "Give the computer a fan"
    return warn(
        "speed",
        f"the firmware lowers the clock: now {', '.join(now) or 'nothing'}; since the start {', '.join(before) or 'nothing'}"
        f" (throttled=0x{bits:x})",
        f"{power}; the counters are cleared by a restart.",
    )
