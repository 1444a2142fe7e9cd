"""A person talks: sending, streaming, stopping, editing, asking again, coming back."""

import re

from playwright.sync_api import Page, expect

from tests.web.conftest import OpenPage, reply_text, say, wait_for_reply
from tests.web.page_service import Hold, ScriptedService, Thought


def test_a_reply_is_shown_while_it_streams_and_the_next_question_carries_it(
    page: Page, service: ScriptedService
) -> None:
    hold = Hold()
    service.replies = [["The sky ", "is ", hold, "blue."], ["Because of ", "Rayleigh."]]
    say(page, "What colour is the sky?")
    expect(page.locator(".turn.assistant.running .prose").last).to_have_text("The sky is")
    hold.released.set()
    wait_for_reply(page)
    assert reply_text(page) == "The sky is blue."
    say(page, "Why?")
    expect(page.locator(".turn.assistant").last).to_contain_text("Because of Rayleigh.")
    assert service.requests[1]["messages"] == [
        {"role": "user", "content": "What colour is the sky?"},
        {"role": "assistant", "content": "The sky is blue."},
        {"role": "user", "content": "Why?"},
    ]
    assert service.requests[0]["stream_options"] == {"include_usage": True}


def test_the_status_line_tells_speed_prompt_cache_and_card(page: Page, service: ScriptedService) -> None:
    service.token_seconds = 0.02
    service.replies = [[f"word{i} " for i in range(21)]]
    say(page, "Count.")
    wait_for_reply(page)
    status = page.locator("#status")
    for part in ("qwen3-4b on the card", "tok/s", "first token", "prompt 412, 380 cached", "54 °C"):
        expect(status).to_contain_text(part)


def test_escape_stops_the_reply_keeps_what_is_there_and_tells_the_service(page: Page, service: ScriptedService) -> None:
    service.replies = [["Once upon ", "a time", Hold()], ["A new one."]]
    say(page, "Tell me a story.")
    expect(page.locator(".turn.assistant .prose").last).to_have_text("Once upon a time")
    page.keyboard.press("Escape")
    expect(page.locator(".turn.assistant .note")).to_have_text("Stopped.")
    assert reply_text(page) == "Once upon a time"
    assert service.left.wait(20)
    say(page, "Another.")
    expect(page.locator(".turn.assistant").last).to_contain_text("A new one.")


def test_the_send_button_becomes_a_stop_button_while_a_reply_runs(page: Page, service: ScriptedService) -> None:
    service.replies = [["Starting", Hold()]]
    say(page, "Go.")
    stop = page.get_by_role("button", name="Stop the reply")
    stop.click()
    expect(page.locator(".turn.assistant .note")).to_have_text("Stopped.")
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()


def test_asking_again_replaces_the_last_reply(page: Page, service: ScriptedService) -> None:
    service.replies = [["First try."], ["Second try."]]
    say(page, "Try.")
    wait_for_reply(page)
    page.get_by_role("button", name="Answer again").click()
    expect(page.locator(".turn.assistant")).to_have_count(1)
    expect(page.locator(".turn.assistant")).to_contain_text("Second try.")
    assert service.requests[0]["messages"] == service.requests[1]["messages"]


def test_editing_an_early_message_replaces_everything_after_it(page: Page, service: ScriptedService) -> None:
    for question in ("One?", "Two?"):
        say(page, question)
        wait_for_reply(page)
    page.locator(".turn.user").first.hover()
    page.get_by_role("button", name="Edit and send again").first.click()
    page.get_by_label("Edit your message").fill("Uno?")
    page.get_by_role("button", name="Send again", exact=True).click()
    expect(page.locator(".bubble")).to_have_text(["Uno?"])
    wait_for_reply(page)
    assert service.requests[-1]["messages"] == [{"role": "user", "content": "Uno?"}]


def test_a_talk_needs_no_mouse(page: Page, service: ScriptedService) -> None:
    expect(page.locator("#composer-text")).to_be_focused()
    page.keyboard.type("One line")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("and another")
    page.keyboard.press("Enter")
    wait_for_reply(page)
    assert service.requests[0]["messages"][0]["content"] == "One line\nand another"
    page.keyboard.press("ArrowUp")
    expect(page.get_by_label("Edit your message")).to_be_focused()
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.keyboard.press("Alt+n")
    expect(page.locator("#welcome")).to_be_visible()
    expect(page.locator("#composer-text")).to_be_focused()


def test_a_reload_brings_the_conversation_back(page: Page, service: ScriptedService) -> None:
    service.replies = [["**Kept** safe."]]
    say(page, "Remember me.")
    wait_for_reply(page)
    page.reload()
    expect(page.locator(".bubble")).to_have_text("Remember me.")
    expect(page.locator(".turn.assistant strong")).to_have_text("Kept")
    expect(page.locator(".entry")).to_have_text(["Remember me."])


def test_a_reload_in_mid_reply_keeps_what_had_come_and_says_so(page: Page, service: ScriptedService) -> None:
    service.replies = [["Half a ", "reply", Hold()]]
    say(page, "Go.")
    expect(page.locator(".turn.assistant .prose").last).to_have_text("Half a reply")
    page.reload()
    expect(page.locator(".note")).to_have_text("This page was closed before the reply was complete.")
    assert reply_text(page) == "Half a reply"


def test_conversations_are_listed_opened_and_deleted(page: Page) -> None:
    for question in ("Older talk", "Newer talk"):
        page.keyboard.press("Alt+n")
        say(page, question)
        wait_for_reply(page)
    expect(page.locator(".entry")).to_have_text(["Newer talk", "Older talk"])
    page.get_by_role("button", name="Older talk", exact=True).click()
    expect(page.locator(".bubble")).to_have_text("Older talk")
    page.get_by_role("button", name="Delete “Newer talk”").click()
    page.get_by_role("button", name="Press again to delete “Newer talk”").click()
    expect(page.locator(".entry")).to_have_text(["Older talk"])


def test_a_reply_goes_on_while_another_conversation_is_read(page: Page, service: ScriptedService) -> None:
    hold = Hold()
    service.replies = [["Long ", hold, "answer."], ["Short."]]
    say(page, "Slow one")
    expect(page.locator(".turn.assistant .prose").last).to_have_text("Long")
    page.keyboard.press("Alt+n")
    say(page, "Quick one")
    wait_for_reply(page)
    hold.released.set()
    page.get_by_role("button", name="Slow one", exact=True).click()
    expect(page.locator(".turn.assistant .prose").last).to_have_text("Long answer.")


def test_thinking_is_folded_away_and_can_be_opened(page: Page, service: ScriptedService) -> None:
    service.replies = [[Thought("Let me "), Thought("count."), "Four."]]
    say(page, "2 + 2?")
    wait_for_reply(page)
    assert reply_text(page) == "Four."
    thought = page.locator(".thinking > .prose")
    expect(thought).to_be_hidden()
    page.locator(".thinking > summary").click()
    expect(thought).to_have_text("Let me count.")
    say(page, "Sure?")
    wait_for_reply(page)
    assert {"role": "assistant", "content": "Four."} in service.requests[1]["messages"]


def test_a_screen_reader_hears_whole_sentences_and_no_code(page: Page, service: ScriptedService) -> None:
    service.replies = [["Use ", "a **heap**. ", "Like this:\n", "```python\n", "x = 1\n", "```\n", "That is all."]]
    say(page, "How?")
    wait_for_reply(page)
    spoken = page.locator("#spoken p").all_inner_texts()
    assert [" ".join(line.split()) for line in spoken] == [
        "Message sent.", "Use a heap .", "Like this:", "Code block.", "That is all.",
    ]  # fmt: skip


def test_the_speed_of_a_runtime_that_sends_several_tokens_at_once_is_not_told_too_low(
    page: Page, service: ScriptedService
) -> None:
    service.token_seconds = 0.25
    hold = Hold()
    service.replies = [[*["a few words here "] * 8, hold]]  # 4 tokens in each quarter of a second: 16 tok/s
    say(page, "Go.")
    expect(page.locator("#status .speed")).to_have_text(re.compile(r"^1\d tok/s$"))
    hold.released.set()
    wait_for_reply(page)


def test_a_stopgap_says_so_before_the_first_message(open_page: OpenPage, service: ScriptedService) -> None:
    service.models[0]["stopgap"] = "a toy. `qwen-service pull better` talks."
    page = open_page()
    expect(page.locator("#welcome")).to_contain_text("qwen3-4b: a toy. qwen-service pull better talks.")
    expect(page.locator("#welcome code")).to_have_text("qwen-service pull better")
