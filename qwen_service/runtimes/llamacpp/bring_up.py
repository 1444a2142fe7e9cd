"""Brings up a GGUF on llama.cpp, which also tokenizes and knows the chat template."""

import logging
from functools import partial

from qwen_service.engine import BringUp, Engine, ModelText
from qwen_service.models.installed import InstalledModel
from qwen_service.models.machine import Machine
from qwen_service.runtime import LoadProgress
from qwen_service.runtimes.llamacpp.gguf import GgufError, GgufShape, read_shape
from qwen_service.runtimes.llamacpp.runtime import LlamaCpp
from qwen_service.settings import Settings
from qwen_service.text.output_parser import OutputFormat
from qwen_service.text.template import SPECIAL_TOKEN_SHAPE, ChatTemplate

log = logging.getLogger(__name__)

# Special tokens of prompts that clients render themselves (fill-in-the-middle), beside those of the template.
_RAW_PROMPT_TOKENS = ("<|endoftext|>", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|file_sep|>")
# Sizes of a context.
SMALLEST = 256  # tokens; llama.cpp rounds up to a multiple of it
LEAST = 4096  # tokens; the least with which an assistant with tools works
GOOD = 8192  # tokens; enough for Home Assistant and for coding agents
UNKNOWN = 4096  # tokens, when the file does not say how much memory a token takes
KEPT_FREE = 0.1  # share of the memory for compute buffers and the cached prompts of former conversations


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


def default_context(shape: GgufShape, weights: int, available: int) -> int:
    """What the model was trained for, as far as memory allows, in tokens. `weights` and `available` are in bytes; 0: unknown.

    Up to GOOD the context may use all memory beside the weights, above that half of it, because other programs run here,
    too. The result is one of few round numbers, so that a start with slightly less memory gives the same.
    """
    trained = shape.train_context or UNKNOWN
    if not shape.bytes_per_token or not available:
        return min(trained, UNKNOWN)
    left = max(0, available - weights)
    half = left // 2 // shape.bytes_per_token
    all_but_reserve = int(left - KEPT_FREE * available) // shape.bytes_per_token
    bearable = half if half >= GOOD else min(GOOD, all_but_reserve)
    return min(trained, max(LEAST, _round(bearable)))


def _round(tokens: int) -> int:
    """Round down to 4096, 6144, 8192, 12288, 16384 and so on."""
    if tokens < LEAST:
        return tokens
    power = 1 << (tokens.bit_length() - 1)
    return power + power // 2 if tokens >= power + power // 2 else power
