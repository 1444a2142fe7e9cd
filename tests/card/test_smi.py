import json
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_service.card.smi import Card, CardProcess, read_board, read_table

SIMULATOR = Path(__file__).parents[1] / "simulators" / "axcl-smi"

# As two versions print it; the second from a Raspberry Pi 5 with a loaded model.
IDLE = """
+------------------------------------------------------------------------------------------------+
| AXCL-SMI  V2.18.0                                                              Driver  V2.18.0 |
+-----------------------------------------+--------------+---------------------------------------+
| Card  Name                     Firmware | Bus-Id       |                          Memory-Usage |
| Fan   Temp                Pwr:Usage/Cap | CPU      NPU |                             CMM-Usage |
|=========================================+==============+=======================================|
|    0  AX650N                    V2.18.0 | 0001:81:00.0 |                181 MiB /      954 MiB |
|   --   52C                      -- / -- | 3%        0% |                 22 MiB /     3072 MiB |
+-----------------------------------------+--------------+---------------------------------------+
| Processes:                                                                                     |
| Card      PID  Process Name                                                   NPU Memory Usage |
|================================================================================================|
|    0      763  /opt/bin/axcl/axcl_run_model                                            160 KiB |
"""
BUSY_REFORMATTED = """
| AXCL-SMI  V3.4.0 | Driver  V3.4.0 |
| 0  AX650N  V3.4.0  | 0000:01:00.0 | 193 MiB /   945 MiB |
| --   37C   -- / -- | 2%        98% | 6348 MiB /   7040 MiB |
|    0    84643  /opt/my models/main_axcl_aarch64                                  4894032 KiB |
"""
BOARD = """
+---PARTITION: Phys(0x148000000, 0x2FFFFFFFF), Size=7208960KB(7040MB),    NAME="anonymous"
---CMM_USE_INFO:
 total size=7208960KB(7040MB),used=18876KB(18MB + 444KB),remain=7190084KB(7021MB + 580KB),partition_number=1
"""


def run(*arguments: str, **state: object) -> str:
    folder = Path(os.environ["SIM_FOLDER"])
    (folder / "cards.json").write_text(json.dumps(state))
    environment = {**os.environ, "SIM_CARDS": str(folder / "cards.json")}
    return subprocess.check_output([SIMULATOR, *arguments], env=environment, text=True, timeout=30)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIM_FOLDER", str(tmp_path))


def test_the_table_of_an_idle_card_is_read() -> None:
    (card,) = read_table(IDLE)
    assert card == Card(
        index=0,
        name="AX650N",
        bus_id="0001:81:00.0",
        firmware="V2.18.0",
        driver="V2.18.0",
        temperature=52.0,
        npu_percent=0,
        cmm_used=22 * 1024,
        cmm_total=3072 * 1024,
        processes=(CardProcess(763, "/opt/bin/axcl/axcl_run_model", 160),),
    )


def test_other_column_widths_make_no_difference() -> None:
    (card,) = read_table(BUSY_REFORMATTED)
    assert (card.driver, card.temperature, card.npu_percent) == ("V3.4.0", 37.0, 98)
    assert card.cmm_free == (7040 - 6348) * 1024
    assert card.processes == (CardProcess(84643, "/opt/my models/main_axcl_aarch64", 4894032),)


@pytest.mark.parametrize("layout", ["wide", "narrow"])
def test_two_cards_keep_their_own_rows_and_processes(layout: str) -> None:
    second = {"temperature": 88, "npu": 100, "cmm_used": 4915200, "processes": [[7, "main_api_axcl_x86", 4894032]]}
    first, other = read_table(run(layout=layout, cards=[{}, second]))
    assert (first.index, first.temperature, first.npu_percent, first.processes) == (0, 41.0, 0, ())
    assert (other.index, other.temperature, other.npu_percent, other.cmm_used) == (1, 88.0, 100, 4915200)
    assert other.processes == (CardProcess(7, "main_api_axcl_x86", 4894032),)


def test_the_board_itself_is_read_from_proc() -> None:
    card = read_board(BOARD, "48250\n")
    assert (card.cmm_total, card.cmm_used, card.temperature) == (7208960, 18876, 48.25)
    assert read_board("nothing", "hot") == Card(0, "AX650 (on board)")


@pytest.mark.parametrize("cut", range(0, len(IDLE), 7))
def test_a_table_cut_anywhere_is_read_as_far_as_it_goes(cut: int) -> None:
    for card in read_table(IDLE[:cut]):
        assert card.temperature in (None, 52.0)
        assert card.cmm_total in (None, 3072 * 1024)


@given(st.text())
def test_any_text_gives_a_reading_and_never_an_error(text: str) -> None:
    assert isinstance(read_table(text), tuple)
    assert isinstance(read_board(text, text), Card)


@given(st.lists(st.sampled_from(["|", " 0 ", "41C ", "AX650N", "V1 ", "0000:01:00.0", "7 MiB /", "9 KiB", "%", "\n"])))
def test_shuffled_pieces_of_a_table_never_raise(pieces: list[str]) -> None:
    text = "".join(pieces)
    for card in read_table(text):
        assert card.cmm_free is None or card.cmm_free >= 0
