"""The HTTP calls to `axllm serve`: which model it has, and one chat at a time."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import httpx

from qwen_service.errors import InvalidRequest, ProtocolError, QueueTimeout
from qwen_service.runtimes.sse import SseReader

LOOK = 2.0  # seconds for an answer that needs no NPU
FULL = (httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.TOO_MANY_REQUESTS)
RETRY = 0.5  # seconds, after a refusal that itself took 5
JSON = {"Content-Type": "application/json"}


class HungUp(ProtocolError):
    """The connection ended before the stream did."""


class AxLlmClient:
    def __init__(self, port: int) -> None:
        self._http = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}",
            timeout=httpx.Timeout(LOOK, read=None),  # how long a silent stream is waited for, its reader decides
            trust_env=False,
            verify=False,  # noqa: S501 # plain HTTP on the loopback; reading the certificates of the CAs takes 50 ms
            headers={"Connection": "close"},
        )

    async def model(self) -> str | None:
        """The name it has for its model; None while there is none. /health is no help: it always answers "healthy"."""
        try:
            answer = await self._http.get("/v1/models", timeout=LOOK)
            models = answer.json()["data"] if answer.status_code == httpx.codes.OK else []
            return str(models[0]["id"]) if models else None
        except (httpx.TransportError, ValueError, LookupError, TypeError):
            return None

    async def chat(self, body: dict[str, Any], *, patience: float) -> AsyncGenerator[bytes, None]:
        """The data of each event. Raises ProtocolError, HungUp, and QueueTimeout when others keep it busy."""
        deadline = asyncio.get_running_loop().time() + patience
        content = json.dumps(body, ensure_ascii=False).encode(errors="replace")  # a lone surrogate has no UTF-8
        while True:
            try:
                request = self._http.stream("POST", "/v1/chat/completions", content=content, headers=JSON)
                async with request as response:
                    if response.status_code not in FULL:
                        async for data in _events(response):
                            yield data
                        return
            except httpx.TransportError as error:
                raise HungUp(f"axllm hung up: {error!r}") from error
            if asyncio.get_running_loop().time() > deadline:
                raise QueueTimeout("axllm is busy with the work of others. Does somebody use its port directly?")
            await asyncio.sleep(RETRY)

    async def close(self) -> None:
        await self._http.aclose()


async def _events(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    if response.status_code != httpx.codes.OK:
        await response.aread()
        # 400 is a refusal of this conversation by a program that lives on; nothing would get better by a restart.
        refused = response.status_code == httpx.codes.BAD_REQUEST
        raise InvalidRequest(_refusal(response)) if refused else ProtocolError(_refusal(response))
    reader = SseReader()
    async for data in response.aiter_raw():
        for event in reader.feed(data):
            yield event


def _refusal(response: httpx.Response) -> str:
    if '"choices"' in response.text:  # an error that looks like an empty completion
        return (
            f"axllm refused the request with HTTP {response.status_code} and no reason. A conversation longer than its"
            " context is the usual one."
        )
    return f"axllm answered HTTP {response.status_code}: {response.text[:200]}"
