"""Brings up a GGUF on llama.cpp, which also tokenizes and knows the chat template."""

import logging
from functools import partial

from qwen_service.engine import BringUp, Engine, ModelText
from qwen_service.models.installed import InstalledModel
from qwen_service.models.machine import Machine
from qwen_service.runtime import LoadProgress
from qwen_service.runtimes.llamacpp.context_size import SMALLEST, UNKNOWN, default_context
from qwen_service.runtimes.llamacpp.gguf import GgufError, read_shape
from qwen_service.runtimes.llamacpp.runtime import LlamaCpp
from qwen_service.settings import Settings
from qwen_service.text.output_format import OutputFormat
from qwen_service.text.template import SPECIAL_TOKEN_SHAPE, ChatTemplate

log = logging.getLogger(__name__)

# Special tokens of prompts that clients render themselves (fill-in-the-middle), beside those of the template.
_RAW_PROMPT_TOKENS = ("<|endoftext|>", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|file_sep|>")


def loaders(model: InstalledModel, settings: Settings, machine: Machine) -> dict[str, BringUp]:
    return {model.name: partial(_load, model, settings, machine)}


async def _load(model: InstalledModel, settings: Settings, machine: Machine, progress: LoadProgress) -> Engine:
    context = max(SMALLEST, settings.context_size) if settings.context_size else _context_of(model, machine)
    runtime = LlamaCpp(
        model_path=model.gguf,
        mmproj=model.mmproj,
        slots=settings.slots,
        context=context,
        threads=settings.threads or None,
        llama_server=settings.llama_server,
        state_dir=settings.state_folder,
        log_path=settings.log_folder / "model.log",
        stall_timeout=settings.stall_timeout,
        keep_on_disk=settings.keep_on_disk << 20,
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
    log.info("%s: a context of %d tokens, shared by %d conversations at once", model.name, limits.context, limits.slots)
    return Engine(runtime, limits, text)


def _context_of(model: InstalledModel, machine: Machine) -> int:
    try:
        shape = read_shape(model.gguf)
        weights = sum(path.stat().st_size for path in (model.gguf, model.mmproj) if path is not None)
    except (OSError, GgufError) as error:  # llama.cpp itself reports whether it can load the file
        log.warning("%s gets a context of %d tokens, because its size is not known: %s", model.name, UNKNOWN, error)
        return UNKNOWN
    return default_context(shape, weights, machine.available_memory())
