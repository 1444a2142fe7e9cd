"""Turns the bodies of /api/create and /api/copy into personas, or refuses them with the reason."""

import dataclasses
from typing import Any

from qwen_service.api.ollama.wire import CopyBody, CreateBody, Options
from qwen_service.engines.manager import ModelManager
from qwen_service.errors import InvalidRequest, UnknownModel, Unsupported
from qwen_service.models.catalog import Catalog
from qwen_service.models.personas import SAMPLING, Persona

CREATED = b'{"status":"using existing layer"}\n{"status":"writing manifest"}\n{"status":"success"}\n'
_REFUSED = {
    "template": "a model's template comes with the model",
    "files": "this service takes no files: put a GGUF file into models_dir, or pull a model",
    "adapters": "this service takes no files",
    "quantize": "models are taken as they are",
    "modelfile": "send what it says as from, system, parameters and messages",
}


def created(models: ModelManager, catalog: Catalog, body: CreateBody) -> Persona:
    """Make the persona that /api/create asks for. Make the persona that /api/create asks for. Raises InvalidRequest, Unsupported, or UnknownModel."""
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
        parameters={**below.parameters, **_parameters(body.parameters)},
        messages=messages or below.messages,
    )


def copied(models: ModelManager, catalog: Catalog, body: CopyBody) -> Persona:
    """Make the persona that /api/copy asks for. Make the persona that /api/copy asks for. Raises InvalidRequest or UnknownModel."""
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
    raise InvalidRequest(f"{name!r} is the name of the model {known}; take another one", param="model")


def _parameters(options: Options | None) -> dict[str, Any]:
    """The parameters that apply to a request; the rest of Ollama's options are about loading."""
    if options is None:
        return {}
    values: dict[str, Any] = {name: getattr(options, name) for name in (*SAMPLING, "num_ctx")}
    stop = [options.stop] if isinstance(options.stop, str) else options.stop
    return {name: value for name, value in {**values, "stop": stop}.items() if value is not None}
