"""Sends systemd the messages of a Type=notify unit: ready, status, watchdog, stopping (man sd_notify).

Does nothing when $NOTIFY_SOCKET is not set.
"""

import os
import socket
from collections.abc import Mapping
from contextlib import suppress


class SystemdNotifier:
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
