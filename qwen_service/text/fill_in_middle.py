"""Fill-in-the-middle prompts: the model writes the text between a prefix and a suffix, as Qwen's coder models do."""

from qwen_service.chat import PromptParts
from qwen_service.errors import Unsupported
from qwen_service.models.spec import ModelSpec
from qwen_service.text.template import ChatTemplate

_MARKS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")


def supports_infill(spec: ModelSpec, template: ChatTemplate) -> bool:
    """Whether the model can. Models of the family that were not trained for it have the marks, too, so the manifest decides.
    For an owner's own file the marks are all that is known."""
    knows = "insert" in spec.capabilities or spec.source is None
    return knows and all(mark in template.special_ids for mark in _MARKS)


def infill_prompt(spec: ModelSpec, template: ChatTemplate, prompt: str, suffix: str) -> PromptParts:
    if not supports_infill(spec, template):
        raise Unsupported(
            f"{spec.name} does not support suffix: it cannot fill in text before one (capability insert).",
            param="suffix",
        )
    before, after, middle = (template.special_ids[mark] for mark in _MARKS)
    return [before, prompt, after, suffix, middle]
