"""`qwen-service list --all` and `--for`: what an owner wants to know before a download."""

import json
from pathlib import Path

import pytest

from qwen_service.card.reading import card_memory
from qwen_service.cli import main
from qwen_service.commands.model_table import memory, speed
from qwen_service.models.catalog import Catalog
from qwen_service.models.machine import Machine
from qwen_service.models.personas import Persona, Personas
from qwen_service.settings import Settings
from tests import ROOT


def listed(capsys: pytest.CaptureFixture[str], folder: Path, *flags: str) -> str:
    assert main(["list", *flags, "--models-dir", str(folder)]) == 0
    return capsys.readouterr().out


def test_all_models_have_their_line_and_nothing_is_made_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = listed(capsys, tmp_path, "--all").splitlines()
    assert lines[0].split() == ["NAME", "RUNS", "ON", "SIZE", "MEMORY", "CONTEXT", "CAN", "SPEED"]
    by_name = {line.split()[0]: line for line in lines[1:]}
    assert set(by_name) == {spec.name for spec in Catalog.load(tmp_path).specs}
    assert "3.7 tokens/s, prompt 106 tokens/s (Raspberry Pi 5 with an LLM-8850 card)" in by_name["qwen3-4b"]
    assert by_name["qwen3-1.7b-axllm"].endswith("not measured")
    assert "prompt 556 tokens/s (AX650 board, the vendor's benchmark)" in by_name["qwen2.5-1.5b-instruct-axllm"]


@pytest.mark.parametrize(
    ("purpose", "there", "not_there"),
    [
        ("tools", "qwen3-4b-2507-axllm", "smollm2-135m"),
        ("pictures", "qwen3-vl-2b-axllm", "qwen3-4b"),
        ("pictures", "smolvlm2-500m", "qwen3-embedding-0.6b"),
        ("documents", "qwen3-embedding-0.6b", "qwen3-4b"),
        ("long", "minicpm5-1b-axllm", "qwen3-4b"),
    ],
)
def test_a_purpose_chooses(
    purpose: str, there: str, not_there: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [line.split()[0] for line in listed(capsys, tmp_path, "--for", purpose).splitlines()]
    assert there in names
    assert not_there not in names


def test_a_voice_has_programs_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = listed(capsys, tmp_path, "--for", "voice")
    assert "asr_server" in shown
    assert "Kokoro" in shown


def test_programs_read_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["name"]: row for row in json.loads(listed(capsys, tmp_path, "--all", "--json"))}
    assert rows["qwen3-vl-2b-axllm"]["capabilities"] == ["completion", "tools", "vision"]
    assert (rows["qwen3-4b"]["decode_rate"], rows["qwen3-4b"]["measured_on"][:14]) == (3.7, "Raspberry Pi 5")
    assert rows["qwen3-1.7b-axllm"]["decode_rate"] is None


def test_every_rate_of_the_catalog_names_its_machine(tmp_path: Path) -> None:
    for spec in Catalog.load(tmp_path).specs:
        assert bool(speed(spec)) == bool(spec.decode_rate or spec.prefill_rate)
        assert not speed(spec) or spec.measured_on, spec.name


def test_the_plans_names_still_mean_the_plans_models(tmp_path: Path) -> None:
    catalog = Catalog.load(tmp_path)
    assert catalog.find("qwen2.5").name == "qwen2.5-1.5b-instruct"
    assert catalog.find("qwen3").name == "qwen3-4b"


@pytest.mark.parametrize(("card", "shown"), [(7040, "5.01 GB, fits (7.38 GB)"), (4096, "5.01 GB, too large (4.29 GB)")])
def test_the_memory_of_the_card_that_is_here_decides_what_fits(card: int, shown: str, tmp_path: Path) -> None:
    spec = Catalog.load(tmp_path).find("qwen3-4b")
    unknown = Catalog.load(tmp_path).find("qwen3-1.7b-axllm")
    assert memory(spec, card * 1024) == shown
    assert memory(spec, None) == "5.01 GB"
    assert memory(unknown, card * 1024) == "not measured"


def test_the_card_is_asked_how_much_memory_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIM_CARDS", str(tmp_path / "cards.json"))
    (tmp_path / "cards.json").write_text(json.dumps({"cards": [{"cmm_total": 4096 * 1024}, {}]}))
    (tmp_path / "dev").mkdir()
    settings = Settings(axcl_smi=str(ROOT / "tests/simulators/axcl-smi"), devices=(0, 1))
    assert card_memory(settings, Machine(root=tmp_path)) is None  # no driver
    (tmp_path / "dev/axcl_host").touch()
    assert card_memory(settings, Machine(root=tmp_path)) == 4096 * 1024


def test_personas_are_listed_with_what_they_stand_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Personas.load(tmp_path).put(Persona("pirate", "qwen3-4b", system="Speak as a pirate."))
    assert listed(capsys, tmp_path).splitlines()[0].split() == ["pirate", "persona", "of", "qwen3-4b"]
    assert "pirate" in listed(capsys, tmp_path, "--all").splitlines()[-1]
    assert "pirate" not in listed(capsys, tmp_path, "--for", "tools")
    assert json.loads(listed(capsys, tmp_path, "--json")) == [{"name": "pirate", "stands_on": "qwen3-4b"}]
