"""Tells systemd the state of the served model: loading, ready, and alive as long as the event loop runs."""

import asyncio

from qwen_service.engines.manager import ModelManager
from qwen_service.operation.systemd_notify import SystemdNotifier

INTERVAL = 1.0  # seconds between two messages; a unit's WatchdogSec must be several times longer
PATIENCE = 60.0  # seconds that each message asks systemd to wait longer while a model loads


async def report(systemd: SystemdNotifier, models: ModelManager, interval: float = INTERVAL) -> None:
    """Report until cancelled. A model that cannot be loaded counts as ready, too: the service then answers with the reason."""
    ready, said = False, ""
    while systemd.is_heard:
        status, settled = _status(models)
        if not ready and settled:
            ready = True
            systemd.ready(status)
        elif not ready:
            systemd.loading(status, PATIENCE)
        elif status != said:
            systemd.status(status)
        systemd.alive()
        said = status
        await asyncio.sleep(interval)


def _status(models: ModelManager) -> tuple[str, bool]:
    """The text for `systemctl status`, and whether loading has ended."""
    current = models.current
    if current is None:
        return models.trouble or "no model is loaded", True
    if current.asleep:
        return f"{current.name}: unloaded, because nobody uses it", True
    if (reason := current.out_of_service()) is not None:
        return f"{current.name}: {reason.message}", True
    engines = ", ".join(filter(None, (engine.progress for engine in current.supervisors)))
    return f"{current.name}: {current.phase}" + (f", {engines}" if engines else ""), current.phase == "ready"
