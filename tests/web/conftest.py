"""Fixtures: a scripted service and a page of it in headless Chromium. Without a Chromium the tests are skipped."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.web.page_service import ScriptedService, running

# The headless shell first: a page costs it a third of what it costs the whole browser.
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
# The second line keeps Chromium from calling home, which a closed network answers with long delays.
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync",
             "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]  # fmt: skip
OpenPage = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: sudo apt install chromium-headless-shell")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def service() -> Iterator[ScriptedService]:
    with running(ScriptedService()) as service:
        yield service


@pytest.fixture
def open_page(browser: Browser, service: ScriptedService) -> Iterator[OpenPage]:
    """Opens the page; afterwards no script may have failed and nothing foreign may have been asked for."""
    failures: list[str] = []
    with ExitStack() as stack:

        def open_page(width: int = 1280, height: int = 800, **options: object) -> Page:
            context = browser.new_context(viewport={"width": width, "height": height}, **options)  # type: ignore[arg-type]  # passed through
            stack.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(20_000)
            page.on("pageerror", lambda error: failures.append(f"script error: {error}"))
            page.on("request", lambda request: _note_foreign(request.url, service.url, failures))
            page.goto(service.url)
            return page

        yield open_page
    assert failures == []


@pytest.fixture
def page(open_page: OpenPage) -> Page:
    return open_page()


def _note_foreign(url: str, home: str, failures: list[str]) -> None:
    if not url.startswith((home, "blob:")):
        failures.append(f"foreign request: {url}")


def say(page: Page, text: str) -> None:
    page.fill("#composer-text", text)
    page.keyboard.press("Enter")


def wait_for_reply(page: Page) -> None:
    page.wait_for_selector(".turn.assistant.last:not(.running)")


def reply_text(page: Page) -> str:
    return page.locator(".turn.assistant").last.locator("> .prose").inner_text()
