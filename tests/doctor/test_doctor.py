import json
import os
from pathlib import Path

import pytest
import yaml

from qwen_service.commands.doctor import as_json, as_text
from qwen_service.doctor.examination import configuration, examine
from qwen_service.doctor.finding import Finding
from qwen_service.doctor.host import Account, Host
from qwen_service.models.catalog import PACKAGED
from tests.doctor.examined import findings, only, settings, the
from tests.recorded_machine import RecordedMachine


async def test_a_healthy_machine_with_a_card_has_nothing_wrong(pi: RecordedMachine, models: Path) -> None:
    found = await findings(pi, models)
    assert [f for f in found if f.level == "fail"] == []
    texts = "\n".join(f.text for f in found)
    assert "1 on the PCIe bus (1f4b:0650)" in texts
    assert "card 0 AX650N answers: 41 C" in texts
    assert "/dev/axcl_host can be opened" in texts


async def test_every_warning_and_failure_has_a_cure(pi: RecordedMachine, models: Path) -> None:
    for name in ("dev/axcl_host", "proc/modules", "etc/profile.d/axcl.sh"):
        pi.remove(name)
    for finding in await findings(pi, models):
        assert (finding.level == "ok") != bool(finding.cure), finding


async def test_a_pi_5_is_told_of_the_faster_engine(pi: RecordedMachine, models: Path) -> None:
    assert "qwen-service build-engine" in only(await the("processor", pi, models)).cure


async def test_an_old_python_and_another_processor_are_failures(pi: RecordedMachine, models: Path) -> None:
    new = pi.host(machine="armv7l")
    old = Host(root=new.root, machine=new.machine, path=new.path, python=(3, 9), now=new.now)
    texts = [f.text for f in await findings(pi, models, old) if f.level == "fail"]
    assert texts == ["Python 3.9 is too old", "there are no engines for the processor armv7l"]


async def test_a_clock_of_the_past_is_a_failure(pi: RecordedMachine, models: Path) -> None:
    finding = only(await the("clock", pi, models, pi.host(now=0)))
    assert (finding.level, finding.text) == ("fail", "the clock is wrong: it says 1970-01-01T00:00+00:00")


async def test_little_memory_is_a_warning(pi: RecordedMachine, models: Path) -> None:
    pi.write("proc/meminfo", "MemTotal: 1000000 kB\nMemAvailable: 100000 kB\n")
    assert "102.4 MB of 1.02 GB" in only(await the("memory", pi, models)).text


async def test_a_port_that_is_taken_is_named_with_its_holder(pi: RecordedMachine, models: Path) -> None:
    pi.listen(8000, pid=812, command="/usr/bin/python3 -m http.server")
    finding = only(await the("ports", pi, models))
    assert finding.text == "0.0.0.0:8000, wanted for a runtime, is held by /usr/bin/python3 -m http.server (pid 812)"


async def test_a_port_that_the_service_itself_holds_is_fine(pi: RecordedMachine, models: Path) -> None:
    pi.listen(8080, pid=813, command="/opt/qwen/bin/python -m qwen_service serve")
    found = await the("ports", pi, models)
    assert [f.level for f in found] == ["ok", "ok"]
    assert "held by this service" in found[0].text


async def test_a_card_that_is_not_on_the_bus_is_a_failure_where_axcl_is_installed(
    pi: RecordedMachine, models: Path
) -> None:
    pi.remove("sys/bus/pci/devices/0001:01:00.0/vendor")
    pi.write("usr/bin/axcl/readme", "")
    finding = only(await the("card", pi, models))
    assert "no card on the PCIe bus" in finding.text
    assert "dtoverlay=pciex1-compat-pi5,no-mip" in finding.cure


async def test_a_machine_without_a_card_is_fine(pi: RecordedMachine, models: Path) -> None:
    pi.remove("sys/bus/pci/devices/0001:01:00.0/vendor")
    (finding,) = await the("card", pi, models)
    assert finding.level == "ok"


async def test_a_driver_that_is_not_loaded_is_a_failure(pi: RecordedMachine, models: Path) -> None:
    pi.write("proc/modules", "nvme 1 0 - Live 0x0\n")
    pi.remove("dev/axcl_host")
    texts = [f.text for f in await the("driver", pi, models) if f.level == "fail"]
    assert texts == ["The card's driver is not loaded", "/dev/axcl_host is missing"]


async def test_a_service_user_outside_the_devices_group_is_a_failure(pi: RecordedMachine, models: Path) -> None:
    pi.write("etc/group", f"axcl:x:{os.getgid()}:\n")
    finding = only(await the("user", pi, models))
    assert finding.cure == "sudo usermod -aG axcl qwen, then restart the service."


async def test_known_faults_in_the_kernels_log_are_explained(pi: RecordedMachine, models: Path) -> None:
    pi.write("var/log/kern.log", "Nov 22 kernel: [axcl] device 1: dead!\n")
    finding = only(await the("driver", pi, models))
    assert "heartbeat is lost" in finding.text
    assert "axcl-smi reboot" in finding.cure


async def test_a_card_that_does_not_answer_is_a_failure(
    pi: RecordedMachine, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIM_FAULT", "no_device")
    assert "No card was found" in only(await the("card", pi, models)).text


async def test_axcl_smi_in_use_is_only_a_warning(
    pi: RecordedMachine, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIM_FAULT", "busy")
    assert only(await the("card", pi, models)).level == "warn"


async def test_a_hot_card_and_one_full_of_something_else_are_warned_of(
    pi: RecordedMachine, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = {"temperature": 80, "cmm_used": 6_000_000, "processes": [[7, "/opt/other", 5_900_000]]}
    (tmp_path / "cards.json").write_text(json.dumps({"cards": [card]}))
    monkeypatch.setenv("SIM_CARDS", str(tmp_path / "cards.json"))
    install_qwen3(models)
    hot, full = [f for f in await the("card", pi, models) if f.level != "ok"]
    assert "80 C" in hot.text
    assert "qwen3-4b needs 4779 MiB of card 0" in full.text
    assert "/opt/other (pid 7)" in full.cure


def install_qwen3(models: Path) -> Path:
    folder = models / "qwen3-4b"
    names = [f"qwen3-4b-ax650/qwen3_p128_l{n}_together.axmodel" for n in range(36)]
    names += ["qwen3-4b-ax650/qwen3_post.axmodel", "qwen3-4b-ax650/model.embed_tokens.weight.bfloat16.bin"]
    names += ["qwen3_tokenizer/tokenizer.json", "qwen3_tokenizer/tokenizer_config.json", "main_api_axcl_aarch64"]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    (folder / "main_api_axcl_aarch64").chmod(0o755)
    (folder / "qwen3-4b-ax650/model.embed_tokens.weight.bfloat16.bin").chmod(0o666)
    return folder


async def test_a_complete_model_is_ok(pi: RecordedMachine, models: Path) -> None:
    install_qwen3(models)
    (finding,) = await the("models", pi, models)
    assert finding == Finding("ok", "models", "qwen3-4b is complete")


async def test_a_missing_file_a_missing_run_bit_and_a_pointer_are_named(pi: RecordedMachine, models: Path) -> None:
    folder = install_qwen3(models)
    (folder / "main_api_axcl_aarch64").chmod(0o644)
    (folder / "qwen3-4b-ax650/qwen3_post.axmodel").unlink()
    texts = [f.text for f in await the("models", pi, models) if f.level == "fail"]
    assert texts == [
        "qwen3-4b: missing or incomplete: qwen3-4b-ax650/qwen3_post.axmodel",
        "qwen3-4b: main_api_axcl_aarch64 has no run bit",
    ]
    (folder / "qwen3_tokenizer/tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "1 files are git-lfs pointers" in only(await the("models", pi, models), "fail").text


async def test_an_embedding_that_the_service_user_cannot_write_is_a_failure(pi: RecordedMachine, models: Path) -> None:
    folder = install_qwen3(models)
    (folder / "qwen3-4b-ax650/model.embed_tokens.weight.bfloat16.bin").chmod(0o644)
    finding = only(await the("models", pi, models))
    assert "is not writable for qwen" in finding.text
    assert finding.cure.startswith("sudo chown qwen ")


async def test_what_a_build_cannot_be_told_is_warned_of(pi: RecordedMachine, models: Path) -> None:
    install_qwen3(models)
    found = await examine(pi.host(), settings(models, devices=(0, 1), runtime_port=9000))
    port_for_two, port = [finding for finding in found if finding.area == "models" and finding.level == "warn"]
    assert "has its port compiled in" in port_for_two.text
    assert port_for_two.cure.startswith("Take 1 out of `devices`")
    assert "runtime_port is 9000" in port.text
    assert "stock builds listen on 8000 only" in port.text


async def test_a_build_that_takes_card_and_port_is_fine(pi: RecordedMachine, models: Path) -> None:
    install_qwen3(models)
    manifest = yaml.safe_load((PACKAGED / "qwen3-4b.yaml").read_text())
    manifest["arguments"] += ["--port", "{port}"]
    (models / "manifests").mkdir()
    (models / "manifests" / "qwen3-4b.yaml").write_text(yaml.safe_dump(manifest))
    found = await examine(pi.host(), settings(models, devices=(0, 1), runtime_port=9000))
    assert [finding.text for finding in found if finding.area == "models"] == ["qwen3-4b is complete"]


async def test_a_board_cannot_be_told_another_card(pi: RecordedMachine, models: Path) -> None:
    install_qwen3(models).joinpath("main_api_ax650").write_bytes(b"x")
    pi.write("proc/ax_proc/mem_cmm_info", "")
    found = await examine(pi.host(), settings(models, devices=(1,)))
    assert any("runs on card 0, and cannot be told to use card 1" in finding.text for finding in found)


async def test_a_configured_model_that_is_not_installed_is_a_failure(pi: RecordedMachine, models: Path) -> None:
    found = await examine(pi.host(), settings(models, model="qwen3-0.6b"))
    assert any(f.cure == "qwen-service pull qwen3-0.6b" for f in found)


async def test_a_broken_manifest_is_a_failure_and_the_rest_goes_on(pi: RecordedMachine, models: Path) -> None:
    (models / "manifests").mkdir(parents=True)
    (models / "manifests/x.yaml").write_text("name: [")
    found = await findings(pi, models)
    assert "x.yaml" in only([f for f in found if f.area == "models"]).text
    assert any(f.area == "card" for f in found)


def test_a_broken_configuration_is_a_finding_not_the_end(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("prot: 80\n")
    used, finding = configuration(tmp_path / "config.yaml", None)
    assert finding.level == "fail"
    assert "port" in finding.text
    assert used.port == 8080


def test_root_may_everything_others_by_owner_and_group(tmp_path: Path) -> None:
    path = tmp_path / "device"
    path.touch(mode=0o660)
    path.chmod(0o660)
    owner, group = path.stat().st_uid, path.stat().st_gid
    assert Account("root", 0, frozenset()).may(path, os.R_OK | os.W_OK)
    assert Account("member", owner + 1, frozenset({group})).may(path, os.R_OK | os.W_OK)
    assert not Account("stranger", owner + 1, frozenset({group + 1})).may(path, os.R_OK)


def test_the_report_for_people_counts_and_the_one_for_programs_is_json(pi: RecordedMachine) -> None:
    found = [Finding("ok", "disk", "fine"), Finding("fail", "card", "gone", "reboot it")]
    text = as_text(found)
    assert "fail  card       gone\n                 -> reboot it" in text
    assert text.endswith("1 ok, 0 to look at, 1 wrong")
    report = json.loads(as_json(pi.host(), found))
    assert report["machine"] == "Raspberry Pi 5 Model B Rev 1.0"
    assert report["findings"][1] == {"level": "fail", "area": "card", "text": "gone", "cure": "reboot it"}
