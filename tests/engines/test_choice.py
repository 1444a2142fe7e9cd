"""Which of the installed models `model: auto` serves first."""

import logging
from pathlib import Path

import pytest

from qwen_service.engines.choice import ModelChoice
from qwen_service.engines.manager import ModelManager
from qwen_service.models.catalog import PACKAGED, Catalog
from qwen_service.models.machine import Machine
from qwen_service.settings import Settings
from tests.fakes import ScriptedRuntime
from tests.serving import loads, says_hi, settings_with_models

CARD = """\
runtime: axllm
arguments: [serve, "{folder}", --port, "{port}"]
"""


def install(folder: Path, name: str, *, on_card: bool = False, besides: str = "") -> Settings:
    settings = settings_with_models(folder, name, manifest=besides, model="auto")
    manifest = folder / f"models/manifests/{name}.yaml"
    if on_card:
        manifest.write_text(manifest.read_text().replace("runtime: llamacpp\n", CARD))
    return settings


def first(settings: Settings, machine: Machine) -> str:
    return ModelChoice(settings, Catalog.load(settings.models_dir), machine).first().name


def machine_with_a_card(folder: Path) -> Machine:
    (folder / "dev").mkdir()
    (folder / "dev/axcl_host").touch()
    return Machine(folder, "aarch64")


def test_a_card_comes_before_the_processor_whatever_the_names(tmp_path: Path) -> None:
    install(tmp_path, "a")
    settings = install(tmp_path, "b", on_card=True)
    assert first(settings, Machine(tmp_path, "aarch64")) == "a"
    assert first(settings, machine_with_a_card(tmp_path)) == "b"


def test_a_stopgap_is_served_only_where_nothing_else_is(tmp_path: Path) -> None:
    settings = install(tmp_path, "a", besides="stopgap: a toy\n")
    assert first(settings, Machine(tmp_path)) == "a"
    install(tmp_path, "b")
    assert first(settings, Machine(tmp_path)) == "b"


async def test_a_stopgap_says_so_at_the_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = install(tmp_path, "a", besides="stopgap: a toy; `pull b` is better\n")
    catalog = Catalog.load(settings.models_dir)
    scripted = loads(lambda: ScriptedRuntime(says_hi))
    models = ModelManager(settings, catalog, Machine(), on_change=lambda: None, loaders=scripted)
    with caplog.at_level(logging.WARNING):
        await models.start()
    await models.stop()
    assert "a: a toy; `pull b` is better" in caplog.text


def test_what_the_packaged_stopgap_recommends_can_be_pulled() -> None:
    catalog = Catalog.load(PACKAGED.parent / "no-models")
    (stopgap,) = [spec for spec in catalog.specs if spec.stopgap]
    recommended = catalog.find(stopgap.stopgap.partition("`qwen-service pull ")[2].partition("`")[0])
    assert stopgap.name == "smollm2-135m"
    assert f"({sum(file.size or 0 for file in recommended.files) // 1_000_000} MB)" in stopgap.stopgap
