"""The page on small screens, in both themes, and what it shows of Markdown and of the machine."""

import pytest
from playwright.sync_api import Page, expect

from tests.web.conftest import OpenPage, say, wait_for_reply
from tests.web.page_service import ScriptedService

LONG = "A" * 400 + " and\n\n```text\n" + "x" * 400 + "\n```\n\n| a | b |\n|---|---|\n| " + "c " * 80 + "| d |\n"


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_nothing_sticks_out_on_any_width(open_page: OpenPage, service: ScriptedService, width: int) -> None:
    service.replies = [[LONG]]
    page = open_page(width=width, height=640)
    say(page, LONG)
    wait_for_reply(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.getElementById('scroller').scrollWidth") <= width
    send = page.locator("#send").bounding_box()
    assert send is not None
    assert send["x"] + send["width"] <= width
    assert send["y"] + send["height"] <= 640


def test_on_a_phone_the_list_of_conversations_slides_in_and_out(open_page: OpenPage) -> None:
    page = open_page(width=360, height=740, has_touch=True, is_mobile=True)
    expect(page.locator("#shelf")).to_be_hidden()
    page.get_by_role("button", name="Conversations").click()
    expect(page.locator("#shelf")).to_be_visible()
    page.get_by_role("button", name="Close the list of conversations").click()
    expect(page.locator("#shelf")).to_be_hidden()


def test_on_a_phone_enter_makes_a_line_and_the_button_sends(open_page: OpenPage, service: ScriptedService) -> None:
    page = open_page(width=360, height=740, has_touch=True, is_mobile=True)
    page.locator("#composer-text").fill("One")
    page.locator("#composer-text").press("Enter")
    page.locator("#composer-text").press_sequentially("two")
    page.get_by_role("button", name="Send", exact=True).tap()
    wait_for_reply(page)
    assert service.requests[0]["messages"][0]["content"] == "One\ntwo"


def test_a_chosen_theme_is_there_before_the_first_paint_of_the_next_visit(page: Page) -> None:
    page.get_by_role("button", name="Settings").click()
    page.get_by_text("Dark", exact=True).click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 20, 18)"
    page.reload(wait_until="commit")
    page.wait_for_function("document.documentElement.dataset.theme === 'dark'")


def test_the_panel_draws_the_last_minutes(page: Page, service: ScriptedService) -> None:
    page.locator("#status", has_text="54 °C").wait_for()
    page.keyboard.press("Alt+p")
    expect(page.locator(".chart")).to_have_count(4)
    expect(page.get_by_role("img", name="Card temperature, last 5 minutes")).to_be_visible()
    service.health["details"]["npu"]["cards"][0]["temperature_celsius"] = 61
    expect(page.locator(".chart", has_text="Card temperature")).to_contain_text("61 °C")
    expect(page.locator(".chart", has_text="Card temperature")).to_contain_text("54 to 61 °C")


def test_a_machine_without_a_card_shows_no_card(open_page: OpenPage, service: ScriptedService) -> None:
    service.health["details"] |= {
        "npu": {"cards": []},
        "model": {"state": "ready", "name": "smollm2-135m", "runtime": "llamacpp"},
    }
    page = open_page()
    expect(page.locator("#status")).to_contain_text("smollm2-135m on the CPU")
    page.keyboard.press("Alt+p")
    expect(page.locator(".chart")).to_have_count(2)


MARKDOWN = """# Title

Some *emphasis*, **strong**, ***both***, ~~gone~~, `code` and snake_case_names.
A [link](https://example.org/a_(b)) and https://example.org/bare.

1. one
2. two
   - nested

- [x] done

> quoted

| Left | Right |
|:--|--:|
| a | 1 |

```python
print("hi")  # said
```
"""


def test_markdown_becomes_the_right_elements(page: Page, service: ScriptedService) -> None:
    service.replies = [list(MARKDOWN)]  # one character at a time: every half-written state is rendered on the way
    say(page, "Show me.")
    wait_for_reply(page)
    prose = page.locator(".turn.assistant > .prose")
    expected = {
        "h2": "Title", "p em": "emphasis", "p > strong": "strong", "strong > em": "both", "del": "gone",
        "p > code": "code", "a[href='https://example.org/a_(b)']": "link", "a[href='https://example.org/bare']":
        "https://example.org/bare", "ol > li >> nth=0": "one", "ol ul li": "nested", "li.task": "done",
        "blockquote": "quoted", "td.right": "1", "pre .string": '"hi"', "pre .comment": "# said",
    }  # fmt: skip
    for selector, text in expected.items():
        expect(prose.locator(selector).first).to_have_text(text)
    expect(prose).to_contain_text("snake_case_names")


def test_a_code_block_is_copied_exactly(open_page: OpenPage, service: ScriptedService) -> None:
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    service.replies = [["```python\nif x < 1 and y > 2:\n    print('&amp;')\n```"]]
    say(page, "Code?")
    wait_for_reply(page)
    page.get_by_role("button", name="Copy the code").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == "if x < 1 and y > 2:\n    print('&amp;')"


def test_every_control_has_a_name_that_a_screen_reader_can_say(page: Page) -> None:
    say(page, "Hello")
    wait_for_reply(page)
    page.keyboard.press("Alt+p")
    page.get_by_role("button", name="Settings").click()
    nameless = page.evaluate("""() => [...document.querySelectorAll("button, input, select, textarea, summary")]
        .filter((node) => !(node.getAttribute("aria-label") || node.textContent.trim() || node.labels?.length))
        .map((node) => node.outerHTML)""")
    assert nameless == []
