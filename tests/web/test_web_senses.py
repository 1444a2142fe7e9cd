"""The page's eyes, ears and voice: pictures by paste, drop and button; holding to talk; listening to a reply."""

import base64
import io
import shutil
import subprocess
import wave
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from qwen_service.api.pictures import from_url
from tests.web.conftest import OpenPage, say, wait_for_reply
from tests.web.page_service import ScriptedService

SEES = {"id": "qwen3-4b", "object": "model", "capabilities": ["completion", "vision"]}
READY = {"state": "ready"}


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed")
    path = tmp_path_factory.mktemp("pictures") / "big.png"
    source = ["-f", "lavfi", "-i", "testsrc=size=2560x1000", "-frames:v", "1"]
    subprocess.run(["ffmpeg", "-v", "error", *source, str(path)], check=True)
    return path


def hand_over(page: Page, picture: Path, event: str, target: str) -> None:
    """As a browser does when a person pastes or drops a file."""
    page.evaluate(
        """([data, kind, target]) => {
            const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], "big.png", { type: "image/png" }));
            const options = { bubbles: true, cancelable: true };
            const event = kind === "paste" ? new ClipboardEvent("paste", { clipboardData: transfer, ...options })
                : new DragEvent("drop", { dataTransfer: transfer, ...options });
            document.querySelector(target).dispatchEvent(event);
        }""",
        [base64.b64encode(picture.read_bytes()).decode(), event, target],
    )


def sent_parts(service: ScriptedService) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = service.requests[-1]["messages"][-1]["content"]
    return parts


@pytest.mark.parametrize("way", ["button", "paste", "drop"])
def test_a_picture_is_made_small_shown_and_sent(
    way: str, open_page: OpenPage, service: ScriptedService, picture: Path
) -> None:
    service.models = [SEES]
    page = open_page()
    if way == "button":
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="Add a picture").click()
        chooser.value.set_files(str(picture))
    else:
        hand_over(page, picture, way, "#composer-text" if way == "paste" else "#talk")
    expect(page.get_by_role("img", name="Picture 1 of the next message")).to_be_visible()
    say(page, "What is this?")
    wait_for_reply(page)
    image, text = sent_parts(service)
    assert text == {"type": "text", "text": "What is this?"}
    seen = from_url(image["image_url"]["url"], "x")
    assert (seen.media_type, seen.width, seen.height) == ("image/jpeg", 1280, 500)
    expect(page.get_by_role("img", name="Picture 1 that you sent")).to_be_visible()
    expect(page.locator("#pictures")).to_be_hidden()


def test_a_picture_can_be_left_out_or_sent_alone_and_stays_in_the_history(
    open_page: OpenPage, service: ScriptedService, picture: Path
) -> None:
    service.models = [SEES]
    page = open_page()
    hand_over(page, picture, "paste", "#composer-text")
    page.get_by_role("button", name="Leave this picture out").click()
    expect(page.locator("#pictures")).to_be_hidden()
    hand_over(page, picture, "paste", "#composer-text")
    expect(page.locator("#pictures img")).to_have_count(1)
    page.get_by_role("button", name="Send", exact=True).click()
    wait_for_reply(page)
    assert [part["type"] for part in sent_parts(service)] == ["image_url"]
    page.reload()
    say(page, "And its colour?")
    page.wait_for_function("document.querySelectorAll('.turn.assistant:not(.running)').length === 2")
    assert isinstance(service.requests[-1]["messages"][0]["content"], list)


def test_what_is_no_picture_is_said_to_be_none(open_page: OpenPage, service: ScriptedService, tmp_path: Path) -> None:
    service.models = [SEES]
    page = open_page()
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    page.locator("#attach-file").set_input_files(str(tmp_path / "broken.png"))
    expect(page.locator("#notice")).to_contain_text("broken.png is no picture")


def test_without_eyes_ears_and_voice_there_are_no_buttons(page: Page) -> None:
    say(page, "Hello")
    wait_for_reply(page)
    for name in ("Add a picture", "Hold to talk", "Listen"):
        expect(page.get_by_role("button", name=name)).to_have_count(0)


def test_holding_the_button_writes_what_was_said(open_page: OpenPage, service: ScriptedService) -> None:
    service.health["details"]["speech"] = {"speech_to_text": READY}
    page = open_page(permissions=["microphone"])
    button = page.get_by_role("button", name="Hold to talk")
    button.hover()
    page.mouse.down()
    expect(button).to_have_class("icon-button hold live")
    page.wait_for_timeout(1500)  # a person talks
    page.mouse.up()
    expect(page.locator("#composer-text")).to_have_value("What is the weather?")
    (recording,) = service.recordings
    with wave.open(io.BytesIO(recording)) as sound:
        assert (sound.getnchannels(), sound.getsampwidth(), sound.getframerate()) == (1, 2, 16_000)
        assert 0.3 < sound.getnframes() / 16_000 < 10


def test_a_reply_can_be_listened_to(open_page: OpenPage, service: ScriptedService) -> None:
    service.health["details"]["speech"] = {"text_to_speech": READY}
    page = open_page()
    say(page, "Hello")
    wait_for_reply(page)
    page.get_by_role("button", name="Listen").click()
    with page.expect_response("**/v1/audio/speech"):
        page.get_by_role("button", name="Listen").click()  # stops it
        page.get_by_role("button", name="Listen").click()  # plays it again
    assert service.spoken[-1] == {"model": "tts-1", "input": "Hello there.", "response_format": "pcm"}
