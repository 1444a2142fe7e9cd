"""Tells systemd the state of the served model, by the messages of a Type=notify unit (man sd_notify).

Does nothing when $NOTIFY_SOCKET is not set.
"""

import asyncio
import os
import socket
from collections.abc import Mapping
from contextlib import suppress

from qwen_service.engines.manager import ModelManager

INTERVAL = 1.0  # seconds between two messages; a unit's WatchdogSec must be several times longer
PATIENCE = 60.0  # seconds that each message asks systemd to wait longer while a model loads


class SystemdNotifier:
    """Sends the messages: ready, status, watchdog, stopping."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        # A leading @ means an abstract socket.
        self._address = "\0" + address[1:] if address.startswith("@") else address

    @property
    def is_heard(self) -> bool:
        return bool(self._address)

    def ready(self, status: str) -> None:
        """Say, once, that the model answers: systemd then starts the units that wait for this one."""
        self._send("READY=1", f"STATUS={status}")

    def status(self, text: str) -> None:
        """Set the text that `systemctl status` shows."""
        self._send(f"STATUS={text}")

    def loading(self, status: str, seconds: float) -> None:
        """Say that loading goes on, and ask systemd to wait `seconds` longer."""
        self._send(f"STATUS={status}", f"EXTEND_TIMEOUT_USEC={seconds * 1e6:.0f}")

    def stopping(self) -> None:
        self._send("STOPPING=1", "STATUS=stopping")

    def alive(self) -> None:
        """Tell the watchdog that we are alive. Call it more often than WatchdogSec."""
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if not self.is_heard:
            return
        message = "\n".join(line.replace("\n", " ") for line in lines)
        # When systemd's socket is full or gone, the message is dropped: no request may fail because of it.
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, suppress(OSError):
            sender.setblocking(False)
            sender.sendto(message.encode(), self._address)


async def report(systemd: SystemdNotifier, models: ModelManager, interval: float = INTERVAL) -> None:
    """Report until cancelled: loading, then ready, and alive as long as the event loop runs.

    A model that cannot be loaded counts as ready, too, because the service then answers with the reason.
    """
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
