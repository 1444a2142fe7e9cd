"""Brings up a model on a card: its tokenizer, our tokenizer server, the vendor's program. Stops them in reverse order."""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from qwen_service.card.faults import CardFault
from qwen_service.card.recovery import card_recovery, prepare_cards, reboot_may_help
from qwen_service.chat import Message
from qwen_service.engine import BringUp, Engine, ModelText
from qwen_service.errors import InstallError, InvalidRequest, StartFailed
from qwen_service.models.installed import InstalledModel, pointer_advice
from qwen_service.models.machine import Machine
from qwen_service.runtime import Limits, LoadProgress, Runtime
from qwen_service.runtimes.axera.program import AxeraProgram
from qwen_service.runtimes.axera.program_files import fixed_card, fixed_port
from qwen_service.runtimes.axera.repl import AxRepl
from qwen_service.runtimes.axera.repl_process import ReplProgram
from qwen_service.runtimes.axera.tokenizer_server import TokenizerServer
from qwen_service.settings import TOKENIZER_LOGGER, Settings
from qwen_service.text.output_parser import OutputFormat
from qwen_service.text.template import ChatTemplate
from qwen_service.text.tokenizer import LocalTokenizer

log = logging.getLogger(__name__)

AX_API = "qwen_service.runtimes.axera.api"  # imported when needed: its HTTP client takes 4 MB, the REPL needs none
OWN_TOKENIZER = (
    "{} is the vendor's program of 2026: it has a tokenizer of its own and never asks for ours (no --url_tokenizer_model)."
    " Such a folder is for axllm: `qwen-service list --all` shows the models for it, qwen3-4b-axllm among them. The program"
    " that this model needs is in an older commit of its repository; `qwen-service pull` takes that one."
)
SYSTEM_PROMPT = "You are a helpful assistant."  # for the command line only; conversations have their own


class CardText:
    """The tokenizer and chat template of a card's model, read once for all cards: they take 45 MB and half a second."""

    def __init__(self, model: InstalledModel) -> None:
        self._model = model
        self._reading = asyncio.Lock()
        self._text: tuple[LocalTokenizer, ChatTemplate] | None = None

    async def read(self, progress: LoadProgress) -> tuple[LocalTokenizer, ChatTemplate]:
        """Read them. Raises StartFailed; the next call reads the files again."""
        async with self._reading:
            if self._text is None:
                progress("reading the tokenizer")
                self._text = await asyncio.to_thread(self._read)
            return self._text

    def _read(self) -> tuple[LocalTokenizer, ChatTemplate]:
        if pointers := self._model.lfs_pointers():
            raise StartFailed(pointer_advice(pointers), permanent=True)
        assert self._model.tokenizer_file is not None, "a card's manifest names its tokenizer"
        try:
            tokenizer = LocalTokenizer(self._model.tokenizer_file.parent)
            return tokenizer, ChatTemplate(tokenizer.chat_template, tokenizer.special_ids)
        except InstallError as error:
            raise StartFailed(error.message, permanent=True) from error


def loaders(model: InstalledModel, settings: Settings, machine: Machine) -> dict[str, BringUp]:
    """The loaders: one for each card."""
    devices = tuple(dict.fromkeys(settings.devices))
    text = CardText(model)
    return {
        model.name if len(devices) == 1 else f"{model.name} on card {device}": CardLoader(
            model, text, settings, machine, index=index, device=device
        )
        for index, device in enumerate(devices)
    }


class CardLoader:
    """Loads one model onto one card, as often as needed. `index` counts the cards in use; `device` is the card's number."""

    def __init__(
        self, model: InstalledModel, text: CardText, settings: Settings, machine: Machine, *, index: int, device: int
    ) -> None:
        self._model = model
        self._text = text
        self._settings = settings
        self._machine = machine
        self._index = index
        self._device = device
        self._recovery = card_recovery(settings, machine)

    async def __call__(self, progress: LoadProgress) -> Engine:
        if reason := fixed_card(self._model, self._machine, index=self._index, device=self._device):
            raise StartFailed(reason, permanent=True)
        if self._model.spec.runtime == "ax_api" and await asyncio.to_thread(
            self._model.has_own_tokenizer, self._machine
        ):
            raise StartFailed(OWN_TOKENIZER.format(Path(self._model.program(self._machine)).name), permanent=True)
        if self._index == 0 and (warning := fixed_port(self._model, self._settings, self._machine)):
            log.warning("%s", warning)
        tokenizer, template = await self._text.read(progress)
        await prepare_cards(self._recovery, (self._device,), self._model.spec.card_memory_kib or 0, progress)
        async with AsyncExitStack() as undo:
            server = TokenizerServer(
                tokenizer,
                port=self._settings.tokenizer_port + self._index if self._settings.tokenizer_port else 0,
                log=logging.getLogger(TOKENIZER_LOGGER),
                render=partial(_render, template),
            )
            await server.start()
            undo.push_async_callback(server.stop)
            runtime = self._runtime(tokenizer, server)
            undo.push_async_callback(runtime.stop)
            with reboot_may_help(self._recovery, (self._device,)):
                limits = await runtime.start(progress)
            text = ModelText(tokenizer, template, OutputFormat.of_template(template.source))
            undo.pop_all()  # from here on the engine stops them
            return Engine(runtime, limits, text, companion=server, devices=(self._device,))

    def _runtime(self, tokenizer: LocalTokenizer, server: TokenizerServer) -> Runtime:
        spec = self._model.spec
        common: dict[str, Any] = {
            "command": self._command,
            "folder": self._model.folder.absolute(),
            "log_path": self._settings.log_folder / self._file("model", "log"),
            "pid_file": self._settings.state_folder / self._file(spec.runtime, "pid"),
            "stall_timeout": self._settings.stall_timeout,
            "on_card_fault": self._note,
        }
        if spec.runtime == "ax_repl":
            program = ReplProgram(post_config=spec.post_config, **common)
            return AxRepl(program, tokenizer, server, context=spec.context or 1024)
        expected = Limits(context=spec.context or 2559, prompt=spec.prompt_limit or 2048)
        api = AxeraProgram(port=self._settings.runtime_port + self._index, **common)
        return cast(Runtime, import_module(AX_API).AxApi(api, tokenizer, server, expected=expected))

    def _note(self, fault: CardFault) -> None:
        if self._recovery is not None:
            self._recovery.note(self._device, fault)

    def _command(self, values: Mapping[str, str]) -> list[str]:
        known = {"system_prompt": SYSTEM_PROMPT, "devices": str(self._device), **values}
        return self._model.command(self._machine, known)

    def _file(self, stem: str, suffix: str) -> Path:
        return Path(f"{stem}.{suffix}" if self._index == 0 else f"{stem}-{self._device}.{suffix}")


def _render(template: ChatTemplate, messages: list[dict[str, Any]], source: str | None) -> str:
    """Answer POST /chat_template of the tokenizer server, which is for people. Only the model's own template is run."""
    if source not in (None, "", "default", template.source):
        raise InvalidRequest("template: only the model's own template is run. Leave `template` out.")
    asked = [Message(entry.get("role", "user"), str(entry.get("content") or "")) for entry in messages]
    return template.spell(template.render(asked))
