"""The capabilities of a model, in Ollama's words: completion, tools, insert, thinking, vision, embedding. All dialects show the same."""

from qwen_service.engine import Engine
from qwen_service.models.installed import InstalledModel
from qwen_service.text.fill_in_middle import supports_infill


def abilities(model: InstalledModel, engine: Engine | None) -> list[str]:
    """Read them from the template and vocabulary of the loaded model; while it is not loaded, from its manifest and folder."""
    if engine is None:
        return sorted(model.capabilities)
    template = engine.text.template
    offers = {
        "completion": True,
        "tools": template.supports_tools,
        "insert": supports_infill(model.spec, template),
        "thinking": template.supports_thinking,
        "vision": "vision" in model.capabilities,
    }
    return [name for name, offered in offers.items() if offered]
