"""Checks the models: files complete and real, programs runnable, owner right, at least one that this machine can run."""

import os
from collections.abc import Iterator
from pathlib import Path

from qwen_service.doctor.finding import Finding, fail, ok, warn
from qwen_service.doctor.host import Account, Host
from qwen_service.doctor.system import SERVICE_USER
from qwen_service.errors import UnknownModel
from qwen_service.models.catalog import Catalog
from qwen_service.models.installed import InstalledModel, opening, pointer_advice
from qwen_service.runtimes.axera.program_files import STOCK_PORT, fixed_card, fixed_port
from qwen_service.settings import Settings

MMAP_FLAG = "--use_mmap_load_embed"


def examine_models(host: Host, catalog: Catalog, settings: Settings) -> Iterator[Finding]:
    folders = [InstalledModel(spec, catalog.models_dir / spec.name) for spec in catalog.specs]
    for model in folders:
        if os.path.isdir(model.folder) and model.unreadable() is None:
            yield from _model(host, model)
    installed = catalog.installed()
    if not installed:
        cure = "`qwen-service setup` shows which fit this machine, and installs one."
        yield warn("models", f"No complete model in {catalog.models_dir}", cure)
    for model in installed:
        yield from _build(host, model, settings)
    yield from _closed(catalog)
    yield from _wanted(catalog, settings.model)


def _closed(catalog: Catalog) -> Iterator[Finding]:
    for path in catalog.unreadable():
        yield fail("models", f"{path} cannot be read by this user", opening(path))


def _wanted(catalog: Catalog, name: str) -> Iterator[Finding]:
    if name == "auto":
        return
    try:
        catalog.find_installed(name)
    except UnknownModel as error:
        yield fail("models", f"The configured model cannot be served: {error.message}", f"qwen-service pull {name}")


def _model(host: Host, model: InstalledModel) -> Iterator[Finding]:
    problems = list(_problems(host, model))
    yield from problems
    if not problems:
        where = model.spec.obstacle(host.machine)
        yield ok("models", f"{model.name} is complete" + (f"; not for this machine: {where}" if where else ""))


def _problems(host: Host, model: InstalledModel) -> Iterator[Finding]:
    pull = f"`qwen-service pull {model.name}` completes it."
    if pointers := model.lfs_pointers():
        yield fail("models", f"{model.name}: {len(pointers)} files are git-lfs pointers", pointer_advice(pointers))
        return
    if missing := model.missing_files():
        yield fail("models", f"{model.name}: missing or incomplete: {', '.join(missing[:3])}", pull)
    if host.machine.kind in model.spec.programs:
        yield from _program(host, model)
    yield from _embedding(host, model)


def _program(host: Host, model: InstalledModel) -> Iterator[Finding]:
    program = Path(model.program(host.machine))
    if not program.is_file():
        yield fail("models", f"{model.name}: the program {program.name} is missing", f"qwen-service pull {model.name}")
    elif not os.access(program, os.X_OK):
        yield fail("models", f"{model.name}: {program.name} has no run bit", f"chmod +x {program}")


def _build(host: Host, model: InstalledModel, settings: Settings) -> Iterator[Finding]:
    """Check for settings that the model's program cannot honour."""
    for index, device in enumerate(settings.devices):
        if reason := fixed_card(model, host.machine, index=index, device=device):
            yield warn(
                "models", reason, f"Take {device} out of `devices`, or get a build that has a flag for the card."
            )
    if reason := fixed_port(model, settings, host.machine):
        yield warn("models", reason, f"Set runtime_port to {STOCK_PORT}, or to where your build listens.")


def _embedding(host: Host, model: InstalledModel) -> Iterator[Finding]:
    """Check that the embedding file is writable: the runtime maps it writable, else it says ready and dies at the first prompt."""
    arguments = model.spec.arguments
    if MMAP_FLAG not in arguments or arguments[arguments.index(MMAP_FLAG) + 1] != "1":
        return
    path = model.folder / arguments[arguments.index("--filename_tokens_embed") + 1]
    user = host.account(SERVICE_USER)
    if path.is_file() and not _may_write(path, user):
        name = user.name if user else "you"
        cure = f"sudo chown {name} {path}" if user else f"sudo chown $USER {path}"
        yield fail("models", f"{model.name}: {path.name} is not writable for {name}; its runtime would crash", cure)


def _may_write(path: Path, user: Account | None) -> bool:
    return user.may(path, os.W_OK) if user else os.access(path, os.W_OK)
