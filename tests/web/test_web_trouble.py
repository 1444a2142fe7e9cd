"""When something is wrong: errors, loading, refusals. The page says what it is and what can be done."""

import pytest
from playwright.sync_api import Page, expect

from tests.web.conftest import OpenPage, reply_text, say, wait_for_reply
from tests.web.page_service import Cut, Hold, Refusal, ScriptedService


def test_an_error_is_shown_in_the_services_words_and_trying_again_works(page: Page, service: ScriptedService) -> None:
    service.replies = [Refusal(502, "The engine died. It is being restarted."), ["Back again."]]
    say(page, "Hello")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("The engine died. It is being restarted.")
    alert.get_by_role("button", name="Try again").click()
    expect(page.locator(".turn.assistant")).to_contain_text("Back again.")
    expect(page.get_by_role("alert")).to_have_count(0)


def test_an_error_in_mid_stream_keeps_the_text_and_names_the_reason(page: Page, service: ScriptedService) -> None:
    service.replies = [["Half ", {"error": {"message": "The card no longer answers.", "type": "server_error"}}]]
    say(page, "Hello")
    expect(page.get_by_role("alert")).to_contain_text("The card no longer answers.")
    assert reply_text(page) == "Half"


@pytest.mark.filterwarnings("ignore")  # the cut leaves uvicorn's thread with the exception that made it
def test_a_connection_that_breaks_is_not_taken_for_a_complete_reply(page: Page, service: ScriptedService) -> None:
    service.replies = [["Half ", Cut("broken")]]
    say(page, "Hello")
    expect(page.get_by_role("alert")).to_contain_text("cut off")


def test_a_missing_api_key_is_asked_for_and_then_sent(page: Page, service: ScriptedService) -> None:
    service.api_key = "sk-home"
    say(page, "Hello")
    page.get_by_role("button", name="Enter the API key").click()
    field = page.get_by_label("API key")
    expect(field).to_be_focused()
    field.fill("sk-home")
    page.keyboard.press("Tab")
    page.get_by_role("button", name="Close the settings").click()
    page.get_by_role("button", name="Try again").click()
    wait_for_reply(page)
    assert reply_text(page) == "Hello there."
    assert service.authorizations[-1] == "Bearer sk-home"


def test_while_the_model_loads_the_progress_is_shown_and_the_message_waits(
    page: Page, service: ScriptedService
) -> None:
    service.health["status"] = "down"
    service.health["details"]["model"] |= {"state": "loading", "progress": "loading 17/31"}
    service.replies = [Refusal(503, "The model is being loaded.", {"Retry-After": "5"}), ["Ready now."]]
    say(page, "Hello")
    expect(page.locator("#notice")).to_contain_text("qwen3-4b is loading")
    expect(page.locator("#notice")).to_contain_text("17 of 31")
    assert page.locator("#notice progress").get_attribute("value") == str(17 / 31)
    expect(page.locator(".waiting")).to_contain_text("Your message is kept")
    service.health["status"] = "ok"
    service.health["details"]["model"] |= {"state": "ready", "progress": None}
    expect(page.locator(".turn.assistant")).to_contain_text("Ready now.")
    expect(page.locator("#notice")).to_be_hidden()


def test_a_message_that_waits_for_the_model_can_be_stopped(page: Page, service: ScriptedService) -> None:
    service.health["status"] = "down"
    service.health["details"]["model"]["state"] = "loading"
    service.replies = [Refusal(503, "The model is being loaded.", {"Retry-After": "5"})]
    say(page, "Hello")
    expect(page.locator(".waiting")).to_contain_text("Your message is kept")
    page.keyboard.press("Escape")
    expect(page.locator(".turn.assistant .note")).to_have_text("Stopped.")


def test_a_service_that_is_down_is_explained_with_its_own_reason(page: Page, service: ScriptedService) -> None:
    reason = "No card was found. Check the seat of the card and the line `dtparam=pciex1` in config.txt."
    service.health["status"] = "down"
    service.health["details"]["model"] |= {"state": "failed", "error": reason}
    page.reload()
    expect(page.locator("#notice")).to_contain_text("qwen3-4b is down")
    expect(page.locator("#notice")).to_contain_text(reason.replace("`", ""))
    expect(page.locator("#notice code")).to_have_text("dtparam=pciex1")


def test_without_a_model_the_page_says_what_to_do_and_goes_on_when_there_is_one(
    page: Page, service: ScriptedService
) -> None:
    fine, reason = service.health["details"]["model"], "no model that chats is installed in /var/lib/qwen/models."
    service.health["status"] = "down"
    service.health["details"] |= {"model": {"state": "none", "error": reason}, "trouble": reason}
    page.reload()
    welcome = page.locator("#welcome")
    expect(welcome).to_contain_text("First, a model.")
    expect(welcome.locator("code").first).to_have_text("qwen-service setup")
    expect(welcome.get_by_role("button")).to_have_count(0)
    expect(page.locator("#notice")).to_contain_text("No model yet")
    expect(page.locator("#notice")).to_contain_text(reason)
    service.health["status"] = "ok"
    service.health["details"] |= {"model": fine, "trouble": None}
    expect(welcome).to_contain_text("What is on your mind?")
    expect(welcome.get_by_role("button")).to_have_count(3)
    expect(page.locator("#notice")).to_be_hidden()


def test_a_cpu_model_that_stands_in_is_named_with_the_reason(page: Page, service: ScriptedService) -> None:
    service.health |= {"status": "degraded"}
    service.health["details"] |= {"fallback": {"name": "smollm2-135m"}, "trouble": "The card no longer answers."}
    page.reload()
    expect(page.locator("#notice")).to_contain_text("smollm2-135m on the CPU answers meanwhile")
    expect(page.locator("#notice")).to_contain_text("The card no longer answers.")


def test_a_full_line_is_waited_for(page: Page, service: ScriptedService) -> None:
    service.replies = [Refusal(429, "The waiting line is full.", {"Retry-After": "1"}), ["Your turn."]]
    say(page, "Hello")
    expect(page.locator(".waiting")).to_contain_text("Trying again in 1 s")
    expect(page.locator(".turn.assistant")).to_contain_text("Your turn.")


def test_the_place_in_the_line_is_shown_while_waiting(page: Page, service: ScriptedService) -> None:
    service.health["details"]["queue"] = {"running": 1, "waiting": 3}
    hold = Hold()
    service.replies = [[hold, "Now."]]
    say(page, "Hello")
    expect(page.locator(".waiting")).to_contain_text("In line, about 2 before you")
    hold.released.set()
    wait_for_reply(page)


def test_many_replies_do_not_make_the_page_ask_for_health_more_often(page: Page, service: ScriptedService) -> None:
    for number in range(6):
        say(page, f"Question {number}")
        wait_for_reply(page)
    page.wait_for_timeout(1000)
    asked = service.health_asked
    page.wait_for_timeout(4000)  # idle: once in 10 s
    assert service.health_asked - asked <= 1


def test_what_was_trimmed_or_ignored_is_said(page: Page, service: ScriptedService) -> None:
    service.headers = {"X-Context-Trimmed-Messages": "2", "X-Ignored-Parameters": "temperature, top_p"}
    say(page, "Hello")
    wait_for_reply(page)
    notes = page.locator(".turn.assistant")
    expect(notes).to_contain_text("The oldest 2 messages no longer fit")
    expect(notes).to_contain_text("This model's runtime does not take: temperature, top_p.")


def test_a_reply_cut_by_the_limit_can_be_continued(page: Page, service: ScriptedService) -> None:
    service.finish_reason = "length"
    say(page, "Hello")
    wait_for_reply(page)
    page.get_by_role("button", name="Continue", exact=True).click()
    expect(page.locator(".bubble").last).to_have_text("Continue.")


def test_settings_go_with_the_request(page: Page, service: ScriptedService) -> None:
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("System prompt").fill("Answer in French.")
    page.get_by_label("Temperature").fill("3")
    page.get_by_label("Longest reply").fill("2")
    page.get_by_label("Think before answering").check()
    page.keyboard.press("Escape")
    say(page, "Hello")
    wait_for_reply(page)
    sent = service.requests[0]
    assert sent["messages"][0] == {"role": "system", "content": "Answer in French."}
    assert (sent["temperature"], sent["max_tokens"]) == (0.3, 256)
    assert sent["chat_template_kwargs"] == {"enable_thinking": True}


def test_what_the_runtime_does_not_honour_is_greyed_out_explained_and_not_sent(
    open_page: OpenPage, service: ScriptedService
) -> None:
    service.models = [{"id": "qwen3-4b", "state": "loaded", "sampling": []}]
    page = open_page()
    page.evaluate("localStorage.setItem('qwen.settings', JSON.stringify({temperature: 0.3, maxTokens: 64}))")
    page.reload()
    page.locator("#status", has_text="qwen3-4b").wait_for()
    page.get_by_role("button", name="Settings").click()
    expect(page.get_by_label("Temperature")).to_be_disabled()
    expect(page.locator(".field.off .hint")).to_contain_text("takes no temperature with a question")
    expect(page.get_by_label("Longest reply")).to_be_enabled()
    page.keyboard.press("Escape")
    say(page, "Hello")
    wait_for_reply(page)
    assert "temperature" not in service.requests[0]
    assert service.requests[0]["max_tokens"] == 64
