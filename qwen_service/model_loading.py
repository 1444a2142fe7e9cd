"""From an installed model to a running engine: which runtime, with which arguments, and its text tools."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from qwen_service.chat_template import SPECIAL_TOKEN_SHAPE, ChatTemplate
from qwen_service.config import Settings
from qwen_service.installed_model import InstalledModel
from qwen_service.machine import Machine
from qwen_service.output_parser import OutputFormat
from qwen_service.runtimes.base import LoadProgress
from qwen_service.supervisor import BringUp, Engine, ModelText

# One loader per device that the model is to run on, by the name it has in logs and /health.
Loaders = Callable[[InstalledModel, Settings, Machine], dict[str, BringUp]]

# Loaded when needed: a laptop never imports the card's runtimes, a card never llama.cpp's.
RUNTIME_CLASSES = {
    "llamacpp": "qwen_service.runtimes.llamacpp:LlamaCpp",
    "ax_repl": "qwen_service.runtimes.ax_repl:AxRepl",
    "ax_api": "qwen_service.runtimes.ax_api:AxApi",
    "axllm": "qwen_service.runtimes.axllm:AxLlm",
}
# Special tokens of prompts that clients render themselves (fill-in-the-middle), beside those of the template.
_RAW_PROMPT_TOKENS = ("<|endoftext|>", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|file_sep|>")


def runtime_class(name: str) -> Any:
    module, _, attribute = RUNTIME_CLASSES[name].partition(":")
    return getattr(import_module(module), attribute)


def loaders_for(model: InstalledModel, settings: Settings, machine: Machine) -> dict[str, BringUp]:
    del machine
    return {model.name: partial(_load_gguf, model, settings)}


async def _load_gguf(model: InstalledModel, settings: Settings, progress: LoadProgress) -> Engine:
    runtime = runtime_class("llamacpp")(
        model_path=model.gguf,
        slots=settings.slots,
        context_per_slot=settings.context_size,
        threads=settings.threads or None,
        llama_server=settings.llama_server,
        state_dir=settings.state_folder,
        log_path=settings.log_folder / "model.log",
        stall_timeout=settings.stall_timeout,
    )
    try:
        limits = await runtime.start(progress)
        candidates = {*SPECIAL_TOKEN_SHAPE.findall(runtime.chat_template), *_RAW_PROMPT_TOKENS}
        candidates |= {runtime.bos_token, runtime.eos_token} - {""}
        ids = await runtime.special_ids(sorted(candidates))
        template = ChatTemplate(runtime.chat_template, ids, bos_token=runtime.bos_token, eos_token=runtime.eos_token)
    except BaseException:
        await runtime.stop()
        raise
    return Engine(runtime, limits, ModelText(runtime, template, output_format_of(template)))


def output_format_of(template: ChatTemplate) -> OutputFormat:
    """The template shows what the model writes: Qwen's tags stand in it where the model knows them."""
    return OutputFormat(
        reasoning=("<think>", "</think>") if "</think>" in template.source else None,
        tool_call=("<tool_call>", "</tool_call>") if "<tool_call>" in template.source else None,
    )
