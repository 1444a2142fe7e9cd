import re
from statistics import median

import pytest

from tests import ROOT
from tests.test_layers import PATHS, imports

PAGE = (ROOT / "docs" / "architecture.md").read_text()


def test_every_file_and_folder_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"([\w/]+\.py|\w+/)(?=[`:, ;)])", PAGE)) - {"qwen_service/"}
    places = [ROOT, *(path for path in (ROOT / "qwen_service").rglob("*") if path.is_dir()), ROOT / "qwen_service"]
    assert len(named) > 30
    assert [name for name in sorted(named) if not any((place / name).exists() for place in places)] == []


def room(name: str) -> str:
    """A folder, a file that is in none, a dialect, or a runtime."""
    parts = name.split(".")
    return "/".join(parts[:2]) if parts[0] in ("api", "runtimes") and len(parts) > 2 else parts[0]


def floor(name: str, below: dict[str, set[str]]) -> int:
    return 1 + max((floor(other, below) for other in below[name]), default=0)


def test_its_figures_are_true_within_a_tenth() -> None:
    rooms = {room(name) for name in imports() if name not in ("", "__init__")}
    below = {
        one: {room(to) for name, found in imports().items() if room(name) == one for to in found} - {one}
        for one in rooms
    }
    lines = [len(path.read_text().splitlines()) for path in PATHS.values() if path.name != "__init__.py"]
    true = [
        len(rooms),
        max(floor(one, below) for one in rooms),
        sum(map(len, below.values())),
        len(lines),
        sum(lines),
        round(median(lines)),
    ]
    said = re.search(
        r"(\d+) rooms on (\d+) floors with (\d+) arrows between them; (\d+) files of ([\d ]+) lines, half of them below (\d+)",
        PAGE,
    )
    assert said is not None
    assert [int(number.replace(" ", "")) for number in said.groups()] == pytest.approx(true, rel=0.1), true


def test_it_is_one_page() -> None:
    assert len(PAGE.splitlines()) <= 120
