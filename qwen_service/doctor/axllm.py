"""The doctor on the vendor's axllm: found, built for this machine; and which models are quicker under it."""

from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

from qwen_service.doctor.finding import Finding, fail, ok, warn
from qwen_service.doctor.host import Host
from qwen_service.models.catalog import Catalog
from qwen_service.models.installed import InstalledModel
from qwen_service.models.spec import AXLLM, HubSource, ModelSpec
from qwen_service.runtimes.axllm.program import Build, advice, own_builds, version_of

AREA = "axllm"


async def examine_axllm(host: Host, catalog: Catalog, installed: Sequence[InstalledModel]) -> AsyncIterator[Finding]:
    for finding in _quicker(catalog, installed):
        yield finding
    models = [model for model in installed if model.spec.runtime == AXLLM and not model.spec.programs]
    on_path = host.which(AXLLM)
    told: set[Path] = set()
    for model in models:
        places = [*own_builds(model), *([Path(on_path)] if on_path else [])]
        builds = [Build(place, await version_of(place)) for place in places]
        good = next((build for build in builds if not build.mistake(host.machine)), None)
        if good is None:
            yield _none(host, model, builds)
        elif good.path not in told:
            told.add(good.path)
            yield ok(AREA, f"{good.path}: {good.version or 'shows no version'}")


def _none(host: Host, model: InstalledModel, builds: Sequence[Build]) -> Finding:
    found = "; ".join(build.mistake(host.machine) for build in builds) or "there is no axllm"
    report = fail if host.machine.has_npu else warn
    return report(AREA, f"{model.name} has no program that could run it: {found}", advice(model, host.machine))


def _quicker(catalog: Catalog, installed: Sequence[InstalledModel]) -> Iterator[Finding]:
    """A model that is fed token by token, where the same one is prefilled by axllm."""
    names = {model.name for model in installed}
    for model in installed:
        other = next((spec for spec in catalog.specs if _is_prefilled_form(spec, model.spec)), None)
        rate = model.spec.prefill_rate
        if other is None or not rate:
            continue
        what = f"`qwen-service pull {other.name}` installs it"
        if other.name in names:
            what = f"`model_aliases: {{{model.spec.names[-1]}: {other.name}}}` serves it under that name"
        yield ok(
            AREA,
            f"{model.name} is fed its prompt token by token: 150 tokens take {150 / rate:.0f} s before the first word."
            f" {other.name} is the same model under axllm, which takes 128 at once; {what}",
        )


def _is_prefilled_form(spec: ModelSpec, fed: ModelSpec) -> bool:
    runtimes = (fed.runtime, spec.runtime) == ("ax_repl", AXLLM)
    return runtimes and _repository(spec) is not None and _repository(spec) == _repository(fed)


def _repository(spec: ModelSpec) -> str | None:
    return spec.source.repo.lower() if isinstance(spec.source, HubSource) else None
