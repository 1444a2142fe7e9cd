"""The page in front of the real service: what it needs is really there."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, expect

from tests.web.conftest import reply_text, say


@pytest.fixture(scope="module")
def service_url(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    flags = [
        "--port",
        str(port),
        "--model-path",
        str(smollm2),
        "--context-size",
        "320",
        "--state-dir",
        str(tmp_path_factory.mktemp("state")),
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "qwen_service", "serve", *flags], stderr=subprocess.DEVNULL
    ) as process:
        yield f"http://127.0.0.1:{port}"
        process.terminate()


@pytest.mark.slow
def test_a_talk_with_the_embedded_model(browser: Browser, service_url: str) -> None:
    with httpx.Client(transport=httpx.HTTPTransport(retries=8)) as client:  # until it listens
        assert client.get(service_url).text == "Ollama is running"
    page = browser.new_context().new_page()
    page.goto(service_url)
    say(page, "Name three colours.")  # perhaps while the model still loads: the page waits
    expect(page.locator(".turn.assistant:not(.running)")).to_have_count(1, timeout=90_000)
    assert reply_text(page)
    say(page, "Name one more.")
    expect(page.locator(".turn.assistant:not(.running)")).to_have_count(2, timeout=60_000)
    expect(page.locator("#status")).to_contain_text("on the CPU")
    expect(page.locator("#status")).to_contain_text("cached")
    page.get_by_role("button", name="Settings").click()
    expect(page.get_by_label("Temperature")).to_be_enabled()
    page.context.close()
