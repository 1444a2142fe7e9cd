"""Finds settings for which a build of a vendor's program has no flag."""

from qwen_service.models.installed import InstalledModel
from qwen_service.models.machine import Machine
from qwen_service.settings import Settings

STOCK_PORT = 8000
CURE = "If your build has a flag for it, put {%s} into the manifest's arguments."


def fixed_card(model: InstalledModel, machine: Machine, *, index: int, device: int) -> str:
    """Why the program cannot run on `device`, the card number `index` of those in use; "" when it can."""
    if model.spec.runtime not in ("ax_repl", "ax_api"):  # axllm has AXLLM_DEVICES
        return ""
    if device and not model.can_be_told("devices", machine):
        return f"This build of {model.name} runs on card 0, and cannot be told to use card {device}. {CURE % 'devices'}"
    if index and model.spec.runtime == "ax_api" and not model.can_be_told("port", machine):
        return (
            f"This build of {model.name} has its port compiled in, so it runs on one card only, and not on card {device}"
            f" as well. {CURE % 'port'}"
        )
    return ""


def fixed_port(model: InstalledModel, settings: Settings, machine: Machine) -> str:
    """Why `runtime_port` has no effect on its program; "" when it has, or is the compiled-in port."""
    listens = model.spec.runtime in ("ax_api", "axllm")
    if not listens or settings.runtime_port == STOCK_PORT or model.can_be_told("port", machine):
        return ""
    return (
        f"runtime_port is {settings.runtime_port}, but {model.name} has no argument that passes it to its program; stock"
        f" builds listen on {STOCK_PORT} only. {CURE % 'port'}"
    )
