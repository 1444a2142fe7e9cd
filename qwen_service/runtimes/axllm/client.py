"""The HTTP client of `axllm serve`: asks for its model, and sends one chat at a time."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import closing
from typing import Any

from qwen_service.errors import InvalidRequest, ProtocolError, QueueTimeout
from qwen_service.runtimes.local_http import HttpError, LocalHttp

LOOK = 2.0  # seconds to wait for an answer that needs no NPU
SILENCE = 86_400.0  # seconds; in effect unlimited: the reader of a stream decides how long to wait
FULL = (429, 503)
RETRY = 0.5  # seconds between tries; each refusal itself takes 5 s


class HungUp(ProtocolError):
    """The connection ended before the stream did."""


class AxLlmClient:
    def __init__(self, port: int) -> None:
        self._http = LocalHttp(port, keep=False)

    async def model(self) -> str | None:
        """The name of the server's model; None while it has none. (/health is useless: it always answers "healthy".)"""
        try:
            models = (await self._http.get("/v1/models", LOOK))["data"]
            return str(models[0]["id"]) if models else None
        except (HttpError, OSError, ValueError, LookupError, TypeError):
            return None

    async def chat(self, body: dict[str, Any], *, patience: float) -> AsyncGenerator[bytes, None]:
        """Send a chat and yield the data of each event. Raises ProtocolError, HungUp, or QueueTimeout when others keep it busy."""
        deadline = asyncio.get_running_loop().time() + patience
        content = json.dumps(body, ensure_ascii=False).encode(errors="replace")  # a lone surrogate has no UTF-8
        while True:
            try:
                with closing(await self._http.events("/v1/chat/completions", content, SILENCE)) as stream:
                    while events := await stream.read():
                        for data in events:
                            yield data
                return
            except HttpError as refusal:
                if refusal.status not in FULL:
                    raise _refused(refusal) from None
            except OSError as error:
                raise HungUp(f"axllm closed the connection: {error!r}") from error
            if asyncio.get_running_loop().time() > deadline:
                raise QueueTimeout(
                    "axllm is busy with requests of other programs. Close its port (runtime_port) to them."
                )
            await asyncio.sleep(RETRY)


def _refused(refusal: HttpError) -> ProtocolError | InvalidRequest:
    """The error for a refusal. With 400 the program refuses this conversation and lives on, so it needs no restart."""
    kind = InvalidRequest if refusal.status == 400 else ProtocolError
    if b'"choices"' in refusal.body:  # an error that looks like an empty completion
        return kind(
            f"axllm refused the request with HTTP {refusal.status} and no reason. A conversation longer than its"
            " context is the usual one."
        )
    return kind(f"axllm answered {refusal}")
