"""`qwen-service doctor`: checks everything that owners stumble over, and gives each a cure. Changes nothing."""

from pathlib import Path

from qwen_service.config import ConfigError, load_settings
from qwen_service.doctor.axllm import examine_axllm
from qwen_service.doctor.card import examine_card
from qwen_service.doctor.finding import Finding, fail, ok
from qwen_service.doctor.host import Host
from qwen_service.doctor.models import examine_models
from qwen_service.doctor.speed import examine_speed
from qwen_service.doctor.system import examine_system
from qwen_service.errors import ServiceError
from qwen_service.models.catalog import Catalog
from qwen_service.models.manifest import ManifestError
from qwen_service.settings import Settings


async def examine(host: Host, settings: Settings) -> list[Finding]:
    findings = list(examine_system(host, settings))
    findings += [finding async for finding in examine_speed(host, settings)]
    try:
        catalog = Catalog.load(settings.models_dir.expanduser())
    except ServiceError as error:
        findings += [finding async for finding in examine_card(host, settings, [])]
        cure = "Correct this manifest, or move it away." if isinstance(error, ManifestError) else "Then ask again."
        return [*findings, fail("models", error.message, cure)]
    models = catalog.installed()
    of_card = [model for model in models if model.spec.needs_npu]
    findings += [finding async for finding in examine_card(host, settings, of_card)]
    findings += examine_models(host, catalog, settings)
    return findings + [finding async for finding in examine_axllm(host, catalog, models)]


def configuration(config_file: Path | None, models_dir: Path | None) -> tuple[Settings, Finding]:
    """The settings; or, when they are faulty, the defaults and a finding, so that the other checks still run."""
    try:
        settings = load_settings({"models_dir": models_dir}, config_file=config_file)
        return settings, ok("config", f"valid; models in {settings.models_dir}")
    except ConfigError as error:
        return Settings.model_construct(), fail("config", error.message, "docs/configuration.md lists all settings.")
