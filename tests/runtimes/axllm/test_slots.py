import json
from pathlib import Path
from typing import Any

import pytest

from qwen_service.models.catalog import axllm_model
from qwen_service.models.machine import Machine
from qwen_service.runtimes.axllm.own_config import FOLDER, known_slot_size, note_slot_size, told_folder
from qwen_service.runtimes.axllm.slots import Room, SlotLog, Slots, Taken, chosen
from qwen_service.settings import Settings
from tests.runtimes.axllm.test_program import CONFIG, model_folder

MIB = 1024  # KiB
QWEN3_4B = {**CONFIG, "axmodel_num": 36}  # a slot of 2559 ids: 360 MiB at most
SMI = Path(__file__).parents[2] / "simulators" / "axcl-smi"


@pytest.mark.parametrize(
    ("card", "host", "expected"),
    [
        (2100, 0, Slots(4)),
        (1600, 0, Slots(3)),
        (1200, 0, Slots(2)),
        (1600, 3000, Slots(4, "host")),
        (700, 2000, Slots(3, "host")),
        (700, 1100, Slots(2)),  # by an estimate that is too high for some models: axllm itself decides
    ],
)
def test_as_many_as_fit_and_on_the_card_if_it_takes_as_many(card: int, host: int, expected: Slots) -> None:
    assert chosen(QWEN3_4B, Room(card * MIB, host * MIB), 2559) == expected


def test_what_axllm_has_said_of_a_slot_counts_more_than_an_estimate() -> None:
    assert chosen(QWEN3_4B, Room(1200 * MIB, 0, 139 * MIB), 2559) == Slots(4)
    assert chosen(QWEN3_4B, Room(800 * MIB, 0, 139 * MIB), 2559) is None


@pytest.mark.parametrize(
    ("config", "room", "wanted"),
    [
        ({**QWEN3_4B, "kv_cache_slots": 1}, Room(6000 * MIB, 0), 0),
        ({**QWEN3_4B, "kv_cache_slots": 9}, Room(6000 * MIB, 0), 3),
        ({**QWEN3_4B, "dynamic_load_enable": True}, Room(6000 * MIB, 0), 0),
        (QWEN3_4B, Room(None, 6000 * MIB), 0),
        (QWEN3_4B, Room(6000 * MIB, 0), 1),
        ({}, Room(6000 * MIB, 0), 0),
    ],
)
def test_nothing_is_told_where_the_owner_has_or_nobody_knows(config: dict[str, Any], room: Room, wanted: int) -> None:
    assert chosen(config, room, 2559, wanted=wanted) is None


def test_a_number_in_the_settings_is_told() -> None:
    assert chosen(QWEN3_4B, Room(7000 * MIB, 0), 2559, wanted=7) == Slots(7)


def test_the_log_says_what_was_made_and_taken() -> None:
    log = SlotLog()
    assert str(log.made) == "1 conversation"
    log.feed("kv slot budget: dev=0 per_slot=139MB free=6474MB margin=256MB -> max_slots=44")
    log.feed("12:00:00.000 INF init_kv_slots:90 | multi-slot prefix KV cache enabled: slots=4 location=device vlm=no")
    assert (log.made, log.slot_size) == (Slots(4), 139 * MIB)
    assert str(log.made) == "4 conversations, on the card"
    log.feed("kv slot budget (host): per_slot<=377MB free_ram=2048MB -> max_slots=5")
    log.feed("12:00:00.000 WRN init_kv_slots:90 | multi-slot prefix KV cache: 3/9 slots enabled (location=host vlm=no)")
    assert str(log.made) == "3 conversations, in the host's memory"
    log.feed("kv slot select: chosen=2 reuse=1 shared=310 req=350 (slots=4)")
    assert log.taken == Taken(2, 310, 40)
    log.feed("kv slot select: chosen=1 reuse=0 shared=0 req=350 (slots=4)")
    assert log.taken == Taken(1, 0, 350)


async def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **config: Any) -> Path:
    monkeypatch.setenv("SIM_CARDS", str(tmp_path / "cards.json"))
    (tmp_path / "cards.json").write_text(json.dumps({"cards": [{"cmm_used": 1000 * MIB}]}))
    folder = model_folder(tmp_path / "m")
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    settings = Settings(state_dir=tmp_path / "state", axcl_smi=str(SMI))
    machine = Machine(root=tmp_path / "root", machine="aarch64")
    return await told_folder(axllm_model(folder), settings, machine, 2048, 1500 * MIB)


async def test_the_owners_files_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside = await told(tmp_path, monkeypatch)
    assert beside == tmp_path / "state" / FOLDER / "m"
    assert json.loads((beside / "config.json").read_text()) == {
        **CONFIG,
        "kv_cache_slots": 4,
        "kv_cache_slot_location": "device",
    }
    assert json.loads((tmp_path / "m" / "config.json").read_text()) == CONFIG
    assert {path.name for path in beside.iterdir()} == {path.name for path in (tmp_path / "m").iterdir()}
    assert (beside / "l0.axmodel").resolve() == (tmp_path / "m" / "l0.axmodel").resolve()


async def test_files_that_have_gone_or_come_are_followed_and_axllms_own_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = await told(tmp_path, monkeypatch)
    (beside / "vision_cache").mkdir()
    (tmp_path / "m" / "old.bin").touch()
    await told(tmp_path, monkeypatch)
    (tmp_path / "m" / "old.bin").unlink()
    await told(tmp_path, monkeypatch)
    assert not (beside / "old.bin").is_symlink()
    assert (beside / "vision_cache").is_dir()


async def test_an_owners_own_number_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await told(tmp_path, monkeypatch, kv_cache_slots=2) == tmp_path / "m"


async def test_a_state_folder_that_cannot_be_written_costs_the_slots_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "state").touch()
    assert await told(tmp_path, monkeypatch) == tmp_path / "m"


def test_the_size_of_a_slot_is_remembered(tmp_path: Path) -> None:
    assert known_slot_size(tmp_path, "m") == 0
    note_slot_size(tmp_path, "m", 139 * MIB)
    note_slot_size(tmp_path, "n", 0)
    assert (known_slot_size(tmp_path, "m"), known_slot_size(tmp_path, "n")) == (139 * MIB, 0)
    (tmp_path / FOLDER / "slot-sizes.json").write_text("[1]")
    assert known_slot_size(tmp_path, "m") == 0
