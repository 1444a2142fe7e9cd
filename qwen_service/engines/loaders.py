"""Maps each kind of runtime to the module that brings up its models."""

from collections.abc import Callable
from importlib import import_module
from typing import cast

from qwen_service.engine import BringUp
from qwen_service.models.installed import InstalledModel
from qwen_service.models.machine import Machine
from qwen_service.models.spec import RuntimeName
from qwen_service.settings import Settings

# One loader for each device of the model, under the device's name in logs and /health.
Loaders = Callable[[InstalledModel, Settings, Machine], dict[str, BringUp]]

# Imported when needed: a laptop does not load the code for cards, nor a card's host the code for llama.cpp.
LOADING: dict[RuntimeName, str] = {
    "llamacpp": "qwen_service.runtimes.llamacpp.bring_up",
    "ax_repl": "qwen_service.runtimes.axera.bring_up",
    "ax_api": "qwen_service.runtimes.axera.bring_up",
    "axllm": "qwen_service.runtimes.axllm.bring_up",
}


def loaders_for(model: InstalledModel, settings: Settings, machine: Machine) -> dict[str, BringUp]:
    loaders = cast(Loaders, import_module(LOADING[model.spec.runtime]).loaders)
    return loaders(model, settings, machine)
