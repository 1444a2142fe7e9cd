"""The config.yaml of the checkout is a form to fill in: every line of it, without its #, is a setting."""

import re
from pathlib import Path

import yaml

from qwen_service.config import load_settings
from qwen_service.settings import Settings

FILE = Path(__file__).parent.parent / "config.yaml"


def test_as_it_comes_it_changes_nothing() -> None:
    assert load_settings(config_file=FILE) == Settings()


def test_every_line_of_it_is_a_setting_with_a_value_that_is_allowed(tmp_path: Path) -> None:
    lines = [line[2:] for line in FILE.read_text().splitlines() if re.match(r"# \w+: ", line)]
    filled = tmp_path / "config.yaml"
    filled.write_text("\n".join(lines))
    settings = load_settings(config_file=filled)
    assert settings.port == 8080
    assert len(yaml.safe_load(filled.read_text())) == len(lines) == 8
