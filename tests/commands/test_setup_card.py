"""`qwen-service setup` typed at a terminal of a machine with a card: the menu, the download, the load, the answer.

The machine is recorded, the card and the hub are simulators; what is pulled and started is a program of its own.
"""

import sys
from pathlib import Path

import pytest
import yaml

from tests.card_service import PLAYED, SIMULATORS, CardHost
from tests.hub_server import hub_server, put
from tests.recorded_machine import RecordedMachine
from tests.terminal import ENVIRONMENT, terminal

REPO, COMMIT = "people/card", "c" * 40
# The command as it is, but for the machine that it looks at.
AT_THE_CARD = f"""
import argparse, sys
from pathlib import Path
from qwen_service.commands import setup
from qwen_service.doctor.host import Host

host = Host.at(Path(sys.argv.pop(1)), machine="aarch64", path="{SIMULATORS}")
setup.Host = lambda: host
parser = argparse.ArgumentParser()
setup.add_setup_command(parser.add_subparsers())
options = parser.parse_args(sys.argv[1:])
sys.exit(options.run(options))
"""


@pytest.fixture
def newcomer(tmp_path: Path, small_tokenizer_folder: Path) -> Path:
    """A machine with a card and no model; the hub has a model for it, whose manifest the owner has written."""
    host = CardHost(tmp_path, small_tokenizer_folder)
    program = host.install("swift", without=("port",), decode_rate=99, measured_on="simulated card")
    manifest = host.models / "manifests/swift.yaml"
    files = [path for path in sorted((host.models / "swift").rglob("*")) if path.is_file()]
    put(tmp_path / "hub", REPO, COMMIT, {str(path.relative_to(program.parent)): path.read_bytes() for path in files})
    (host.models / "swift").rename(tmp_path / "gone")
    listed = [{"path": str(path.relative_to(program.parent))} for path in files if path != program]
    manifest.write_text(
        yaml.safe_dump(yaml.safe_load(manifest.read_text()) | {"source": {"repo": REPO}, "files": listed})
    )
    RecordedMachine(tmp_path / "root").write("proc/meminfo", "MemTotal: 8255000 kB\nMemAvailable: 6000000 kB\n")
    settings = {
        "port": host.ports + 1,
        "runtime_port": host.ports,
        "tokenizer_port": 0,
        "axcl_smi": str(SIMULATORS / "axcl-smi"),
        "state_dir": str(tmp_path / "state"),
        "models_dir": str(host.models),
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path


def test_a_card_is_found_a_model_pulled_and_its_answer_shown(newcomer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub_server(newcomer / "hub") as hub:
        environment = {
            "QWEN_CONFIG": str(newcomer / "config.yaml"),
            "HF_ENDPOINT": hub.url,
            "SIM_CARDS": str(newcomer / "cards.json"),
            "SIM_PORT": str(yaml.safe_load((newcomer / "config.yaml").read_text())["runtime_port"]),
        }
        for name, value in environment.items():
            monkeypatch.setitem(ENVIRONMENT, name, value)
        with terminal(str(newcomer / "root"), "setup", "--question", "What is a Pi?", script=AT_THE_CARD) as setup:
            shown = setup.until("Which one? [")
            assert "Machine  Raspberry Pi 5 Model B Rev 1.0, 8.45 GB of memory" in shown
            assert "Card     its driver is loaded" in shown
            (row,) = [line for line in shown.splitlines() if "(recommended)" in line]
            assert row.split()[1:3] == ["swift", "card"]
            assert "99 tokens/s on a simulated card" in row
            setup.type("\n")
            shown = setup.until("verified and installed in")
            assert f"of {REPO} at {COMMIT[:12]}" in shown
            setup.until("Ask the model something now? [Y/n] ")
            setup.type("\n")
            setup.until("Loading swift onto the card ...")
            answer = setup.until("(first word after ").partition("> What is a Pi?")[2]
            assert len(answer.strip()) > 10
            setup.until("Next: qwen-service serve")
            assert setup.process.wait(60) == 0
    program = newcomer / "models/swift/main_api"
    assert program.read_text() == f"#!{sys.executable}\n{(PLAYED / 'main_api').read_text().partition(chr(10))[2]}"
    assert program.stat().st_mode & 0o111
