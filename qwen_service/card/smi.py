"""Parses what axcl-smi and the board's /proc say about a card. No IO, and no input makes it fail.

    |    0  AX650N                     V3.4.0 | 0000:01:00.0 |                193 MiB /      945 MiB |
    |   --   37C                      -- / -- | 2%        0% |               6348 MiB /     7040 MiB |
    |    0    84643  /opt/qwen/main_axcl_aarch64                                        4894032 KiB |

Columns move between versions, so a cell is recognised by its content. A value that is missing or unreadable is None.
"""

import re
from dataclasses import dataclass, replace

_NUMBER = r"(\d{1,12})"
_DRIVER = re.compile(r"\|\s*AXCL-SMI\b.*\bDriver\s+(\S+)")
_CARD = re.compile(
    r"\|\s*(\d{1,4})\s+(\S+(?: \S+)*)\s+(\S+)\s*\|\s*([0-9a-fA-F]{4}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.\d)\s*\|"
)
_TEMPERATURE = re.compile(r"\|\s*\S+\s+(-?\d{1,3})\s*C\s[^|]*\|")
_LOAD = re.compile(rf"\|\s*\d{{1,12}}%\s+{_NUMBER}%\s*\|")
_MEMORY = re.compile(rf"\|\s*{_NUMBER}\s*MiB\s*/\s*{_NUMBER}\s*MiB\s*\|\s*$")
_PROCESS = re.compile(rf"\|\s*(\d{{1,4}})\s+{_NUMBER}\s+(\S.*?)\s+{_NUMBER}\s*KiB\s*\|\s*$")
_BOARD_CMM = re.compile(rf"total size={_NUMBER}KB\b.*?\bused={_NUMBER}KB\b")


@dataclass(frozen=True, slots=True)
class CardProcess:
    pid: int
    name: str
    cmm_kib: int


@dataclass(frozen=True, slots=True)
class Card:
    """One reading. Temperature in degrees C, CMM (the card's own memory) in KiB, loads in percent."""

    index: int = 0
    name: str = ""
    bus_id: str = ""
    firmware: str = ""
    driver: str = ""
    temperature: float | None = None
    npu_percent: int | None = None
    cmm_used: int | None = None
    cmm_total: int | None = None
    processes: tuple[CardProcess, ...] = ()

    @property
    def cmm_free(self) -> int | None:
        return None if self.cmm_total is None or self.cmm_used is None else max(0, self.cmm_total - self.cmm_used)


def read_table(text: str) -> tuple[Card, ...]:
    """The cards in the output of plain `axcl-smi`; none when it is something else."""
    cards: list[Card] = []
    driver = ""
    for line in text.splitlines():
        if match := _DRIVER.match(line):
            driver = match[1]
        elif match := _CARD.match(line):
            cards.append(Card(int(match[1]), match[2], match[4], match[3], driver))
        elif match := _PROCESS.match(line):
            cards = [_with_process(card, match) for card in cards]
        elif cards and _TEMPERATURE.match(line):
            cards[-1] = _with_second_row(cards[-1], line)
    return tuple(cards)


def read_board(mem_cmm_info: str, thermal: str = "") -> Card:
    """The board's own NPU, from /proc/ax_proc/mem_cmm_info and a thermal zone's temp (1/1000 degree C)."""
    card = Card(0, "AX650 (on board)")
    if match := _BOARD_CMM.search(mem_cmm_info):
        card = replace(card, cmm_total=int(match[1]), cmm_used=int(match[2]))
    if re.fullmatch(r"-?\d{1,7}\s*", thermal):
        card = replace(card, temperature=int(thermal) / 1000)
    return card


def _with_second_row(card: Card, line: str) -> Card:
    temperature, load, memory = _TEMPERATURE.match(line), _LOAD.search(line), _MEMORY.search(line)
    return replace(
        card,
        temperature=float(temperature[1]) if temperature else None,
        npu_percent=int(load[1]) if load else None,
        cmm_used=int(memory[1]) * 1024 if memory else None,
        cmm_total=int(memory[2]) * 1024 if memory else None,
    )


def _with_process(card: Card, match: re.Match[str]) -> Card:
    if card.index != int(match[1]):
        return card
    return replace(card, processes=(*card.processes, CardProcess(int(match[2]), match[3], int(match[4]))))
