"""Fill in the middle: the text between a prompt and a suffix, as Qwen's coder models were trained to write it."""

from qwen_service.errors import Unsupported
from qwen_service.models.spec import ModelSpec
from qwen_service.runtime import PromptParts
from qwen_service.text.template import ChatTemplate

_MARKS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")


def supports_infill(spec: ModelSpec, template: ChatTemplate) -> bool:
    """Other models of the family have the marks too, and no training: a manifest says so. Of an owner's own file
    we know nothing but the marks."""
    knows = "insert" in spec.capabilities or spec.source is None
    return knows and all(mark in template.special_ids for mark in _MARKS)


def infill_prompt(spec: ModelSpec, template: ChatTemplate, prompt: str, suffix: str) -> PromptParts:
    if not supports_infill(spec, template):
        raise Unsupported(f"{spec.name} does not support insert: it cannot fill in before a suffix", param="suffix")
    before, after, middle = (template.special_ids[mark] for mark in _MARKS)
    return [before, prompt, after, suffix, middle]
