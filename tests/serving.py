"""Served models around scripted runtimes: letters are tokens, and the template is Qwen's in four lines."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_service.chat import Sampling
from qwen_service.engine import BringUp, Engine, ModelText
from qwen_service.engines.loaders import Loaders
from qwen_service.engines.manager import ModelManager
from qwen_service.engines.served import ServedModel
from qwen_service.engines.supervisor import Supervisor
from qwen_service.engines.waiting_room import WaitingRoom
from qwen_service.models.catalog import Catalog
from qwen_service.models.installed import InstalledModel
from qwen_service.models.machine import Machine
from qwen_service.models.spec import ModelSpec
from qwen_service.pipeline.chat_completion import ChatCompletion
from qwen_service.pipeline.conversation import SessionManager
from qwen_service.pipeline.scheduler import Scheduler
from qwen_service.runtime import LoadProgress, Piece, Prefill, Prompt
from qwen_service.settings import Settings
from qwen_service.text.output_parser import OutputFormat
from qwen_service.text.template import ChatTemplate
from tests.fakes import LetterTokenizer, ScriptedRuntime

SPECIAL_IDS = {"<|im_start|>": 1, "<|im_end|>": 2, "<think>": 3, "</think>": 4}
TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{{ note }}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
    "{% for c in m.tool_calls %}{{ c.function.name }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}{% if enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
)
QWEN = OutputFormat(("<think>", "</think>"), ("<tool_call>", "</tool_call>"))


def model_text(template: str = TEMPLATE, output_format: OutputFormat = QWEN) -> ModelText:
    return ModelText(LetterTokenizer(), ChatTemplate(template, SPECIAL_IDS), output_format)


def installed(name: str = "m", **spec: Any) -> InstalledModel:
    return InstalledModel(ModelSpec(name, "llamacpp", (), **spec), Path())


def brings_up(make: Callable[[], ScriptedRuntime], text: ModelText | None = None) -> BringUp:
    async def bring_up(progress: LoadProgress) -> Engine:
        runtime = make()
        return Engine(runtime, await runtime.start(progress), text or model_text())

    return bring_up


@asynccontextmanager
async def served_model(
    *runtimes: ScriptedRuntime, on_change: Callable[[], None] = lambda: None, **spec: Any
) -> AsyncGenerator[ServedModel, None]:
    """A model that is ready, one device for each runtime."""
    supervisors = tuple(
        Supervisor(f"m-{number}", brings_up(lambda runtime=runtime: runtime), on_change=on_change)  # type: ignore[misc] # a default binds early
        for number, runtime in enumerate(runtimes)
    )
    model = ServedModel(installed(**spec), supervisors)
    model.start()
    await asyncio.gather(*(supervisor.finished_loading() for supervisor in supervisors))
    try:
        yield model
    finally:
        await model.stop()


async def says_hi(prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Prefill | Piece, None]:
    yield Prefill(len(prompt.token_ids), 3)
    yield Piece("H", 1, (72,))
    yield Piece("i", 1, (105,), finish_reason="stop")


def settings_with_models(folder: Path, *names: str, manifest: str = "", **changed: Any) -> Settings:
    """Settings under which models of these names are installed; `manifest` is what their manifests say besides."""
    manifests = folder / "models" / "manifests"
    manifests.mkdir(parents=True, exist_ok=True)
    for name in names:
        (manifests / f"{name}.yaml").write_text(
            f"name: {name}\nruntime: llamacpp\nfiles: [{{path: weights.gguf}}]\n{manifest}"
        )
        (folder / "models" / name).mkdir(exist_ok=True)
        (folder / "models" / name / "weights.gguf").write_bytes(b"GGUF")
    changed = {"model": names[0] if names else "auto", **changed}
    return Settings(models_dir=folder / "models", state_dir=folder / "state", **changed)


def loads(make: Callable[[], ScriptedRuntime], text: ModelText | None = None) -> Loaders:
    """Every model on one device."""
    return lambda model, settings, machine: {model.name: brings_up(make, text)}


@dataclass
class Pipeline:
    models: ModelManager
    scheduler: Scheduler
    sessions: SessionManager
    chat: ChatCompletion


@asynccontextmanager
async def pipeline(
    settings: Settings, loaders: Loaders, machine: Machine | None = None
) -> AsyncGenerator[Pipeline, None]:
    """From request to events, with the first model loaded."""
    room = WaitingRoom(settings.queue_size, settings.queue_timeout)
    scheduler = Scheduler(room)
    models = ModelManager(
        settings,
        Catalog.load(settings.models_dir),
        machine or Machine(),
        on_change=scheduler.dispatch,
        loaders=loaders,
        room=room,
    )
    sessions = SessionManager()
    chat = ChatCompletion(models, sessions, scheduler)
    await models.start()
    if models.current is not None:
        await models.current.first_load_done()
    try:
        yield Pipeline(models, scheduler, sessions, chat)
    finally:
        await models.stop()
