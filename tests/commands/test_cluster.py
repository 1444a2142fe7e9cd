"""`qwen-service cluster`, as far as it goes without Ray."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qwen_service import cli
from qwen_service.cluster.ray_command import ClusterError
from qwen_service.commands.cluster_node import cards_of, own_address
from qwen_service.config import load_settings
from qwen_service.models.machine import Machine
from tests import ROOT
from tests.card_service import SIMULATORS, CardHost

WITHOUT_RAY = "import sys; sys.modules['ray'] = None; from qwen_service.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture(autouse=True)
def _own_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("QWEN_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("QWEN_CONFIG", str(ROOT / "config.yaml"))


@pytest.mark.parametrize("action", [("start", "--head", "--cards", "1"), ("start", "--join", "127.0.0.1")])
def test_without_ray_one_line_says_how_to_install_it(action: tuple[str, ...]) -> None:
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_RAY, "cluster", *action],
        env=os.environ,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 1
    assert run.stderr == "qwen-service: Ray is not installed. Install it with: pip install 'qwen-service[ray]'\n"


@pytest.mark.parametrize("address", ["0.0.0.0", "::"])
def test_every_network_at_once_is_refused(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cluster", "start", "--head", "--cards", "1", "--address", address]) == 1
    assert "Name one address, or add --i-know" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--head", "--address", "pi.local"), "--address pi.local: expected an IP address"),
        (("--head", "--port", "80"), "--port 80: expected 1024 to"),
        (("--head", "--port", "65500"), "--port 65500: expected 1024 to"),
        (("--join", "no-such-machine.invalid"), "--join no-such-machine.invalid: this name has no address"),
    ],
)
def test_what_cannot_be_is_told_before_anything_starts(
    arguments: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["cluster", "start", "--cards", "1", *arguments]) == 1
    assert told in capsys.readouterr().err


def test_a_machine_that_is_no_node_has_nothing_to_stop(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cluster", "stop"]) == 0
    assert "This machine was no node of a cluster" in capsys.readouterr().out


def test_the_way_to_this_machine_is_by_its_loopback() -> None:
    assert own_address("127.0.0.1") == "127.0.0.1"


@pytest.mark.parametrize(
    ("devices", "asked", "offered"), [(None, None, (0, 1)), ("1,5", None, (1,)), (None, 3, (0, 1, 2)), (None, 0, ())]
)
def test_a_node_offers_the_cards_that_are_there_and_meant(
    devices: str | None,
    asked: int | None,
    offered: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    host = CardHost(tmp_path / "host", tmp_path)
    monkeypatch.setenv("SIM_CARDS", str(host.cards_file))
    if devices:
        monkeypatch.setenv("QWEN_DEVICES", devices)
    settings = load_settings({"axcl_smi": str(SIMULATORS / "axcl-smi")})
    assert cards_of(argparse.Namespace(cards=asked), settings, Machine(host.folder / "root")) == offered


def test_a_machine_whose_cards_cannot_be_counted_says_what_to_type(tmp_path: Path) -> None:
    host = CardHost(tmp_path / "host", tmp_path)
    settings = load_settings({"axcl_smi": str(tmp_path / "nothing")})
    with pytest.raises(ClusterError, match="Give the number of cards with --cards N"):
        cards_of(argparse.Namespace(cards=None), settings, Machine(host.folder / "root"))


@pytest.mark.parametrize(("host", "warned"), [("192.168.1.10", True), ("0.0.0.0", True), ("127.0.0.1", False)])
def test_an_address_that_is_open_without_keys_is_warned_of(
    host: str, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["cluster", "deploy", "--model", "qwen3-4b", "--host", host]) == 1
    told = capsys.readouterr().err
    assert ("Set api_keys_file" in told) == warned


def test_a_file_that_is_not_there_and_a_machine_that_is_no_node_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cluster", "deploy", "nowhere.yaml"]) == 1
    assert "nowhere.yaml does not exist" in capsys.readouterr().err
    assert cli.main(["cluster", "status"]) == 1
    told = capsys.readouterr().err
    assert "This machine is no node of a cluster" in told or "Ray is not installed" in told
