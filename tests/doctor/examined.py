"""What the doctor finds on a recorded machine."""

from pathlib import Path
from typing import Any

from qwen_service.doctor.examination import examine
from qwen_service.doctor.finding import Finding
from qwen_service.doctor.host import Host
from qwen_service.settings import Settings
from tests.recorded_machine import RecordedMachine


def settings(models: Path, **values: Any) -> Settings:
    return Settings(models_dir=models, log_dir=models.parent / "log", **values)


async def findings(pi: RecordedMachine, models: Path, host: Host | None = None) -> list[Finding]:
    return await examine(host or pi.host(), settings(models))


async def the(area: str, pi: RecordedMachine, models: Path, host: Host | None = None) -> list[Finding]:
    return [finding for finding in await findings(pi, models, host) if finding.area == area]


def only(found: list[Finding], *levels: str) -> Finding:
    (finding,) = [finding for finding in found if finding.level in (levels or ("warn", "fail"))]
    return finding
