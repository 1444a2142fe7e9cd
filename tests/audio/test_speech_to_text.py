"""A recording's way through the service to the vendor's program, which a simulator plays, and back."""

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.live_service import Live, ScriptedEngine, live_service
from tests.service_process import is_alive
from tests.speech_programs import asked, direct, recorded, recording, speech_folder, speech_is

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
ROUTE = "/v1/audio/transcriptions"


@asynccontextmanager
async def listening(
    folder: Path, play: dict[str, str] | None = None, **settings: Any
) -> AsyncIterator[tuple[Live, Path]]:
    place = speech_folder(folder, "asr_server", **(play or {}))
    engine = ScriptedEngine()
    engine.gate.set()
    async with live_service(folder, engine, **{"speech_to_text": str(place), **settings}) as live:
        await speech_is(live, "ready", "failed", "restarting")
        yield live, place


async def transcribe(live: Live, audio: bytes | None = None, route: str = ROUTE, **fields: str) -> httpx.Response:
    audio = recording() if audio is None else audio
    return await live.http.post(route, files={"file": ("speech.wav", audio)}, data=fields)


async def test_a_recording_is_written_down(tmp_path: Path) -> None:
    async with listening(tmp_path) as (live, place):
        answer = await transcribe(live, model="whisper-1", language="de")
        health = (await live.http.get("/health")).json()
        metrics = (await live.http.get("/metrics")).text
    assert answer.json() == {"text": "I heard 1.50 seconds."}
    assert [(one["model"], one["language"], one["response_format"]) for one in recorded(place)] == [
        ("sensevoice", "de", "json")
    ]
    assert health["status"] == "ok"
    assert health["details"]["speech"]["speech_to_text"]["state"] == "ready"
    assert 'qwen_speech_seconds_total{engine="speech_to_text"} 1.5' in metrics
    assert 'qwen_requests_total{dialect="openai",route="/v1/audio/transcriptions",status="200"} 1.0' in metrics
    assert 'qwen_engine_state{engine="speech_to_text",model="speech_to_text",state="ready"} 1.0' in metrics


async def test_the_answer_has_the_form_that_was_asked_for(tmp_path: Path) -> None:
    async with listening(tmp_path) as (live, _):
        text = await transcribe(live, response_format="text")
        assert (text.text, text.headers["content-type"]) == ("I heard 1.50 seconds.\n", "text/plain; charset=utf-8")
        verbose = (await transcribe(live, response_format="verbose_json")).json()
        assert (verbose["task"], verbose["duration"], verbose["language"]) == ("transcribe", 1.5, "en")
        assert (verbose["text"], verbose["segments"][0]["end"]) == ("I heard 1.50 seconds.", 1.5)
        streamed = await transcribe(live, stream="true")
        assert streamed.headers["content-type"].startswith("text/event-stream")
        assert streamed.text.count("I heard 1.50 seconds.") == 2
        vtt = await transcribe(live, response_format="vtt")
        assert vtt.headers["content-type"] == "text/vtt; charset=utf-8"
        assert vtt.text.endswith("00:00:01.500\nI heard 1.50 seconds.\n\n")
        refused = await transcribe(live, response_format="diarized_json")
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "response_format")


async def test_a_program_that_tells_no_times_makes_no_subtitles(tmp_path: Path) -> None:
    async with listening(tmp_path, {"timeless": ""}) as (live, _):
        refused = await transcribe(live, response_format="srt")
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "response_format")
        assert "gives no times" in refused.json()["error"]["message"]


async def test_what_the_program_does_not_know_is_named(tmp_path: Path) -> None:
    async with listening(tmp_path) as (live, _):
        answer = await transcribe(live, prompt="Names: Zoë", temperature="0.2", chunking_strategy="auto")
    assert answer.headers["x-ignored-parameters"] == "prompt, temperature, chunking_strategy"


async def test_a_model_is_one_of_those_that_are_there(tmp_path: Path) -> None:
    async with listening(tmp_path, {"models": "sensevoice\nwhisper_tiny\n"}, speech_to_text_model="whisper_tiny") as (
        live,
        place,
    ):
        await transcribe(live)
        await transcribe(live, model="sensevoice")
        unknown = await transcribe(live, model="whisper_huge")
    assert [one["model"] for one in recorded(place)] == ["whisper_tiny", "sensevoice"]
    assert unknown.status_code == 404
    assert "sensevoice, whisper_tiny" in unknown.json()["error"]["message"]


@needs_ffmpeg
@pytest.mark.parametrize("suffix", ["ogg", "webm", "m4a", "flac"])
async def test_other_formats_are_converted(suffix: str, tmp_path: Path) -> None:
    made = tmp_path / f"tone.{suffix}"
    tone = ["-f", "lavfi", "-i", "sine=frequency=440:duration=2"]
    await asyncio.to_thread(subprocess.run, ["ffmpeg", "-v", "error", *tone, str(made)], check=True)
    async with listening(tmp_path) as (live, _):
        answer = await transcribe(live, made.read_bytes())
    assert answer.json()["text"].startswith("I heard 2.0")


async def test_without_ffmpeg_the_refusal_names_what_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening(tmp_path) as (live, place):
        monkeypatch.setenv("PATH", str(tmp_path))
        ogg = await transcribe(live, b"OggS" + bytes(100))
        unknown = await transcribe(live, b"%PDF-1.7")
    assert (ogg.status_code, unknown.status_code) == (400, 400)
    assert "wav and mp3 only" in ogg.json()["error"]["message"]
    assert "it takes wav and mp3." in unknown.json()["error"]["message"]
    assert recorded(place) == []


@needs_ffmpeg
async def test_a_file_that_only_begins_like_audio_is_refused(tmp_path: Path) -> None:
    async with listening(tmp_path) as (live, _):
        answer = await transcribe(live, b"OggS" + bytes(1000))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "file")


@needs_ffmpeg
async def test_a_small_file_that_unpacks_to_hours_is_refused(tmp_path: Path) -> None:
    made = tmp_path / "silence.flac"
    silence = ["-f", "lavfi", "-i", "anullsrc=r=8000:cl=mono", "-t", "600"]
    await asyncio.to_thread(subprocess.run, ["ffmpeg", "-v", "error", *silence, str(made)], check=True)
    async with listening(tmp_path, max_audio_bytes=1_000_000) as (live, _):
        answer = await transcribe(live, made.read_bytes())
    assert (answer.status_code, answer.json()["error"]["message"]) == (
        413,
        "The audio is too long: at most 31 seconds.",
    )


@pytest.mark.parametrize(
    ("form", "field"),
    [
        ({"data": {"model": "x"}}, "file"),
        ({"files": {"file": ("a.wav", b"")}}, "file"),
        ({"files": {"file": ("a.wav", recording(0.1))}, "data": {"temperature": "hot"}}, "temperature"),
        ({"files": {"file": ("a.wav", recording(0.1))}, "data": {"language": "../etc"}}, "language"),
        ({"files": {"file": ("a.wav", recording(0.1))}, "data": {"response_format": "docx"}}, "response_format"),
    ],
)
async def test_a_wrong_form_is_a_400_that_names_the_field(form: dict[str, Any], field: str, tmp_path: Path) -> None:
    async with listening(tmp_path) as (live, _):
        answer = await live.http.post(ROUTE, **form)
        json = await live.http.post(ROUTE, json={"file": "x"})
        broken = await live.http.post(
            ROUTE, content=b"--x\r\nno", headers={"Content-Type": "multipart/form-data; boundary=x"}
        )
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)
    assert (json.status_code, broken.status_code) == (400, 400)


async def test_size_is_bounded_for_audio_and_for_all_other_bodies(tmp_path: Path) -> None:
    async with listening(tmp_path, max_body_bytes=2048, max_audio_bytes=400_000) as (live, _):
        assert (await transcribe(live, recording(10))).status_code == 200
        assert (await transcribe(live, recording(13))).status_code == 413
        assert (await live.chat("x" * 4000)).status_code == 413


async def test_translation_is_refused_by_a_model_that_only_writes_down(tmp_path: Path) -> None:
    async with listening(tmp_path) as (live, _):
        answer = await transcribe(live, route="/v1/audio/translations")
    assert answer.status_code == 400
    assert "cannot translate" in answer.json()["error"]["message"]


async def test_one_at_a_time_in_order_and_not_too_many(tmp_path: Path) -> None:
    async with listening(tmp_path, {"delay": "0.3"}, queue_size=2) as (live, place):
        answers = await asyncio.gather(*(transcribe(live) for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 429, 429]
    assert [one["together"] for one in recorded(place)] == [1, 1, 1]


async def test_a_client_that_leaves_keeps_the_program_for_itself_until_its_work_has_ended(tmp_path: Path) -> None:
    async with listening(tmp_path, {"delay": "1"}) as (live, place):
        leaving = asyncio.create_task(transcribe(live))
        await asked(place)
        leaving.cancel()
        assert (await transcribe(live)).status_code == 200
    assert [one["together"] for one in recorded(place)] == [1, 1]


@pytest.mark.parametrize(
    ("fault", "status", "words"),
    [
        ("die", 502, "it crashed (SIGSEGV)"),
        ("hangup", 502, "closed the connection"),
        ("garbage", 502, "no transcript"),
        ("500", 502, "AX_ENGINE_RunSync failed"),
        ("hang", 504, "no answer within 6 s"),
    ],
)
async def test_a_fault_is_told_and_heals(fault: str, status: int, words: str, tmp_path: Path) -> None:
    async with listening(tmp_path, speech_timeout=6) as (live, place):
        direct(place, fault=fault)
        answer = await transcribe(live)
        assert (answer.status_code, words in answer.json()["error"]["message"]) == (status, True), answer.text
        await speech_is(live, "ready")
        healed = await transcribe(live)
        assert healed.json() == {"text": "I heard 1.50 seconds."}


async def test_a_program_that_cannot_start_says_why_and_costs_the_chat_nothing(tmp_path: Path) -> None:
    play = {"load": "[E] axcl init fail, ret = 0x8030010b"}
    async with listening(tmp_path, play) as (live, _):
        health = (await live.http.get("/health")).json()
        answer = await transcribe(live)
        assert (await live.chat()).status_code == 200
    assert health["status"] == "degraded"
    assert health["details"]["speech"]["speech_to_text"]["state"] == "failed"
    assert answer.status_code == 503
    assert "driver is not loaded" in answer.json()["error"]["message"]


async def test_a_program_that_is_not_there_is_named_with_the_places_that_were_searched(tmp_path: Path) -> None:
    async with listening(tmp_path, asr_server="asr_server_2") as (live, place):
        answer = await transcribe(live)
    assert answer.status_code == 503
    assert f"neither in {place} nor on PATH" in answer.json()["error"]["message"]


async def test_without_the_setting_the_route_says_what_is_missing(tmp_path: Path) -> None:
    async with listening(tmp_path, speech_to_text=None) as (live, _):
        answer = await transcribe(live)
        health = (await live.http.get("/health")).json()
    assert (answer.status_code, answer.json()["error"]["code"]) == (501, "not_offered")
    assert (health["status"], health["details"]["speech"]) == ("ok", {})


async def test_the_program_ends_with_the_service(tmp_path: Path) -> None:
    async with listening(tmp_path) as (_, _place):
        pid_file = tmp_path / "state" / "speech_to_text.pid"
        pid = int(pid_file.read_text())
        assert is_alive(pid)
    assert not is_alive(pid)
    assert not pid_file.exists()


async def test_a_server_that_runs_elsewhere_is_joined(tmp_path: Path) -> None:
    async with listening(tmp_path / "there") as (there, place):
        elsewhere = tmp_path / "here"
        elsewhere.mkdir()
        engine = ScriptedEngine()
        engine.gate.set()
        async with live_service(elsewhere, engine, speech_to_text=f"{there.url}/v1/") as here:
            await speech_is(here, "ready")
            answer = await transcribe(here, temperature="0.5")
            assert (await transcribe(here, route="/v1/audio/translations")).status_code == 400
            assert (await transcribe(here, model="other")).status_code == 400
    assert answer.json() == {"text": "I heard 1.50 seconds."}
    assert "x-ignored-parameters" not in answer.headers  # whether it is honoured there is not ours to say
    assert len(recorded(place)) == 1


async def test_a_server_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    async with listening(tmp_path, speech_to_text="http://127.0.0.1:9/v1", queue_timeout=0.1) as (live, _):
        answer = await transcribe(live)
    assert answer.status_code == 503
    assert "no server answers at http://127.0.0.1:9/v1" in answer.json()["error"]["message"]
