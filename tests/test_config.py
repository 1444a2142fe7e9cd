from pathlib import Path

import pytest

from qwen_service.config import ConfigError, load_settings
from qwen_service.settings import Settings


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_defaults_listen_on_loopback_only() -> None:
    settings = load_settings()
    assert settings.host == ("127.0.0.1", "::1")
    assert settings.port == 8080


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.yaml").write_text("port: 1001\nslots: 2\nqueue_size: 5\n")
    monkeypatch.setenv("QWEN_PORT", "1002")
    monkeypatch.setenv("QWEN_SLOTS", "3")
    settings = load_settings({"port": "1003"})
    assert (settings.port, settings.slots, settings.queue_size, settings.max_choices) == (1003, 3, 5, 8)


def test_lists_and_pairs_are_written_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWEN_MODEL_ALIASES", "gpt-4o-mini=qwen3-4b, gpt-4o=qwen3-4b")
    settings = load_settings({"host": "0.0.0.0, ::"})
    assert settings.host == ("0.0.0.0", "::")
    assert settings.model_aliases == {"gpt-4o-mini": "qwen3-4b", "gpt-4o": "qwen3-4b"}


@pytest.mark.parametrize("source", ["file", "environment", "flag"])
def test_an_unknown_key_is_refused_with_the_nearest_known_one(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = {}
    if source == "file":
        (tmp_path / "config.yaml").write_text("queue_sise: 3\n")
    elif source == "environment":
        monkeypatch.setenv("QWEN_QUEUE_SISE", "3")
    else:
        flags = {"queue_sise": "3"}
    with pytest.raises(ConfigError, match=r"(?i)queue[_-]sise.*queue[_-]size"):
        load_settings(flags)


@pytest.mark.parametrize(
    ("content", "expected"),
    [("[1, 2]", "key: value"), ("a: [", "not valid YAML"), ("port: x", "port: 'x'"), ("devices: []", "at least 1")],
)
def test_a_bad_file_is_named_with_what_is_wrong(content: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "other.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        load_settings(config_file=path)
    assert expected in caught.value.message
    assert "other.yaml" in caught.value.message


def test_a_named_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.yaml: cannot be read"):
        load_settings(config_file=tmp_path / "missing.yaml")


def test_a_value_out_of_range_is_refused_with_its_help_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWEN_PORT", "70000")
    with pytest.raises(ConfigError, match=r"QWEN_PORT: '70000' .*Port of the service"):
        load_settings()


def bounds() -> list[tuple[str, float | None, float | None]]:
    """Each setting that is a number, with its smallest and its largest value."""
    found = []
    for name, field in Settings.model_fields.items():
        if field.annotation in (int, float):
            limits = {key: value for part in field.metadata for key, value in vars_of(part).items()}
            low = limits.get("ge", limits.get("gt"))
            found.append((name, low, limits.get("le")))
    return found


def vars_of(part: object) -> dict[str, float]:
    return {key: getattr(part, key) for key in ("ge", "gt", "le") if hasattr(part, key)}


@pytest.mark.parametrize(("name", "low", "high"), bounds())
def test_every_number_has_bounds_and_is_refused_by_its_name_beyond_them(
    name: str, low: float | None, high: float | None
) -> None:
    assert low is not None
    assert high is not None
    related = {"npu_pause_above": {"npu_resume_below": 0}, "npu_resume_below": {"npu_pause_above": 150}}.get(name, {})
    load_settings({name: high, **related})
    for beyond in (low - 1, high + 1, "nan", "inf", "-inf", "1e400", "one"):
        with pytest.raises(ConfigError, match=name.replace("_", "-")):
            load_settings({name: beyond})
    is_above = any(hasattr(part, "gt") for part in Settings.model_fields[name].metadata)
    if is_above:
        with pytest.raises(ConfigError, match=name.replace("_", "-")):
            load_settings({name: low})
    else:
        load_settings({name: low, **({"npu_resume_below": 0} if name == "npu_pause_above" else {})})


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"devices": "0,0"}, "devices"),
        ({"devices": "-1"}, "devices"),
        ({"devices": "256"}, "devices"),
        ({"npu_resume_below": "86"}, "npu_pause_above, 85"),
        ({"tokenizer_port": "65535", "devices": "0,1"}, "at most 65534"),
    ],
)
def test_values_that_contradict_each_other_are_refused(flags: dict[str, str], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        load_settings(flags)


def test_a_setting_that_was_renamed_is_taken_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    renamed = {"line_length": "queue_size", "listen_port": "port", "names": "model_aliases"}
    (tmp_path / "c.yaml").write_text("line_length: 3\nlisten_port: 1\n")
    monkeypatch.setenv("QWEN_LISTEN_PORT", "2")
    monkeypatch.setenv("QWEN_NAMES", "gpt=qwen3")
    settings = load_settings({"line_length": "4"}, config_file=tmp_path / "c.yaml", renamed=renamed)
    assert (settings.queue_size, settings.port, settings.model_aliases) == (4, 2, {"gpt": "qwen3"})
    assert "command line: --line-length is now called --queue-size" in caplog.text
    assert "environment: QWEN_LISTEN_PORT is now called QWEN_PORT" in caplog.text
    assert f"{tmp_path / 'c.yaml'}: listen_port is now called port" in caplog.text
