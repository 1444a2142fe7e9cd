"""A full line, as the official packages see it: a 429 with Retry-After, which they wait for and then try again."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from tests.live_service import Live, live_service

HELLO: Any = [{"role": "user", "content": "three"}]
Ask = Callable[[Live, int], Coroutine[Any, Any, str]]  # with so many retries


async def by_chat(live: Live, retries: int) -> str:
    async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=retries) as client:
        completion = await client.chat.completions.create(model="model", messages=HELLO)
    return completion.choices[0].message.content or ""


async def by_responses(live: Live, retries: int) -> str:
    async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=retries) as client:
        return (await client.responses.create(model="model", input="three")).output_text


async def by_messages(live: Live, retries: int) -> str:
    async with anthropic.AsyncAnthropic(base_url=live.url, api_key="none", max_retries=retries) as client:
        message = await client.messages.create(model="model", max_tokens=100, messages=HELLO)
    return str(message.content[0].to_dict()["text"])


ways = pytest.mark.parametrize("ask", [by_chat, by_responses, by_messages])


@pytest.fixture
async def full(tmp_path: Path) -> AsyncIterator[Live]:
    """One request runs, one waits, and there is room for no more."""
    async with live_service(tmp_path, queue_size=1) as live:
        running = asyncio.create_task(live.chat("one"))
        await live.until(running=1)
        waiting = asyncio.create_task(live.chat("two"))
        await live.until(running=1, waiting=1)
        yield live
        live.engine.gate.set()
        assert [(await task).status_code for task in (running, waiting)] == [200, 200]


@ways
async def test_a_full_line_is_the_packages_own_error(full: Live, ask: Ask) -> None:
    with pytest.raises((openai.RateLimitError, anthropic.RateLimitError)) as refused:
        await ask(full, 0)
    error: Any = refused.value
    assert 1 <= int(error.response.headers["retry-after"]) <= 60


@ways
async def test_a_package_that_tries_again_is_answered(full: Live, ask: Ask) -> None:
    asking = asyncio.create_task(ask(full, 5))
    async with asyncio.timeout(30):
        while 'status="429"' not in (await full.http.get("/metrics")).text:
            assert not asking.done()
    full.engine.gate.set()
    async with asyncio.timeout(60):
        assert await asking == "Hello!"
    assert full.engine.answered[-1] == "three"
