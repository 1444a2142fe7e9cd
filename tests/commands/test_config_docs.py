from qwen_service.commands.config_docs import SECTIONS, configuration_page
from qwen_service.settings import Settings
from tests import ROOT


def test_the_page_in_docs_is_current() -> None:
    shown = (ROOT / "docs" / "configuration.md").read_text()
    assert shown == configuration_page(), "run: python -m qwen_service.commands.config_docs > docs/configuration.md"


def test_every_setting_has_a_line_with_its_default() -> None:
    lines = configuration_page().splitlines()
    for name, setting in Settings.model_fields.items():
        (line,) = [line for line in lines if line.startswith(f"| `{name}` |")]
        assert setting.description
        assert len([cell for cell in line.split(" | ") if cell.strip("| ")]) == 4


def test_the_sections_begin_with_settings_that_exist() -> None:
    assert set(SECTIONS) <= set(Settings.model_fields)
    assert next(iter(Settings.model_fields)) in SECTIONS


def test_bounds_and_choices_are_told() -> None:
    page = configuration_page()
    assert "| `port` | `8080` | integer from 0 to 65535 |" in page
    assert "| `accelerator` | `auto` | `auto`, `required`, `none` |" in page
    assert "| `host` | `127.0.0.1,::1` | list |" in page
