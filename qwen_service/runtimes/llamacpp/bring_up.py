"""Bring up a GGUF on llama.cpp. The engine is its tokenizer, too, and knows the chat template."""

from functools import partial

from qwen_service.engine import BringUp, Engine, ModelText
from qwen_service.models.installed import InstalledModel
from qwen_service.models.machine import Machine
from qwen_service.runtime import LoadProgress
from qwen_service.runtimes.llamacpp.runtime import LlamaCpp
from qwen_service.settings import Settings
from qwen_service.text.output_format import OutputFormat
from qwen_service.text.template import SPECIAL_TOKEN_SHAPE, ChatTemplate

# Special tokens of prompts that clients render themselves (fill-in-the-middle), beside those of the template.
_RAW_PROMPT_TOKENS = ("<|endoftext|>", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|file_sep|>")


def loaders(model: InstalledModel, settings: Settings, _machine: Machine) -> dict[str, BringUp]:
    return {model.name: partial(_load, model, settings)}


async def _load(model: InstalledModel, settings: Settings, progress: LoadProgress) -> Engine:
    runtime = LlamaCpp(
        model_path=model.gguf,
        mmproj=model.mmproj,
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
    text = ModelText(runtime, template, OutputFormat.of_template(template.source))
    return Engine(runtime, limits, text)
