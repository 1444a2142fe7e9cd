import re

from tests.service_process import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text()


def test_every_file_and_folder_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"([\w/]+\.py|\w+/)(?=[`:, ;)])", PAGE)) - {"qwen_service/"}
    places = [ROOT, *(path for path in (ROOT / "qwen_service").rglob("*") if path.is_dir()), ROOT / "qwen_service"]
    assert len(named) > 30
    assert [name for name in sorted(named) if not any((place / name).exists() for place in places)] == []


def test_it_is_one_page() -> None:
    assert len(PAGE.splitlines()) <= 110
