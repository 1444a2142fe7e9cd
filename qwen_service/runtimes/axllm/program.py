"""Finds the axllm to run: the folder's own or the one on PATH, if it was built for this kind of machine.

A model's package may contain a build for the board, while a host with a card needs one for AXCL. `axllm version` says which it is.
"""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qwen_service.errors import StartFailed
from qwen_service.models.installed import InstalledModel, is_lfs_pointer
from qwen_service.models.machine import Machine
from qwen_service.models.spec import AXLLM
from qwen_service.process.child import find_program, run_tool
from qwen_service.runtimes.axera.program_files import mend_program

log = logging.getLogger(__name__)

VERSION_TIMEOUT = 10.0  # seconds
WHERE = "Get the build for {wanted} from the vendor (github.com/AXERA-TECH/ax-llm, branch axllm), and put it on PATH or into {folder}."

Backend = Literal["AXCL", "AX650"]
NEEDED_ON: dict[Backend, str] = {"AXCL": "a host with a card", "AX650": "the AX650 board"}


@dataclass(frozen=True, slots=True)
class Build:
    """An axllm that was found, and what `axllm version` says about it."""

    path: Path
    version: str

    @property
    def backend(self) -> Backend | None:
        return backend_of(self.version)

    def mistake(self, machine: Machine) -> str:
        """Why it does not fit this machine; empty when it fits, or does not say what it was built for."""
        wanted = backend_for(machine)
        if self.backend in (None, wanted):
            return ""
        return f"{self.path} is a build for {NEEDED_ON[self.backend]} ({self.backend}), but this machine is {NEEDED_ON[wanted]}"


async def find_axllm(model: InstalledModel, machine: Machine) -> str:
    """Find the path. Raises StartFailed that names each build found and why it cannot be used."""
    wrong: list[str] = []
    for path in _candidates(model):
        build = Build(path, await version_of(path))
        if not (mistake := build.mistake(machine)):
            log.info("%s is used: %s", path, build.version or "it tells no version")
            return str(path)
        wrong.append(mistake)
        log.warning("%s", mistake)
    raise StartFailed(
        f"{'; '.join(wrong) or f'There is no axllm in {model.folder} or on PATH'}. {advice(model, machine)}",
        permanent=True,
    )


def backend_for(machine: Machine) -> Backend:
    return "AX650" if machine.is_board else "AXCL"


def advice(model: InstalledModel, machine: Machine) -> str:
    """Advice where to get the build for this machine."""
    wanted = backend_for(machine)
    return WHERE.format(wanted=f"{NEEDED_ON[wanted]} ({wanted})", folder=model.folder)


def own_builds(model: InstalledModel) -> list[Path]:
    """The builds in the model's folder."""
    places = (model.folder / AXLLM, model.folder / "bin" / AXLLM)
    return [place.absolute() for place in places if place.is_file() and not is_lfs_pointer(place)]


def backend_of(version: str) -> Backend | None:
    """The target that `axllm version` names; None when it names none."""
    if re.search(r"\bAXCL\b", version, re.IGNORECASE):
        return "AXCL"
    return "AX650" if re.search(r"\bAX650", version, re.IGNORECASE) else None


def _candidates(model: InstalledModel) -> Iterator[Path]:
    for place in own_builds(model):
        mend_program(place)
        yield place
    try:
        yield Path(find_program(AXLLM))
    except OSError:  # none on PATH, or it cannot be run
        return


async def version_of(path: Path) -> str:
    """The first words of its output; empty when there is none."""
    try:
        said = (await run_tool([str(path), "version"], VERSION_TIMEOUT)).output
    except (OSError, TimeoutError) as error:
        log.warning("`%s version` failed: %s", path, error or f"no answer within {VERSION_TIMEOUT:g} s")
        return ""
    return " ".join(said.split())[:200]
