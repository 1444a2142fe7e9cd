"""Installed and running models as Ollama describes them, and the personas that /api/create and /api/copy ask for."""

import dataclasses
import json
import time
from typing import Any

from qwen_service.api.abilities import abilities
from qwen_service.api.ollama.response import moment
from qwen_service.api.ollama.wire import CopyBody, CreateBody, Options
from qwen_service.engine import Engine
from qwen_service.engines.manager import ModelManager
from qwen_service.engines.served import ServedModel
from qwen_service.errors import InvalidRequest, UnknownModel, Unsupported
from qwen_service.models.catalog import Catalog
from qwen_service.models.installed import InstalledModel
from qwen_service.models.personas import SAMPLING, Persona
from qwen_service.models.spec import ModelSpec

# A model stays loaded, but clients need a date: Ollama gives one like this for keep_alive -1.
FOR_EVER = 86_400 * 365 * 100  # seconds


def tags(models: ModelManager) -> dict[str, Any]:
    entries = [_entry(model) | {"modified_at": moment(model.modified)} for model in models.installed()]
    return {"models": entries + [_persona_entry(persona, base) for persona, base in models.personas_here()]}


def running(models: ModelManager) -> dict[str, Any]:
    loaded = filter(None, (models.current, models.fallback))
    return {"models": [_running(served, served.engine) for served in loaded if served.engine is not None]}


def show(models: ModelManager, name: str) -> dict[str, Any]:
    persona = models.persona(name)
    model = models.find(name)
    served = models.served(model)
    engine = served.engine if served is not None else None
    parameters = _parameters(model.spec, engine)
    template = engine.text.template.source if engine is not None else ""
    shown = {
        "license": model.spec.license,
        "modelfile": f"# {model.spec.title or model.name}\nFROM {tagged(model.name)}\n"
        + "".join(f"PARAMETER {key} {value}\n" for key, value in parameters),
        "parameters": "\n".join(f"{key:<30} {value}" for key, value in parameters),
        "template": template,
        "details": _details(model.spec),
        "model_info": _model_info(model.spec, engine),
        "capabilities": abilities(model, engine),
        "modified_at": moment(model.modified),
    }
    return shown if persona is None else shown | _of_persona(persona, shown)


def _of_persona(persona: Persona, base: dict[str, Any]) -> dict[str, Any]:
    """The fields of a persona that differ from those of its model."""
    own = [
        (name, one)
        for name, value in persona.parameters.items()
        for one in (value if isinstance(value, list | tuple) else [value])
    ]
    system = f'SYSTEM """{persona.system}"""\n' if persona.system else ""
    messages = "".join(f"MESSAGE {role} {json.dumps(text, ensure_ascii=False)}\n" for role, text in persona.messages)
    return {
        "modelfile": f"FROM {tagged(persona.base)}\n{system}"
        + "".join(f"PARAMETER {name} {json.dumps(value, ensure_ascii=False)}\n" for name, value in own)
        + messages,
        "parameters": "\n".join(f"{name:<30} {json.dumps(value, ensure_ascii=False)}" for name, value in own),
        "system": persona.system,
        "messages": [{"role": role, "content": text} for role, text in persona.messages],
        "details": base["details"] | {"parent_model": persona.base},
        "modified_at": moment(persona.modified),
    }


def tagged(name: str) -> str:
    """Add `:latest` to a name without a tag: Ollama's names always have one."""
    return name if ":" in name else f"{name}:latest"


def _entry(model: InstalledModel) -> dict[str, Any]:
    name = tagged(model.name)
    return {"name": name, "model": name, "size": model.size, "digest": model.digest, "details": _details(model.spec)}


def _persona_entry(persona: Persona, base: InstalledModel) -> dict[str, Any]:
    entry = _entry(base)
    name = tagged(persona.name)
    return entry | {
        "name": name,
        "model": name,
        "digest": persona.digest,
        "details": entry["details"] | {"parent_model": persona.base},
        "modified_at": moment(persona.modified),
    }


def _running(served: ServedModel, engine: Engine) -> dict[str, Any]:
    model = served.installed
    on_card = model.spec.needs_npu
    left = served.rest.seconds_left()
    return _entry(model) | {
        "expires_at": moment(time.time() + (FOR_EVER if left is None else left)),
        "size_vram": (model.spec.card_memory_kib or model.size // 1024) * 1024 if on_card else 0,
        "context_length": engine.limits.context,
    }


def _details(spec: ModelSpec) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": spec.format,
        "family": spec.family,
        "families": [spec.family] if spec.family else [],
        "parameter_size": spec.parameter_size,
        "quantization_level": spec.quantization,
    }


def _model_info(spec: ModelSpec, engine: Engine | None) -> dict[str, Any]:
    family = spec.family or "unknown"
    context = engine.limits.context if engine is not None else spec.context
    return {"general.architecture": family, "general.basename": spec.title or spec.name} | (
        {f"{family}.context_length": context} if context else {}
    )


def _parameters(spec: ModelSpec, engine: Engine | None) -> list[tuple[str, object]]:
    names = ("temperature", "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty")
    context = engine.limits.context if engine is not None else spec.context
    values = [(name, getattr(spec.sampling, name)) for name in names]
    return [(name, value) for name, value in [("num_ctx", context), *values] if value is not None]


CREATED = b'{"status":"using existing layer"}\n{"status":"writing manifest"}\n{"status":"success"}\n'
_REFUSED = {
    "template": "a model's template comes with the model",
    "files": "this service takes no files: put a GGUF file into models_dir, or pull a model",
    "adapters": "this service takes no files",
    "quantize": "models are taken as they are",
    "modelfile": "send what it says as from, system, parameters and messages",
}


def created(models: ModelManager, catalog: Catalog, body: CreateBody) -> Persona:
    """Make the persona that /api/create asks for. Raises InvalidRequest, Unsupported, or UnknownModel."""
    for name, reason in _REFUSED.items():
        if getattr(body, name):
            raise Unsupported(f"{name} is not supported: {reason}", param=name)
    if not body.from_:
        raise InvalidRequest("neither 'from' or 'files' was specified", param="from")
    below = _persona(models, body.from_, body.model)
    _refuse_model_name(models, catalog, body.model)
    messages = tuple((message.role, message.content) for message in body.messages or ())
    return dataclasses.replace(
        below,
        name=body.model,
        system=below.system if body.system is None else body.system,
        parameters={**below.parameters, **_model_options(body.parameters)},
        messages=messages or below.messages,
    )


def copied(models: ModelManager, catalog: Catalog, body: CopyBody) -> Persona:
    """Make the persona that /api/copy asks for. Raises InvalidRequest or UnknownModel."""
    _refuse_model_name(models, catalog, body.destination)
    return dataclasses.replace(_persona(models, body.source, body.destination), name=body.destination)


def _persona(models: ModelManager, source: str, name: str) -> Persona:
    """The source as a persona. A copy of a persona stands on that persona's model, so personas are never chained."""
    return models.persona(source) or Persona(name, models.find(source).name)


def _refuse_model_name(models: ModelManager, catalog: Catalog, name: str) -> None:
    if models.persona(name) is not None:
        return
    known = None
    try:
        known = models.find(name).name
    except UnknownModel:
        try:
            known = catalog.find(name).name
        except UnknownModel:
            return  # the name is free, as it should be
    raise InvalidRequest(f"{name!r} is the name of the model {known}: choose another name.", param="model")


def _model_options(options: Options | None) -> dict[str, Any]:
    """The parameters that apply to a request; the rest of Ollama's options are about loading."""
    if options is None:
        return {}
    values: dict[str, Any] = {name: getattr(options, name) for name in (*SAMPLING, "num_ctx")}
    stop = [options.stop] if isinstance(options.stop, str) else options.stop
    return {name: value for name, value in {**values, "stop": stop}.items() if value is not None}
