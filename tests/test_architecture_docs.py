import re

from tests.service_process import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text()


def test_every_file_that_the_page_names_is_there() -> None:
    named = {name for name in re.findall(r"([\w/*]+\.py)\b", PAGE) if "*" not in name}
    places = [ROOT / "qwen_service", ROOT]
    assert len(named) > 60
    assert [name for name in sorted(named) if not any((place / name).exists() for place in places)] == []


def test_it_is_one_page() -> None:
    assert len(PAGE.splitlines()) <= 110
