"""The routes of the chat page: who gets it, under which policy, and that nothing else can be had through them."""

import re
from pathlib import Path

import httpx
import pytest

from qwen_service.api.keys import new_key
from qwen_service.api.pages import FOLDER, ChatPage, accepts_html
from qwen_service.app import create_app
from qwen_service.settings import Settings
from tests.web.page_service import ScriptedService

CHROME = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"


@pytest.fixture
def client() -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(ScriptedService().app()), base_url="http://test")


@pytest.mark.parametrize(("accept", "page"), [
    (CHROME, True), ("text/html", True), ("application/json, text/html;q=0.9", True), ("*/*", False), ("", False),
    ("application/json", False), ("text/html;q=0, */*", False),
])  # fmt: skip
def test_only_who_asks_for_html_gets_the_page(accept: str, page: bool) -> None:
    assert accepts_html(accept) is page


async def test_the_root_is_a_page_for_browsers_and_a_sentence_for_programs(client: httpx.AsyncClient) -> None:
    for_browser = await client.get("/", headers={"Accept": CHROME})
    assert for_browser.headers["content-type"].startswith("text/html")
    assert for_browser.headers["vary"] == "Accept"
    assert (await client.get("/")).text == "Ollama is running"
    assert (await client.get("/chat")).text == for_browser.text
    assert (await client.head("/chat")).status_code == 200


async def test_every_answer_carries_a_policy_that_allows_nothing_inline_or_foreign(client: httpx.AsyncClient) -> None:
    for path in ("/chat", "/docs", "/web/app.js", "/web/page.css", "/web/icon.svg"):
        answer = await client.get(path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "require-trusted-types-for 'script'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "name", ["../web_routes.py", "..%2fweb_routes.py", "%2e%2e/app.py", "app.js/x", "nothing", "."]
)
async def test_no_name_opens_a_file_that_is_not_the_pages(client: httpx.AsyncClient, name: str) -> None:
    assert (await client.get(f"/web/{name}")).status_code == 404


async def test_an_unchanged_file_is_not_sent_twice(client: httpx.AsyncClient) -> None:
    first = await client.get("/web/app.js")
    again = await client.get("/web/app.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


async def test_with_api_keys_the_page_is_open_and_the_api_is_not(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(new_key("phone")[1] + "\n", encoding="utf-8")
    app = create_app(Settings(api_keys_file=keys, models_dir=tmp_path))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        for path in ("/chat", "/docs", "/web/app.js", "/"):
            assert (await client.get(path, headers={"Accept": CHROME})).status_code == 200
        for path in ("/v1/models", "/openapi.json"):
            assert (await client.get(path)).status_code == 401


def test_the_whole_chat_page_is_under_120_kb_and_the_reference_adds_15() -> None:
    sizes = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    reference = sum(size for name, size in sizes.items() if name.startswith("docs."))
    assert sum(sizes.values()) - reference < 120_000
    assert reference < 15_000


def test_the_page_names_only_files_that_it_has() -> None:
    names = set(ChatPage().assets)
    html = "".join(path.read_text(encoding="utf-8") for path in FOLDER.glob("*.html"))
    assert set(re.findall(r'(?:src|href)="web/([^"]+)"', html)) <= names
    for script in FOLDER.glob("*.js"):
        assert set(re.findall(r'from "\./([^"]+)"', script.read_text(encoding="utf-8"))) <= names


@pytest.mark.parametrize("script", sorted(FOLDER.glob("*.js")), ids=lambda path: path.name)
def test_no_script_turns_a_string_into_html_or_code(script: Path) -> None:
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser|srcdoc"
    assert re.search(forbidden, script.read_text(encoding="utf-8")) is None


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_text_has_the_contrast_that_wcag_aa_asks_for_in_both_themes() -> None:
    css = (FOLDER / "page.css").read_text(encoding="utf-8")
    pairs = re.findall(r"--([\w-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\)", css)
    assert len(pairs) > 10
    for theme in (1, 2):
        colour = {pair[0]: pair[theme] for pair in pairs}
        for ground in ("paper", "sheet", "raised"):
            for text in ("ink", "soft"):
                assert contrast(colour[text], colour[ground]) >= 4.5, (text, ground)
        for text in ("accent", "good", "warn", "bad"):
            assert contrast(colour[text], colour["sheet"]) >= 4.5, text
        assert contrast(colour["on-accent"], colour["accent"]) >= 4.5
