"""uvicorn with further bounds: connections per client, slow and endless request heads, clients that do not read.

It also listens on the admin socket.

Nothing here costs a streamed chunk anything.
"""

import asyncio
import errno
import logging
import socket
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import Any, ClassVar, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from qwen_service.api.access import ClientAddress, is_loopback
from qwen_service.api.asgi import ADMIN_SOCKET, Scope

log = logging.getLogger(__name__)

_TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 5\r\nconnection: close\r\ncontent-type: text/plain\r\n"
    b"content-length: 94\r\n\r\nThis client has too many connections open. The setting max_connections_per_client bounds them."
)
# Seconds that an idle connection is kept open: longer than clients keep it (httpx: 5). Were it closed at the moment
# when a client sends its next request on it, that request would get no answer.
KEEP_ALIVE = 75
LAST_WORDS = 3.0  # seconds for a reply that is cut to tell its client so
MAX_UNREAD_HEAD = 65_536  # bytes of an unfinished head; request_checks.HeadLimit checks a complete one


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits in seconds: for a head to arrive, and for a client to read when the send buffer is full."""

    head: float = 15.0
    write: float = 60.0


class ClientConnections:
    """Counts the open connections of each client, and bounds them.

    This machine and trusted proxies have no bound: they stand for many clients. An IPv6 client is its /64 network.
    """

    def __init__(self, most: int, is_bound: Callable[[str], bool]) -> None:
        self._most, self._is_bound = most, is_bound
        self._open: Counter[str] = Counter()

    def enter(self, host: str) -> bool:
        """Count one more connection. False: the client already has the most allowed."""
        client = _client_of(host)
        if self._open[client] >= self._most and self._is_bound(host):
            return False
        self._open[client] += 1
        return True

    def leave(self, host: str) -> None:
        client = _client_of(host)
        self._open[client] -= 1
        if not self._open[client]:
            del self._open[client]


class GuardedProtocol(HttpToolsProtocol):
    limits: ClassVar[ConnectionLimits] = ConnectionLimits()
    clients: ClassVar[ClientConnections]
    _counted_as: str | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        self._count()
        self._head_bytes = 0
        self._head_alarm = _Alarm(self.loop, self.limits.head, partial(self._refuse, b"408 Request Timeout"))
        self._write_alarm = _Alarm(self.loop, self.limits.write, self._nobody_reads)
        self._head_alarm.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_alarm.clear()
        self._write_alarm.clear()
        if self._counted_as is not None:
            self.clients.leave(self._counted_as)
            self._counted_as = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        super().data_received(data)
        if not self._head_alarm.is_set:  # these bytes were part of a body, or a complete head
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

    def _count(self) -> None:
        if self.client is None:  # our unix socket, or a client that has reset its connection
            return
        if self.clients.enter(self.client[0]):
            self._counted_as = self.client[0]
        else:
            self.transport.write(_TOO_MANY)
            self.transport.close()

    def _refuse(self, status: bytes) -> None:
        self._head_alarm.clear()
        if self._head_bytes and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 %b\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" % status)
        self.transport.close()

    def _nobody_reads(self) -> None:
        """Drop the connection: the app sees its client leave, and stops the generation."""
        log.warning("A client has read nothing for %g s (write_timeout): its connection is cut", self.limits.write)
        self.transport.abort()


class _MarksAdminSocket(HttpToolsProtocol):
    """Marks the requests of its connections as coming through the admin socket. A missing peer address would not prove that."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        cast(Scope, self.scope)[ADMIN_SOCKET] = True


class Server(uvicorn.Server):
    """The server, which also listens on the admin socket. `config.http` is a GuardedProtocol.

    `begin_stop` is called as soon as the server must stop, before it waits for running replies.
    """

    def __init__(
        self, config: uvicorn.Config, admin_socket: Path | None = None, *, begin_stop: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(config)
        self._admin_socket = admin_socket
        self._begin_stop = begin_stop
        self._listens_for_administrators = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._admin_socket is not None and self.started:
            loop = asyncio.get_running_loop()
            try:
                listener = _bind_unix(self._admin_socket)
                self.servers.append(await loop.create_unix_server(self._admin_protocol(), sock=listener))
                self._listens_for_administrators = True
            except OSError as error:
                log.warning("The admin socket %s cannot be opened: %s", self._admin_socket, error)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop. A second Ctrl-C cuts the replies, but the engines are still stopped politely, which uvicorn alone would skip."""
        self._begin_stop()
        await super().shutdown(sockets)
        if self.force_exit:
            for task in self.server_state.tasks:
                task.cancel(msg="a second signal")
            await self.lifespan.shutdown()
        if cut := set(self.server_state.tasks):  # the loop's end would cancel them a second time
            await asyncio.wait(cut, timeout=LAST_WORDS)
        if self._listens_for_administrators and self._admin_socket is not None:
            self._admin_socket.unlink(missing_ok=True)

    def _admin_protocol(self) -> Callable[[], asyncio.Protocol]:
        protocol: Any = type("AdminProtocol", (_MarksAdminSocket, self.config.http_protocol_class), {})
        return lambda: protocol(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)


def guarded(
    limits: ConnectionLimits, per_client: int = 100, trusted_proxies: Iterable[str] = ()
) -> type[GuardedProtocol]:
    """Make the protocol class with these limits for uvicorn's configuration."""
    address = ClientAddress(trusted_proxies)
    clients = ClientConnections(per_client, lambda host: not (is_loopback(host) or address.trusts(host)))
    return type("GuardedProtocol", (GuardedProtocol,), {"limits": limits, "clients": clients})


def _client_of(host: str) -> str:
    return str(ip_network(f"{host}/64", strict=False)) if ":" in host and not is_loopback(host) else host


def _bind_unix(path: Path) -> socket.socket:
    """Bind the socket. Raises OSError; EADDRINUSE when another service listens there."""
    if _somebody_listens(path):
        raise OSError(errno.EADDRINUSE, "another service listens on this socket", str(path))
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(0o600)
    except OSError:
        listener.close()
        raise
    return listener


def _somebody_listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full backlog also means that somebody listens
        return probe.connect_ex(str(path)) in (0, errno.EAGAIN)


class _Alarm:
    """At most one timer. set() does nothing while one is running."""

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
