"""qwen-service list | show | verify | rm: what is installed."""

import argparse
import json

from qwen_service.card.reading import card_memory
from qwen_service.commands.model_table import PURPOSES, VOICE, fits, print_table, speed
from qwen_service.commands.progress import (
    Commands,
    add_model_command,
    add_progress_flag,
    catalog_from,
    settings_from,
    sink_for,
)
from qwen_service.install.progress import human_bytes
from qwen_service.install.removal import on_disk, remove_model
from qwen_service.install.verify import verify
from qwen_service.models.catalog import Catalog
from qwen_service.models.installed import InstalledModel
from qwen_service.models.machine import Machine
from qwen_service.models.personas import Personas
from qwen_service.models.record import load_record
from qwen_service.models.spec import HubSource, ModelSpec, WheelSource


def add_models_command(commands: Commands) -> None:
    listing = add_model_command(commands, "list", "list the installed models", list_models)
    listing.add_argument("--all", action="store_true", help="list those that can be pulled, too, and what each can do")
    listing.add_argument("--for", dest="purpose", choices=sorted(PURPOSES), help="list only models for this purpose")
    listing.add_argument("--json", action="store_true", help="print JSON, for programs")
    add_model_command(commands, "show", "tell everything about a model", show).add_argument("name")
    checking = add_model_command(commands, "verify", "compare the files of a model with their checksums", verify_models)
    checking.add_argument("name", nargs="?", help="the model (default: all that are installed)")
    add_progress_flag(checking)
    add_model_command(commands, "rm", "remove a model from the disk", remove).add_argument("name")


def list_models(options: argparse.Namespace) -> int:
    settings = settings_from(options)
    catalog = Catalog.load(settings.models_dir.expanduser())
    personas = Personas.load(settings.models_dir.expanduser()).all() if options.purpose is None else []
    everything = catalog.installed()
    names = {model.name for model in everything}
    is_good = PURPOSES[options.purpose] if options.purpose else lambda _: True
    installed = [model for model in everything if is_good(model.spec)]
    wide = options.all or options.purpose is not None
    available = [spec for spec in catalog.specs if wide and spec.name not in names and is_good(spec)]
    if options.json:
        card = card_memory(settings, Machine())
        rows = [_row(model.spec, model, card) for model in installed] + [_row(spec, None, card) for spec in available]
        rows += [{"name": persona.name, "stands_on": persona.base} for persona in personas]
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return 0
    if wide:
        models = [*((model.spec, model) for model in installed), *((spec, None) for spec in available)]
        print_table(models, Machine(), card_memory(settings, Machine()))
    else:
        for model in installed:
            print(f"{model.name:28} {human_bytes(model.size):>9}  {model.spec.title}")
    for persona in personas:
        print(f"{persona.name:28} {'persona':>9}  of {persona.base}")
    if options.purpose == "voice":
        print(VOICE)
    elif not installed and not available:
        print("No model is installed. `qwen-service list --all` shows what there is, `pull NAME` installs it.")
    return 0


def show(options: argparse.Namespace) -> int:
    catalog = catalog_from(options)
    spec = catalog.find(options.name)
    model = next((model for model in catalog.installed() if model.spec == spec), None)
    for label, value in _facts(spec, model):
        if value:
            print(f"{label:13} {value}")
    return 0


def verify_models(options: argparse.Namespace) -> int:
    catalog = catalog_from(options)
    models = [on_disk(catalog, options.name)] if options.name else catalog.installed()
    sound = True
    with sink_for(options.progress) as sink:
        for model in models:
            verdict = verify(model, Machine(), sink)
            sound = sound and not verdict.problems
            for problem in verdict.problems:
                sink.stage(f"{model.name}: {problem}")
            if verdict.unknown:
                sink.stage(f"{model.name}: {len(verdict.unknown)} files have no known checksum")
            sink.stage(f"{model.name}: {verdict.checked} files {'ok' if not verdict.problems else 'checked, NOT ok'}")
    return 0 if sound else 1


def remove(options: argparse.Namespace) -> int:
    catalog = catalog_from(options)
    model = on_disk(catalog, options.name)
    print(f"{model.name} is removed, {human_bytes(remove_model(catalog, model))} are free again.")
    return 0


def _row(spec: ModelSpec, model: InstalledModel | None, card_kib: int | None) -> dict[str, object]:
    return {
        "name": spec.name,
        "aliases": spec.aliases,
        "title": spec.title,
        "runtime": spec.runtime,
        "capabilities": sorted(model.capabilities if model else spec.capabilities),
        "context": spec.context,
        "decode_rate": spec.decode_rate,
        "prefill_rate": spec.prefill_rate,
        "measured_on": spec.measured_on or None,
        "card_memory": spec.card_memory_kib * 1024 if spec.card_memory_kib else None,
        "fits_card": fits(spec, card_kib),
        "obstacle": spec.obstacle(Machine()),
        "installed": model is not None,
        "size": model.size if model else None,
        "folder": str(model.folder) if model else None,
    }


def _facts(spec: ModelSpec, model: InstalledModel | None) -> list[tuple[str, object]]:
    record = load_record(model.folder) if model else None
    return [
        ("name", spec.name),
        ("aliases", ", ".join(spec.aliases)),
        ("title", spec.title),
        ("about", spec.description),
        ("stopgap", spec.stopgap),
        ("license", spec.license),
        ("parameters", " ".join(filter(None, (spec.parameter_size, spec.quantization, spec.format)))),
        ("runtime", spec.runtime + (f" (not on this machine: {why})" if (why := spec.obstacle(Machine())) else "")),
        ("abilities", ", ".join(sorted(spec.capabilities))),
        ("context", f"{spec.context} tokens" if spec.context else ""),
        ("speed", speed(spec)),
        ("card memory", f"{human_bytes(spec.card_memory_kib * 1024)}" if spec.card_memory_kib else ""),
        ("source", _source_text(spec)),
        ("installed", f"{model.folder}, {human_bytes(model.size)}" if model else "no"),
        ("recorded", f"{record.source} {record.revision} at {record.installed}" if record else ""),
        *(("note", note) for note in spec.notes),
    ]


def _source_text(spec: ModelSpec) -> str:
    match spec.source:
        case HubSource(repo, revision):
            return f"{repo} at {revision or 'the newest revision with all its files'}"
        case WheelSource(requirement, member):
            return f"{requirement}, the file {member}"
        case None:
            return ""
