"""What is done to the service. Engine faults must show in /health and heal; the others must not even be noticed."""

import asyncio
import os
import random
import signal
import socket
from urllib.parse import urlsplit

import httpx

from tests.chaos.clients import REFUSALS, Clients, Violation
from tests.chaos.process import Service

ENGINE_FAULTS = {"kill": signal.SIGKILL, "crash": signal.SIGSEGV, "hang": signal.SIGSTOP}
LOST_CARD = "lost card"  # it no longer answers, and its program dies with it; only a reboot of the card helps
NONSENSE = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n",
    b"POST /encode HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 5000,
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{",
    b"\x00" * 70_000,
)


class Nuisances:
    def __init__(self, service: Service, http: httpx.AsyncClient, clients: Clients, rng: random.Random) -> None:
        self._service, self._http, self._clients, self._rng = service, http, clients, rng
        self.kinds = (self.flood, self.nonsense, self.lazy_reader, self.half_a_request, self.cancel, self.bad_requests)

    async def flood(self) -> None:
        """More than the line can hold, at once."""
        await asyncio.gather(*(self._clients.any() for _ in range(30)))

    async def nonsense(self) -> None:
        ports = [self._port, self._service.tokenizer_port() or self._port]
        await asyncio.gather(*(self._say(self._rng.choice(ports), self._rng.choice(NONSENSE)) for _ in range(5)))

    async def lazy_reader(self) -> None:
        """Asks for a stream and never reads it."""
        body = b'{"messages":[{"role":"user","content":"zebra"}],"stream":true}'
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", self._port)) as lazy:
            lazy.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            await asyncio.sleep(2)

    async def half_a_request(self) -> None:
        await asyncio.gather(*(self._say(self._port, NONSENSE[5][: self._rng.randrange(1, 150)]) for _ in range(5)))

    async def cancel(self) -> None:
        running = (await self._http.get("/admin/requests")).json()["requests"]
        for request_id in self._rng.sample(running, min(2, len(running))):
            await self._http.post(f"/admin/cancel/{request_id}")

    async def bad_requests(self) -> None:
        for body in (b"{", b"[]", b'{"messages": 7}', b'{"messages":[{"role":"user","content":"\\ud800"}]}', b"\xff"):
            response = await self._http.post("/v1/chat/completions", content=body, headers=JSON)
            if response.status_code >= 500 and response.status_code not in REFUSALS:
                raise Violation(f"{body!r} was answered {response.status_code}: {response.text}")

    @property
    def _port(self) -> int:
        return urlsplit(str(self._http.base_url)).port or 80

    async def _say(self, port: int, data: bytes) -> None:
        """Say it, hear what comes for a moment, and go."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(data)
            await asyncio.wait_for(reader.read(4096), 0.5)
        except (TimeoutError, ConnectionError):
            pass  # hearing nothing is fine: the service itself is asked elsewhere
        finally:
            writer.close()


JSON = {"Content-Type": "application/json"}


def strike(service: Service, fault: str, rng: random.Random) -> bool:
    """Hit an engine; False when there is none just now."""
    engines = service.engines()
    if engines and fault == LOST_CARD:
        service.lose_card()
    if engines:
        os.kill(rng.choice(engines), ENGINE_FAULTS.get(fault, signal.SIGKILL))
    return bool(engines)


def engine_faults(target: str) -> list[str]:
    return sorted([*ENGINE_FAULTS, LOST_CARD] if target in ("ax_repl", "ax_api") else ENGINE_FAULTS)
