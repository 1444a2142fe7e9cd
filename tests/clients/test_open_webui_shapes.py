"""Requests in the shapes that Open WebUI sends for speech and pictures, replayed."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from qwen_service.audio.formats import sniff
from tests.api.test_pictures import encoded, png
from tests.clients.conftest import served
from tests.clients.test_openai_audio import speech_service
from tests.speech_programs import recording

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with (
        served(speech_service(tmp_path_factory.mktemp("speech"))) as url,
        httpx.Client(base_url=url, timeout=60) as http,
    ):
        yield http


@needs_ffmpeg
def test_a_recording_of_the_browser_is_written_down(http: httpx.Client, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(recording(2))
    webm = tmp_path / "recording.webm"
    subprocess.run(["ffmpeg", "-v", "error", "-i", str(tmp_path / "a.wav"), str(webm)], check=True)
    files = {"file": ("recording.webm", webm.read_bytes(), "audio/webm;codecs=opus")}
    answer = http.post("/v1/audio/transcriptions", data={"model": "whisper-1"}, files=files)
    assert answer.json()["text"].startswith("I heard 2.0")


@needs_ffmpeg
def test_a_reply_is_read_aloud_as_mp3(http: httpx.Client) -> None:
    answer = http.post("/v1/audio/speech", json={"model": "tts-1", "input": "Hello there.", "voice": "alloy"})
    assert (answer.status_code, answer.headers["content-type"], sniff(answer.content)) == (200, "audio/mpeg", "mp3")


def test_a_picture_to_a_model_without_eyes_is_told_in_both_dialects(http: httpx.Client) -> None:
    picture = encoded(png())
    parts = [
        {"type": "text", "text": "?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
    ]
    openai = {"model": "tiny", "stream": True, "messages": [{"role": "user", "content": parts}]}
    ollama = {
        "model": "tiny:latest",
        "messages": [{"role": "user", "content": "?", "images": [picture]}],
        "options": {},
    }
    for path, body in (("/v1/chat/completions", openai), ("/api/chat", ollama)):
        answer = http.post(path, json=body)
        assert (answer.status_code, "tiny cannot see images" in answer.text) == (400, True)
