"""Prepares and checks the files of a vendor's program: its run bit, its sampling file, its model files.

Also finds the settings for which a build of the program has no flag.
"""

import json
import logging
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from qwen_service.errors import StartFailed
from qwen_service.models.installed import InstalledModel, is_lfs_pointer
from qwen_service.models.machine import Machine
from qwen_service.settings import Settings

logger = logging.getLogger(__name__)

FETCH = "`qwen-service pull` fetches it again."
SAMPLING = "post_config.json"  # in the model's folder
SAMPLING_KEYS = frozenset({
    "enable_temperature", "temperature", "enable_repetition_penalty", "repetition_penalty", "penalty_window",
    "enable_top_p_sampling", "top_p", "enable_top_k_sampling", "top_k",
})  # fmt: skip
STOCK_PORT = 8000
CURE = "If your build has a flag for it, put {%s} into the manifest's arguments."


def mend_program(path: Path) -> None:
    """Set the program's run bit. Raises StartFailed when it is missing, is a git-lfs pointer, or cannot be changed."""
    if not path.is_file():
        raise StartFailed(f"There is no program {path}. {FETCH}", permanent=True)
    if is_lfs_pointer(path):
        raise StartFailed(f"{path} is a git-lfs pointer, not the program itself. {FETCH}", permanent=True)
    mode = path.stat().st_mode
    if mode & stat.S_IXUSR:
        return
    try:
        path.chmod(mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    except PermissionError as error:
        raise StartFailed(
            f"{path} has no run bit, and this user may not set it: sudo chmod +x {path}", permanent=True
        ) from error
    logger.info("%s had no run bit; it has one now", path)


def write_post_config(folder: Path, config: Mapping[str, bool | int | float]) -> None:
    """Write post_config.json, which the program reads once at its start; an incomplete file would crash it."""
    path = folder / SAMPLING
    text = json.dumps(dict(config), indent=2) + "\n"
    if not config or (path.is_file() and path.read_text(encoding="utf-8", errors="replace") == text):
        return
    try:
        draft = folder / f"{SAMPLING}.new"
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        # A read-only model folder keeps the vendor's own file.
        logger.warning("%s cannot be written (%s): the model samples as the vendor set it", path, error.strerror)


def unusable_files(argv: Sequence[str], folder: Path) -> str | None:
    """Why files of the command line cannot be loaded; None when they look right."""
    for path in (folder / name for name in _named_files(argv)):
        if not path.is_file():
            return f"The model's file {path} is missing. {FETCH}"
        if is_lfs_pointer(path):
            return f"{path} is a git-lfs pointer, not the file itself. {FETCH}"
    return None


def unusable_sampling(folder: Path) -> str | None:
    """Why the sampling file would make the program abort silently; None when it is complete or missing (then it is greedy)."""
    path = folder / SAMPLING
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        return f"{path} is not JSON: {error}. Mend it, or delete it."
    missing = sorted(SAMPLING_KEYS.difference(config if isinstance(config, dict) else ()))
    return f"{path} lacks {', '.join(missing)}. Mend it, or delete it." if missing else None


def _named_files(argv: Sequence[str]) -> Iterator[str]:
    """The files that the arguments name. Layers are named by a template with %d and counted by --axmodel_num."""
    options = dict(zip(argv[1::2], argv[2::2], strict=False))
    for value in options.values():
        if not value.endswith((".axmodel", ".bin")):
            continue
        if "%d" in value:
            yield from (value.replace("%d", str(layer)) for layer in range(int(options.get("--axmodel_num", "1"))))
        else:
            yield value


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
