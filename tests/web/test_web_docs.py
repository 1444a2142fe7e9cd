"""The reference of the HTTP API at /docs: whole without a network, and every route can be tried there."""

import pytest
from playwright.sync_api import Locator, Page, expect

from qwen_service.app import create_app
from qwen_service.settings import Settings
from tests.web.conftest import OpenPage
from tests.web.page_service import Hold, Refusal, ScriptedService

CHAT = "#post-v1-chat-completions"


@pytest.fixture
def docs(page: Page, service: ScriptedService) -> Page:
    page.goto(f"{service.url}/docs")
    page.locator(".route").first.wait_for()
    return page


def unfolded(docs: Page, route: str) -> Locator:
    docs.locator(f"{route} > summary").click()
    return docs.locator(route)


def test_every_route_of_the_description_is_there_with_its_summary(docs: Page) -> None:
    paths = create_app(Settings()).openapi()["paths"]
    operations = [(method, path, it["summary"]) for path, methods in paths.items() for method, it in methods.items()]
    expect(docs.locator(".route")).to_have_count(len(operations))
    shown = docs.locator(".route > summary").all_inner_texts()
    assert sorted(" ".join(text.split()) for text in shown) == sorted(
        f"{method.upper()} {path} {summary}" for method, path, summary in operations
    )


def test_a_route_tells_its_fields_their_types_and_bounds(docs: Page) -> None:
    fields = unfolded(docs, CHAT).locator(".fields").first
    rows = {row.split("\t")[0]: row.split("\t")[1] for row in fields.inner_text().splitlines()}
    assert rows["messagesneeded"] == "list of object, 1 to 20000"
    assert rows["messages[].roleneeded"] == '"system", "developer", "user", "assistant", "tool"'
    assert rows["messages[].content"] == "string or list of object, at most 20000"
    assert rows["temperature"] == "number, 0 to 2"
    assert rows["seed"] == "integer"


def test_the_body_on_offer_can_be_sent_and_its_reply_shows_while_it_comes(docs: Page, service: ScriptedService) -> None:
    hold = Hold()
    service.replies = [["Hello ", hold, "there."]]
    route = unfolded(docs, CHAT)
    route.get_by_role("button", name="Send").click()
    answer = route.get_by_role("status")
    expect(answer).to_contain_text('{"content": "Hello "}')
    expect(answer).not_to_contain_text("there.")
    hold.released.set()
    expect(answer).to_contain_text("[DONE]")
    expect(answer).to_contain_text("200 OK after")
    assert service.requests == [
        {"model": "qwen3-4b", "messages": [{"role": "user", "content": "Hello!"}], "stream": True}
    ]


def test_a_refusal_is_shown_with_its_status(docs: Page, service: ScriptedService) -> None:
    service.replies = [Refusal(429, "The line is full.")]
    route = unfolded(docs, CHAT)
    route.get_by_role("button", name="Send").click()
    expect(route.get_by_role("status")).to_contain_text("429 Too Many Requests")
    expect(route.get_by_role("status")).to_contain_text("The line is full.")


def test_a_reply_can_be_stopped(docs: Page, service: ScriptedService) -> None:
    service.replies = [["Hello ", Hold(), "there."]]
    route = unfolded(docs, CHAT)
    route.get_by_role("button", name="Send").click()
    expect(route.get_by_role("status")).to_contain_text("Hello")
    route.get_by_role("button", name="Stop").click()
    expect(route.get_by_role("status")).to_contain_text("Stopped")
    assert service.left.wait(20)


def test_the_curl_line_follows_what_is_typed_and_survives_a_quote(docs: Page, service: ScriptedService) -> None:
    route = unfolded(docs, CHAT)
    route.locator("textarea").fill('{"messages": "it\'s"}')
    expect(route.locator(".code code").last).to_have_text(
        f"curl '{service.url}/v1/chat/completions' \\\n  -H 'Content-Type: application/json' \\\n"
        """  -d '{"messages": "it'\\''s"}'"""
    )


def test_a_name_in_a_path_is_asked_for(docs: Page, service: ScriptedService) -> None:
    route = unfolded(docs, "#get-v1-models-name-")
    route.get_by_label("name").fill("a b")
    expect(route.locator(".code code").last).to_have_text(f"curl '{service.url}/v1/models/a%20b'")


def test_administration_is_shown_but_not_sent_from_a_page(docs: Page) -> None:
    route = unfolded(docs, "#post-admin-shutdown")
    expect(route.locator(".code code")).to_contain_text("-X POST")
    expect(route.get_by_role("button", name="Send")).to_have_count(0)


def test_a_service_with_keys_asks_for_one_and_keeps_it(page: Page, service: ScriptedService) -> None:
    service.api_key = "secret"
    page.goto(f"{service.url}/docs")
    expect(page.get_by_role("alert")).to_have_text("A valid API key is needed.")
    page.get_by_label("API key").fill("secret")
    page.get_by_role("button", name="Use this key").click()
    page.locator(".route").first.wait_for()
    page.reload()
    page.locator(".route").first.wait_for()


def test_a_link_to_a_route_opens_it(page: Page, service: ScriptedService) -> None:
    page.goto(f"{service.url}/docs{CHAT}")
    expect(page.locator(f"{CHAT} textarea")).to_be_visible()


def test_nothing_sticks_out_on_a_phone(open_page: OpenPage, service: ScriptedService) -> None:
    page = open_page(width=320, height=640)
    page.goto(f"{service.url}/docs{CHAT}")
    route = page.locator(CHAT)
    route.get_by_role("button", name="Send").click()
    expect(route.get_by_role("status")).to_contain_text("[DONE]")
    route.locator("details > summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
