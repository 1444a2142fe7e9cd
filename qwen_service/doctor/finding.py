"""One line of the doctor's report."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding. `cure` is what to do, in the imperative; empty when the finding is ok."""

    level: Level
    area: str
    text: str
    cure: str = ""


def ok(area: str, text: str) -> Finding:
    return Finding("ok", area, text)


def warn(area: str, text: str, cure: str) -> Finding:
    return Finding("warn", area, text, cure)


def fail(area: str, text: str, cure: str) -> Finding:
    return Finding("fail", area, text, cure)
