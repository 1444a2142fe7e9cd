"""Requests in the shapes that Open WebUI sends for speech, pictures and documents, replayed."""

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from qwen_service.audio.ffmpeg import sniff
from tests.api.test_pictures import encoded, png
from tests.case_service import scripted_service
from tests.clients.conftest import ObligingModel, served
from tests.clients.test_openai_audio import speech_service
from tests.engines.test_embeddings import install, likeness
from tests.small_gguf import WIDTH
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


@asynccontextmanager
async def document_service(folder: Path, gguf: Path) -> AsyncIterator[FastAPI]:
    """A model for embeddings is installed, and no setting names it. The queue is short."""
    install(folder / "models", gguf)
    async with scripted_service(folder, ObligingModel(), {"context_size": 256, "queue_size": 1}) as app:
        yield app


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory, small_gguf: Path) -> Iterator[str]:
    with served(document_service(tmp_path_factory.mktemp("documents"), small_gguf)) as url:
        yield url


PIECES = [f"Paragraph {number} of the manual is about {'pumps' if number % 2 else 'taxes'}." for number in range(40)]


async def test_the_pieces_of_a_document_come_all_at_once_and_none_is_refused(documents: str) -> None:
    """Its default: one piece a request, no bound on requests at once, and no second try."""
    async with httpx.AsyncClient(base_url=documents, timeout=100, limits=httpx.Limits()) as client:

        async def embedded(piece: str) -> list[float]:
            body = {"input": [piece], "model": "vectors", "truncate": True}
            answer = await client.post("/api/embed", json=body)
            assert answer.status_code == 200, answer.text
            (vector,) = answer.json()["embeddings"]
            return list(vector)

        vectors = await asyncio.gather(*map(embedded, PIECES))
        assert await embedded(PIECES[7]) == pytest.approx(vectors[7], abs=1e-6)
    assert {len(vector) for vector in vectors} == {WIDTH}
    assert len({tuple(vector) for vector in vectors}) == len(PIECES)


def test_both_engines_of_its_settings_take_batches_and_give_the_same_vectors(documents: str) -> None:
    with httpx.Client(base_url=documents, timeout=100) as client:
        key = {"Authorization": "Bearer none"}
        ollama = client.post("/api/embed", headers=key, json={"input": PIECES[:5], "model": "v:1", "truncate": True})
        openai = client.post("/v1/embeddings", headers=key, json={"input": PIECES[:5], "model": "vectors"})
    assert openai.status_code == 200, openai.text
    assert [entry["index"] for entry in openai.json()["data"]] == [0, 1, 2, 3, 4]
    for one, other in zip(ollama.json()["embeddings"], openai.json()["data"], strict=True):
        assert likeness(one, other["embedding"]) > 0.9999


def test_its_list_of_models_tells_which_one_makes_vectors(documents: str) -> None:
    with httpx.Client(base_url=documents, timeout=100) as client:
        names = [model["model"] for model in client.get("/api/tags").json()["models"]]
        shown = client.post("/api/show", json={"name": "vectors:latest"}).json()
        chat = {"model": "vectors:latest", "messages": [{"role": "user", "content": "?"}], "stream": True}
        refused = client.post("/api/chat", json=chat)
    assert "vectors:latest" in names
    assert shown["capabilities"] == ["embedding"]
    assert (refused.status_code, "does not support chat" in refused.json()["error"]) == (400, True)
