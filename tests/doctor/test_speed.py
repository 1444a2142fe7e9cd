"""What the doctor finds on machines whose card is slower than it need be."""

import json
import subprocess
from pathlib import Path

import pytest

from tests import ROOT
from tests.doctor.examined import only, the
from tests.recorded_machine import RecordedMachine

CARD = "sys/bus/pci/devices/0001:01:00.0"
GOVERNORS = [f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor" for core in range(4)]
INTERRUPTS = """\
           CPU0       CPU1       CPU2       CPU3
 11:     900000       1000       1000       1000     GICv2  30 Level     arch_timer
106:      {0}          0          0          {3}  MIP-MSI 524288 Edge      axcl_host
IPI0:      4000       4000       4000       4000       Rescheduling interrupts
Err:          0
"""


def interrupts(pi: RecordedMachine, *, core: int) -> None:
    counts = [0, 0, 0, 0]
    counts[core] = 5000
    pi.write("proc/interrupts", INTERRUPTS.format(*counts))
    pi.write(f"{CARD}/msi_irqs/106", "msi\n")
    pi.write("proc/irq/106/smp_affinity_list", "0-3\n")


async def test_a_machine_that_tells_nothing_is_not_complained_of(pi: RecordedMachine, models: Path) -> None:
    assert [finding.level for finding in await the("speed", pi, models)] == ["ok"]


async def test_a_governor_that_saves_power_is_told_where_a_card_is(pi: RecordedMachine, models: Path) -> None:
    for path in GOVERNORS:
        pi.write(path, "ondemand\n")
    finding = only(await the("speed", pi, models))
    assert finding.text.startswith("the CPU's governor is ondemand")
    assert "on a Raspberry Pi 5 nobody has measured it" in finding.text
    assert "echo performance | sudo tee" in finding.cure
    pi.remove(f"{CARD}/vendor")
    assert [f.level for f in await the("speed", pi, models)] == ["ok", "ok"]


async def test_an_interrupt_on_the_core_that_serves_all_others_is_told(pi: RecordedMachine, models: Path) -> None:
    interrupts(pi, core=0)
    finding = only(await the("speed", pi, models))
    assert finding.text.startswith(
        "the card's interrupt 106 is served by core 0, which also serves 100 % of all others"
    )
    assert "echo 3 | sudo tee /proc/irq/106/smp_affinity_list" in finding.cure
    interrupts(pi, core=3)
    assert [f.level for f in await the("speed", pi, models)] == ["ok", "ok"]


async def test_a_link_that_fell_back_is_told_and_one_lane_of_a_raspberry_pi_is_not(
    pi: RecordedMachine, models: Path
) -> None:
    pi.write(f"{CARD}/current_link_speed", "2.5 GT/s PCIe\n")
    pi.write(f"{CARD}/current_link_width", "1\n")
    pi.write(f"{CARD}/max_link_width", "2\n")
    finding = only(await the("speed", pi, models))
    assert finding.text.startswith("the card's PCIe link at 0001:01:00.0 runs at 2.5 GT/s on 1 of 2 lanes")
    assert "pciex1_gen=2" in finding.cure
    pi.write(f"{CARD}/current_link_speed", "5.0 GT/s PCIe\n")
    assert [f.level for f in await the("speed", pi, models)] == ["ok", "ok"]
    pi.remove("proc/device-tree/model")
    assert "more lanes" in only(await the("speed", pi, models)).cure


async def test_asking_for_the_third_generation_is_told_to_be_in_vain(pi: RecordedMachine, models: Path) -> None:
    pi.write("boot/firmware/config.txt", "#dtparam=pciex1_gen=3\n")
    assert [f.level for f in await the("speed", pi, models)] == ["ok"]
    pi.write("boot/firmware/config.txt", "[all]\ndtparam=pciex1\ndtparam=pciex1_gen=3\n")
    assert "which cannot help" in only(await the("speed", pi, models)).text


@pytest.mark.parametrize(("kib", "words"), [(4, "pages of 4 KiB"), (16, "kernel=kernel8.img")])
async def test_the_page_size_is_told(pi: RecordedMachine, models: Path, kib: int, words: str) -> None:
    pi.write(
        "proc/self/smaps", f"5500-5600 r--p 0000 b3:02 1 /usr/bin/python3.13\nSize: 4 kB\nKernelPageSize: {kib:8} kB\n"
    )
    assert words in (await the("speed", pi, models))[0].text


@pytest.mark.parametrize(
    ("bits", "reading", "cure"),
    [
        ("0x50005", "now under-voltage, throttling; since the start under-voltage, throttling", "27 W supply"),
        ("0x80000", "now nothing; since the start the soft temperature limit", "a fan"),
    ],
)
async def test_what_the_firmware_does_about_power_and_heat_is_told(
    pi: RecordedMachine, models: Path, monkeypatch: pytest.MonkeyPatch, bits: str, reading: str, cure: str
) -> None:
    monkeypatch.setenv("SIM_THROTTLED", bits)
    finding = only(await the("speed", pi, models))
    assert reading in finding.text
    assert cure in finding.cure


async def test_swapping_to_a_disk_is_told_and_compressed_memory_is_not(pi: RecordedMachine, models: Path) -> None:
    head = "Filename Type Size Used Priority\n"
    pi.write("proc/swaps", head + "/dev/zram0 partition 2097152 900000 100\n/var/swap file 2097152 1000 -2\n")
    assert [f.level for f in await the("speed", pi, models)] == ["ok"]
    pi.write("proc/swaps", head + "/var/swap file 2097152 900000 -2\n")
    assert "921.6 MB are swapped out to /var/swap" in only(await the("speed", pi, models)).text


async def test_models_on_an_sd_card_are_told_and_on_a_disk_are_not(pi: RecordedMachine, models: Path) -> None:
    pi.write("proc/mounts", "/dev/mmcblk0p2 / ext4 rw 0 0\n")
    pi.write("sys/block/mmcblk0/device/type", "SD\n")
    assert "is on an SD card (mmcblk0)" in only(await the("speed", pi, models)).text
    pi.write("proc/mounts", f"/dev/mmcblk0p2 / ext4 rw 0 0\n/dev/nvme0n1p1 {models.parent} ext4 rw 0 0\n")
    assert [f.level for f in await the("speed", pi, models)] == ["ok"]


async def test_stackflow_on_the_runtimes_port_is_called_by_its_name(pi: RecordedMachine, models: Path) -> None:
    pi.listen(8000, pid=700, command="python3 /opt/m5stack/bin/ModuleLLM-OpenAI-Plugin/api_server.py")
    finding = only(await the("ports", pi, models))
    assert "M5Stack's StackFlow" in finding.text
    assert "systemctl list-units 'llm-*'" in finding.cure


async def test_a_strange_program_on_the_card_is_told_and_our_own_is_not(
    pi: RecordedMachine, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = {"processes": [[700, "/opt/m5stack/bin/llm_llm", 2_097_152], [800, "axllm", 1000]]}
    (tmp_path / "cards.json").write_text(json.dumps({"cards": [card]}))
    monkeypatch.setenv("SIM_CARDS", str(tmp_path / "cards.json"))
    pi.process(700, "/opt/m5stack/bin/llm_llm")
    pi.process(799, "/opt/qwen/venv/bin/python -m qwen_service serve")
    pi.process(800, "axllm serve", parent=799)
    finding = only(await the("card", pi, models))
    assert finding.text.startswith("card 0 is shared with /opt/m5stack/bin/llm_llm (pid 700), which holds 2048 MiB")
    assert "never while it loads" in finding.cure


async def test_a_card_called_dead_on_another_bus_than_its_own_number_is_explained(
    pi: RecordedMachine, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIM_FAULT", "no_device")
    pi.write("var/log/kern.log", "Nov 22 kernel: [axcl] device 1: dead!\n")
    (warning,) = [f for f in await the("card", pi, models) if f.level == "warn"]
    assert "on PCIe bus 1." in warning.text
    assert "slot_index_force=3" in warning.cure


def test_the_tuning_sets_governor_and_interrupt_and_undoes_both(pi: RecordedMachine) -> None:
    for path in GOVERNORS:
        pi.write(path, "ondemand\n")
    interrupts(pi, core=0)

    def readings() -> list[str]:
        return [(pi.root / path).read_text().strip() for path in (*GOVERNORS, "proc/irq/106/smp_affinity_list")]

    def tune(what: str) -> None:
        script = str(ROOT / "scripts/tune_host.sh")
        subprocess.run([script, what], env={"PATH": "/usr/bin:/bin", "TUNE_ROOT": str(pi.root)}, check=True)

    tune("start")
    tune("start")  # what it was before is not what the first start made of it
    assert readings() == ["performance"] * 4 + ["3"]
    tune("stop")
    assert readings() == ["ondemand"] * 4 + ["0-3"]
    tune("stop")
