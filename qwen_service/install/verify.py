"""`verify`: checks that every file of an installed model is unchanged."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qwen_service.install.partial_file import sha256_of
from qwen_service.install.progress import ProgressSink, Tally
from qwen_service.models.installed import InstalledModel, is_lfs_pointer, pointer_advice
from qwen_service.models.machine import Machine
from qwen_service.models.record import InstallRecord, load_record


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result. `problems` are sentences; `unknown`: files without a published or recorded checksum."""

    checked: int
    problems: tuple[str, ...]
    unknown: tuple[str, ...]


def verify(model: InstalledModel, machine: Machine, sink: ProgressSink) -> Verdict:
    record = load_record(model.folder)
    expected = _expected(model, record)
    there = [path for path in expected if (model.folder / path).is_file()]
    problems = [f"{path}: missing" for path in expected if path not in there]
    pointers = [path for path in there if is_lfs_pointer(model.folder / path)]
    if pointers:
        problems.append(pointer_advice(pointers))
    tally = Tally(sink, "verifying", len(there), sum((model.folder / path).stat().st_size for path in there))
    for path in there:
        found = sha256_of(model.folder / path, tally.add_bytes)
        tally.add_file()
        if path not in pointers and found != (expected[path] or found):
            problems.append(f"{path}: sha256 {found}, expected {expected[path]}")
    problems += _program_problems(model, machine)
    return Verdict(len(there), tuple(problems), tuple(path for path in there if expected[path] is None))


def _expected(model: InstalledModel, record: InstallRecord | None) -> Mapping[str, str | None]:
    """Path -> sha256. A checksum in the manifest wins over a recorded one."""
    expected: dict[str, str | None] = {file.path: None for file in model.spec.files}
    if record is not None:
        expected |= {path: file.sha256 for path, file in record.files.items()}
    return expected | {file.path: file.sha256 for file in model.spec.files if file.sha256}


def _program_problems(model: InstalledModel, machine: Machine) -> list[str]:
    if machine.kind not in model.spec.programs:
        return []
    program = Path(model.program(machine))
    if not program.is_file():
        return [f"{program.name}: the program for this machine is missing"]
    return [] if os.access(program, os.X_OK) else [f"{program.name}: has no run bit; cure: chmod +x {program}"]
