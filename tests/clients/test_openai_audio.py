"""The official `openai` package's audio calls, with the vendor's two programs played by simulators."""

import io
import re
import shutil
import subprocess
import wave
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import openai
import pytest
from fastapi import FastAPI
from openai import OpenAI

from tests.case_service import scripted_service
from tests.clients.conftest import ObligingModel, served
from tests.clients.test_docs import ALL, SNIPPETS
from tests.speech_programs import recording, speech_folder

needs_espeak = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")


@asynccontextmanager
async def speech_service(folder: Path) -> AsyncIterator[FastAPI]:
    settings = {
        "speech_to_text": str(speech_folder(folder, "asr_server")),
        "text_to_speech": str(speech_folder(folder, "tts_server")),
    }
    async with scripted_service(folder, ObligingModel(), settings) as app:
        yield app


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    with (
        served(speech_service(tmp_path_factory.mktemp("speech"))) as url,
        OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def test_a_file_is_transcribed(client: OpenAI, tmp_path: Path) -> None:
    path = tmp_path / "speech.wav"
    path.write_bytes(recording(2))
    with path.open("rb") as file:
        assert client.audio.transcriptions.create(model="whisper-1", file=file).text == "I heard 2.00 seconds."


@needs_espeak
def test_real_speech_is_transcribed(client: OpenAI) -> None:
    spoken = subprocess.run(["espeak-ng", "--stdout", "Turn on the light."], check=True, capture_output=True).stdout
    answer = client.audio.transcriptions.create(model="whisper-1", file=("a.wav", spoken), language="en")
    heard = re.fullmatch(r"I heard (.+) seconds.", answer.text)
    assert heard
    assert 0.5 < float(heard[1]) < 5  # its WAV comes through a pipe, with a header that says 13 hours


def test_the_verbose_form_has_segments(client: OpenAI) -> None:
    answer = client.audio.transcriptions.create(
        model="sensevoice", file=("a.wav", recording(1)), response_format="verbose_json"
    )
    assert (answer.text, float(answer.duration), answer.language) == ("I heard 1.00 seconds.", 1.0, "en")
    assert answer.segments is not None
    assert answer.segments[0].end == 1.0


def test_subtitles_are_texts(client: OpenAI) -> None:
    create = client.audio.transcriptions.create
    srt = create(model="whisper-1", file=("a.wav", recording(1)), response_format="srt")
    assert srt == "1\n00:00:00,000 --> 00:00:01,000\nI heard 1.00 seconds.\n\n"
    vtt = create(model="whisper-1", file=("a.wav", recording(1)), response_format="vtt")
    assert vtt == "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\nI heard 1.00 seconds.\n\n"


def test_a_stream_has_its_events(client: OpenAI) -> None:
    events = list(client.audio.transcriptions.create(model="whisper-1", file=("a.wav", recording(1)), stream=True))
    assert [event.type for event in events] == ["transcript.text.delta", "transcript.text.done"]
    assert getattr(events[-1], "text", "") == "I heard 1.00 seconds."


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the package calls its own method so
def test_translation_and_unknown_models_are_errors_of_the_package(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        client.audio.translations.create(model="whisper-1", file=("a.wav", recording(1)))
    with pytest.raises(openai.NotFoundError):
        client.audio.transcriptions.create(model="whisper_tiny", file=("a.wav", recording(1)))


def test_speech_is_streamed_to_a_file(client: OpenAI, tmp_path: Path) -> None:
    path = tmp_path / "said.wav"
    create = client.audio.speech.with_streaming_response.create
    with create(model="tts-1", voice="alloy", input="Hello there.", response_format="wav") as answer:
        answer.stream_to_file(path)
    with wave.open(str(path)) as sound:
        assert sound.getnframes() == pytest.approx(24_000 * 0.12)


def test_speech_is_returned_whole(client: OpenAI) -> None:
    answer = client.audio.speech.create(model="tts-1", voice="alloy", input="Hi. " * 100, response_format="wav")
    with wave.open(io.BytesIO(answer.content)) as sound:
        assert len(sound.readframes(1_000_000)) > 48_000
    pcm = client.audio.speech.create(model="tts-1", voice="alloy", input="Hello there.", response_format="pcm")
    assert len(pcm.content) == 24_000 * 2 * 12 // 100


def test_the_snippet_of_the_documentation_runs(
    client: OpenAI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (snippet,) = set(ALL) - set(SNIPPETS)
    (tmp_path / "question.wav").write_bytes(recording(1))
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet.replace("http://localhost:8080/v1", str(client.base_url)), "docs/clients.md", "exec"), {})
    assert capsys.readouterr().out == "I heard 1.00 seconds.\n"
    assert (tmp_path / "answer.wav").stat().st_size > 1000
