"""What the model writes is hostile input: it is shown, it never runs, it fetches nothing, it cannot freeze the page."""

import pytest
from playwright.sync_api import Error, Page, expect

from tests.web.conftest import say, wait_for_reply
from tests.web.page_service import ScriptedService, Thought

ATTACKS = [
    "<script>window.pwned = 1</script>",
    "<img src=x onerror='window.pwned = 1'>",
    "<svg onload=window.pwned=1><animate onbegin=window.pwned=1 attributeName=x dur=1s>",
    "<iframe srcdoc='<script>parent.pwned=1</script>'></iframe>",
    "[click](javascript:window.pwned=1)",
    "[click](JaVaScRiPt:window.pwned=1)",
    "[click](java\tscript:window.pwned=1)",
    "[click]( javascript:window.pwned=1 )",
    "[click](<javascript:window.pwned=1>)",
    "[click](data:text/html,<script>window.pwned=1</script>)",
    "[click](vbscript:x) [click](file:///etc/passwd) [click](//evil.example/x) [click](&#106;avascript:window.pwned=1)",
    "![x](https://evil.example/track.gif)",
    "![x](x\" onerror=\"window.pwned=1)",
    "[![x](javascript:window.pwned=1)](javascript:window.pwned=1)",
    "[x](https://a.example/\"onmouseover=\"window.pwned=1)",
    "<https://a.example/'onclick='window.pwned=1'>",
    "```html\"><script>window.pwned=1</script>\n<script>window.pwned=1</script>\n```",
    "`<img src=x onerror=window.pwned=1>`",
    "| <script>window.pwned=1</script> | b |\n|---|---|\n| <img src=x onerror=window.pwned=1> | [c](javascript:x) |",
    "# <script>window.pwned=1</script>\n> <img src=x onerror=window.pwned=1>\n- <svg onload=window.pwned=1>",
    "</div></li></ol><script>window.pwned=1</script>",
    "<style>*{display:none}</style><base href='https://evil.example/'><meta http-equiv=refresh content='0;url=//evil'>",
    "<form action=https://evil.example><button>x</button></form><object data=x></object><embed src=x>",
    "\u202e\u0000<scr\u0000ipt>window.pwned=1</script>",
]  # fmt: skip
FORBIDDEN = "script, img, iframe, object, embed, form, style, base, meta, link, animate, video, audio"


def test_hostile_markup_stays_text_in_every_place_it_can_stand(page: Page, service: ScriptedService) -> None:
    text = "\n\n".join(ATTACKS)
    service.replies = [[Thought(text), *(text[i : i + 7] for i in range(0, len(text), 7))]]
    say(page, text)
    wait_for_reply(page)
    page.locator(".thinking > summary").click()
    talk = page.locator("#talk")
    expect(talk).to_contain_text("<script>window.pwned = 1</script>")
    assert talk.locator(FORBIDDEN).count() == 0
    for link in talk.locator("a").all():
        assert (link.get_attribute("href") or "").startswith(("https://", "http://", "mailto:"))
        assert "noopener" in (link.get_attribute("rel") or "")
    handlers = "nodes => nodes.flatMap(n => n.getAttributeNames()).filter(a => a.startsWith('on'))"
    assert talk.locator("*").evaluate_all(handlers) == []
    page.reload()  # what was kept in the browser is as hostile
    expect(talk).to_contain_text("<script>window.pwned = 1</script>")
    assert page.evaluate("window.pwned") is None


def test_no_attack_runs_when_everything_it_made_is_touched(page: Page) -> None:
    page.evaluate(
        """async (attacks) => {
            const { renderMarkdown } = await import("/web/markdown.js");
            for (const attack of attacks) {
                const container = document.createElement("div");
                document.getElementById("talk").append(container);
                renderMarkdown(container, attack);
                for (const node of container.querySelectorAll("*")) {
                    node.addEventListener("click", (event) => event.preventDefault());
                    if (node.href?.startsWith("javascript:")) throw new Error(attack);
                    for (const kind of ["click", "mouseover", "load", "error"]) node.dispatchEvent(new Event(kind));
                }
            }
        }""",
        ATTACKS,
    )
    assert page.evaluate("window.pwned") is None


def test_the_browser_itself_refuses_html_strings_and_inline_scripts(page: Page) -> None:
    with pytest.raises(Error, match="TrustedHTML"):
        page.evaluate("document.body.innerHTML = '<b>x</b>'")
    with pytest.raises(Error, match="TrustedScript"):
        page.evaluate("document.body.setAttribute('onclick', 'window.pwned = 1')")
    with pytest.raises(Error, match="TrustedScript"):
        page.evaluate("document.head.appendChild(document.createElement('script')).text = 'window.pwned = 1'")
    assert page.evaluate("window.pwned") is None


def test_text_in_the_browsers_storage_that_is_no_conversation_is_left_alone(page: Page) -> None:
    page.evaluate('localStorage.setItem(\'qwen.talk.x\', \'{"id": 5, "messages": "<img>"}\')')
    page.evaluate("localStorage.setItem('qwen.talk.y', 'no json')")
    page.reload()
    expect(page.locator("#welcome")).to_be_visible()


ENDLESS = [
    "[", "![](", "[x](", "*", "**a ", "*a **b ", "_a", "`", "``a`", "~~", "\\", "> ", "- ", "1. ", "| ", "#", "```\n",
    "<", "https://", "((", "|-", "a|b\n-|-\n", "* [ ] ", "  - x\n", "/*", '"\\"', "\n```c\n/*", "# ", "---     ",
]  # fmt: skip


def test_no_text_makes_the_renderer_slow(page: Page) -> None:
    """Linear work: 200 kB of the worst that a model may repeat is rendered in a moment."""
    seconds = page.evaluate(
        """async (pieces) => {
            const { renderMarkdown } = await import("/web/markdown.js");
            return pieces.map((piece) => {
                const begun = performance.now();
                renderMarkdown(document.createElement("div"), piece.repeat(200_000 / piece.length));
                return (performance.now() - begun) / 1000;
            });
        }""",
        ENDLESS,
    )
    assert {piece: took for piece, took in zip(ENDLESS, seconds, strict=True) if took > 5} == {}
