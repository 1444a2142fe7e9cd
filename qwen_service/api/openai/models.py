"""GET /v1/models: OpenAI's model objects, with further fields for owners."""

from typing import Any

from qwen_service.api.abilities import abilities
from qwen_service.engines.manager import ModelManager
from qwen_service.engines.supervisor import Phase
from qwen_service.models.installed import InstalledModel
from qwen_service.models.personas import Persona

STATES: dict[Phase, str] = {
    "ready": "loaded",
    "loading": "loading",
    "restarting": "loading",
    "failed": "failed",
    "stopped": "installed",
}


def model_list(models: ModelManager) -> dict[str, Any]:
    entries = [_entry(model, models) for model in models.installed()]
    entries += [_entry(model, models) | _of_persona(persona) for persona, model in models.personas_here()]
    return {"object": "list", "data": entries}


def one_model(models: ModelManager, name: str) -> dict[str, Any]:
    """The object of one model. Raises UnknownModel."""
    persona = models.persona(name)
    return _entry(models.find(name), models) | (_of_persona(persona) if persona is not None else {})


def _of_persona(persona: Persona) -> dict[str, Any]:
    """The fields of a persona that differ from those of its model."""
    return {
        "id": persona.name,
        "created": int(persona.modified),
        "aliases": [],
        "version": persona.digest[:12],
        "parent": persona.base,
    }


def _entry(model: InstalledModel, models: ModelManager) -> dict[str, Any]:
    """The object. `sampling` names the fields that the running engine honours per request; empty while none runs."""
    served = models.served(model)
    engine = served.engine if served is not None else None
    return {
        "id": model.name,
        "object": "model",
        "created": int(model.modified),
        "owned_by": "qwen-service",
        "aliases": list(model.spec.aliases),
        "state": STATES[served.phase] if served is not None else "installed",
        "runtime": model.spec.runtime,
        "capabilities": abilities(model, engine),
        "version": model.digest[:12],
        "size": model.size,
        "parent": None,
        "stopgap": model.spec.stopgap or None,
        "context": engine.limits.context if engine is not None else model.spec.context,
        "prompt_limit": engine.limits.prompt if engine is not None else model.spec.prompt_limit,
        "sampling": sorted(engine.runtime.capabilities.sampling) if engine is not None else [],
    }
