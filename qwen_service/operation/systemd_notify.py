"""What systemd wants to hear from a unit of Type=notify: ready, status, still alive, stopping (man sd_notify).

Without systemd ($NOTIFY_SOCKET is not set) nothing is said to nobody.
"""

import os
import socket
from collections.abc import Mapping
from contextlib import suppress


class SystemdNotifier:
    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address  # @: no file, an abstract name

    @property
    def is_heard(self) -> bool:
        return bool(self._address)

    def ready(self, status: str) -> None:
        """Once, when the model answers: units that wait for this one start now."""
        self._send("READY=1", f"STATUS={status}")

    def status(self, text: str) -> None:
        """Shown by `systemctl status`."""
        self._send(f"STATUS={text}")

    def loading(self, status: str, seconds: float) -> None:
        """Not ready yet, but getting on: do not give up on us for so many seconds."""
        self._send(f"STATUS={status}", f"EXTEND_TIMEOUT_USEC={seconds * 1e6:.0f}")

    def stopping(self) -> None:
        self._send("STOPPING=1", "STATUS=stopping")

    def alive(self) -> None:
        """For the watchdog of the unit; to be said more often than its WatchdogSec."""
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if not self.is_heard:
            return
        message = "\n".join(line.replace("\n", " ") for line in lines)
        # A full or vanished socket is systemd's affair; no reply may fail because of it.
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, suppress(OSError):
            sender.setblocking(False)
            sender.sendto(message.encode(), self._address)
