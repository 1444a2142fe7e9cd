"""Brings up a model folder with `axllm serve`, or joins a running server."""

import asyncio
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from qwen_service.card.faults import CardFault
from qwen_service.card.recovery import CardRecovery, card_recovery, prepare_cards, reboot_may_help
from qwen_service.chat import PromptParts
from qwen_service.engine import BringUp, Engine, ModelText
from qwen_service.errors import InstallError, StartFailed
from qwen_service.models.installed import InstalledModel, pointer_advice
from qwen_service.models.machine import Machine
from qwen_service.runtime import Limits, LoadProgress
from qwen_service.runtimes.axera.program import AxeraProgram
from qwen_service.runtimes.axera.program_files import fixed_port
from qwen_service.runtimes.axllm.own_config import note_slot_size, told_folder
from qwen_service.runtimes.axllm.program import find_axllm
from qwen_service.runtimes.axllm.runtime import LIMITS, AxLlm
from qwen_service.runtimes.axllm.slots import SlotLog
from qwen_service.settings import Settings
from qwen_service.text.output_parser import OutputFormat
from qwen_service.text.template import ChatTemplate
from qwen_service.text.tokenizer import LocalTokenizer

BYTES_PER_TOKEN = 3  # English has 4 to 5, Chinese about 3 to 4
ROUGH_TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}\n{% endif %}"
    "{% for message in messages %}{{ message.role }}: {{ message.content }}"
    "{% if message.tool_calls %}{{ message.tool_calls | tojson }}{% endif %} ....\n{% endfor %}"
)

log = logging.getLogger(__name__)

QWEN_TAGS = OutputFormat(("<think>", "</think>"), ("<tool_call>", "</tool_call>"))


def loaders(model: InstalledModel, settings: Settings, machine: Machine) -> dict[str, BringUp]:
    """The one loader: the program itself spreads over the cards of `devices`."""
    return {model.name: AxLlmLoader(model, settings, machine, card_recovery(settings, machine))}


@dataclass(frozen=True)
class AxLlmLoader:
    model: InstalledModel
    settings: Settings
    machine: Machine
    recovery: CardRecovery | None

    async def __call__(self, progress: LoadProgress) -> Engine:
        if pointers := self.model.lfs_pointers():
            raise StartFailed(pointer_advice(pointers), permanent=True)
        if warning := fixed_port(self.model, self.settings, self.machine):
            log.warning("%s", warning)
        tokenizer = await asyncio.to_thread(_tokenizer, self.model)
        spec, settings = self.model.spec, self.settings
        if not settings.runtime_join:
            await prepare_cards(self.recovery, settings.devices, self._memory_per_card(), progress)
        own = None if settings.runtime_join or spec.programs else await find_axllm(self.model, self.machine)
        slots = SlotLog()
        context = spec.context or LIMITS.context
        folder = await told_folder(self.model, settings, self.machine, context, self._memory_per_card())
        program = AxeraProgram(
            command=partial(self._command, own, folder),
            folder=folder,
            env={**os.environ, "AXLLM_DEVICES": ",".join(map(str, settings.devices))},
            port=settings.runtime_port,
            log_path=settings.log_folder / "model.log",
            pid_file=settings.state_folder / "axllm.pid",
            stall_timeout=settings.stall_timeout,
            on_card_fault=self._note,
            on_line=slots.feed,
        )
        expected = Limits(context, spec.prompt_limit or LIMITS.prompt)
        runtime = AxLlm(program, tokenizer, expected=expected, join=settings.runtime_join, slots=slots)
        with reboot_may_help(self.recovery, settings.devices):
            limits = await runtime.start(progress)
        cache = "" if settings.runtime_join else self._noted(slots)
        return Engine(runtime, limits, _text(tokenizer), devices=settings.devices, cache=cache)

    def _noted(self, slots: SlotLog) -> str:
        note_slot_size(self.settings.state_folder, self.model.name, slots.slot_size)
        log.info("axllm keeps %s", slots.made)
        return str(slots.made)

    def _note(self, fault: CardFault) -> None:
        """Note a fault of the card. The program does not say which card."""
        if self.recovery is not None:
            for device in self.settings.devices:
                self.recovery.note(device, fault)

    def _memory_per_card(self) -> int:
        """Least memory per card in KiB: as measured, else the size of the weights."""
        weights = sum(path.stat().st_size for path in self.model.folder.glob("*.axmodel")) // 1024
        return self.model.spec.card_memory_kib or weights // len(self.settings.devices)

    def _command(self, program: str | None, folder: Path, values: Mapping[str, str]) -> list[str]:
        """The command. `program`: the axllm that was found; None when the manifest names another program."""
        devices = ",".join(map(str, self.settings.devices))
        argv = self.model.command(self.machine, {"devices": devices, "folder": str(folder), **values})
        return [program or argv[0], *argv[1:]]


def model_text(model: InstalledModel) -> ModelText:
    return _text(_tokenizer(model))


def _tokenizer(model: InstalledModel) -> LocalTokenizer | None:
    named = model.tokenizer_file
    found = named or next(iter(sorted(model.folder.glob("**/tokenizer.json"))), None)
    if found is None or not found.with_name("tokenizer_config.json").is_file():
        return None
    try:
        return LocalTokenizer(found.parent)
    except InstallError as error:
        raise StartFailed(error.message, permanent=True) from error


def _text(tokenizer: LocalTokenizer | None) -> ModelText:
    """The text tools. axllm renders and tokenizes by itself; ours only measure the length of a conversation."""
    if tokenizer is None:
        return ModelText(RoughTokenizer(), ChatTemplate(ROUGH_TEMPLATE, {}), QWEN_TAGS)
    template = ChatTemplate(tokenizer.chat_template, tokenizer.special_ids)
    return ModelText(tokenizer, template, OutputFormat.of_template(template.source))


class RoughTokenizer:
    """Estimates the length of a text for a model whose tokenizer is inside the engine. It must not underestimate."""

    async def encode(self, parts: PromptParts) -> list[int]:
        """One number for each few bytes. Texts with the same beginning give the same first numbers."""
        text = b"".join(
            part.to_bytes(BYTES_PER_TOKEN, "big") if isinstance(part, int) else part.encode("utf-8", "replace")
            for part in parts
        )
        pieces = range(0, len(text), BYTES_PER_TOKEN)
        return [int.from_bytes(text[start : start + BYTES_PER_TOKEN], "big") for start in pieces]
