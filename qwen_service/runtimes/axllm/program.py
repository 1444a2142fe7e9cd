"""Which axllm is run: the folder's own or the one on PATH, if it was built for this kind of machine.

A model's package may bring a build for the board where a host with a card needs one for AXCL. `axllm version` tells.
"""

import logging
import re
from collections.abc import Iterator
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


async def find_axllm(model: InstalledModel, machine: Machine) -> str:
    """Its path. Raises StartFailed, which names each that was found and why it cannot be used."""
    wanted: Backend = "AX650" if machine.is_board else "AXCL"
    wrong: list[str] = []
    for path in _candidates(model):
        said = await _version(path)
        backend = backend_of(said)
        if backend in (None, wanted):
            log.info("%s: %s", path, " ".join(said.split())[:200] or "tells no version")
            return str(path)
        wrong.append(f"{path} is a build for {NEEDED_ON[backend]} ({backend}), this is {NEEDED_ON[wanted]}")
        log.warning("%s", wrong[-1])
    where = WHERE.format(wanted=f"{NEEDED_ON[wanted]} ({wanted})", folder=model.folder)
    raise StartFailed(f"{'; '.join(wrong) or 'There is no axllm here'}. {where}", permanent=True)


def backend_of(version: str) -> Backend | None:
    """What `axllm version` says that it was built for; None where it does not say."""
    if re.search(r"\bAXCL\b", version, re.IGNORECASE):
        return "AXCL"
    return "AX650" if re.search(r"\bAX650", version, re.IGNORECASE) else None


def _candidates(model: InstalledModel) -> Iterator[Path]:
    for place in (model.folder / AXLLM, model.folder / "bin" / AXLLM):
        if place.is_file() and not is_lfs_pointer(place):
            mend_program(place)
            yield place.absolute()
    try:
        yield Path(find_program(AXLLM))
    except OSError:  # none on PATH; the folder may have had one
        return


async def _version(path: Path) -> str:
    try:
        return (await run_tool([str(path), "version"], VERSION_TIMEOUT)).output
    except (OSError, TimeoutError) as error:
        log.warning("%s version: %s", path, error or "no answer")
        return ""
