"""uvicorn with the bounds it lacks: on slow and endless heads, on readers that do not read; and the admin socket.

Nothing here costs a streamed chunk anything.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

log = logging.getLogger(__name__)

MAX_UNREAD_HEAD = 65_536  # bytes of a head that has not ended; a whole one is judged by request_checks.HeadLimit


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """In seconds: for a head to arrive, and for a client to read what fills the send buffer."""

    head: float = 15.0
    write: float = 60.0


class GuardedProtocol(HttpToolsProtocol):
    limits: ClassVar[ConnectionLimits] = ConnectionLimits()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        self._head_bytes = 0
        self._head_alarm = _Alarm(self.loop, self.limits.head, self._head_is_late)
        self._write_alarm = _Alarm(self.loop, self.limits.write, self._nobody_reads)
        self._head_alarm.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_alarm.clear()
        self._write_alarm.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        super().data_received(data)
        if not self._head_alarm.is_set:  # these bytes were body, or a whole head
            self._head_bytes = 0
        elif self._head_bytes > MAX_UNREAD_HEAD:
            self._refuse(b"431 Request Header Fields Too Large")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_alarm.set()

    def on_headers_complete(self) -> None:
        self._head_alarm.clear()
        super().on_headers_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_alarm.set()

    def resume_writing(self) -> None:
        self._write_alarm.clear()
        super().resume_writing()

    def _head_is_late(self) -> None:
        self._refuse(b"408 Request Timeout")

    def _refuse(self, status: bytes) -> None:
        self._head_alarm.clear()
        if self._head_bytes and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 %b\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" % status)
        self.transport.close()

    def _nobody_reads(self) -> None:
        """The app then sees its client leave, and stops the generation."""
        log.warning("a client has read nothing for %g s; its connection is cut", self.limits.write)
        self.transport.abort()


class Server(uvicorn.Server):
    """Listens on a unix socket for administrators as well. `config.http` is a GuardedProtocol."""

    def __init__(self, config: uvicorn.Config, admin_socket: Path | None = None) -> None:
        super().__init__(config)
        self._admin_socket = admin_socket

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._admin_socket is not None and self.started:
            try:
                await self._listen_for_administrators(self._admin_socket)
            except OSError as error:
                log.warning("no admin socket at %s: %s", self._admin_socket, error)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self._admin_socket is not None:
            self._admin_socket.unlink(missing_ok=True)

    async def _listen_for_administrators(self, path: Path) -> None:
        listener = _bind_unix(path)
        self.servers.append(await asyncio.get_running_loop().create_unix_server(self._protocol(), sock=listener))

    def _protocol(self) -> Callable[[], asyncio.Protocol]:
        protocol: Any = self.config.http_protocol_class
        return lambda: protocol(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)


def guarded(limits: ConnectionLimits) -> type[GuardedProtocol]:
    """The protocol class with these limits, as uvicorn's configuration wants it."""
    return type("GuardedProtocol", (GuardedProtocol,), {"limits": limits})


def _bind_unix(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(0o600)
    except OSError:
        listener.close()
        raise
    return listener


class _Alarm:
    """One timer at a time; `set` is an order to keep the one that runs."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, action: Callable[[], None]) -> None:
        self._loop, self._seconds, self._action = loop, seconds, action
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_set(self) -> bool:
        return self._timer is not None

    def set(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._action)

    def clear(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
