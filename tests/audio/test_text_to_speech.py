"""A text's way to the vendor's voice, which a simulator plays, and the sound's way back."""

import asyncio
import base64
import io
import json
import shutil
import subprocess
import time
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from qwen_service.audio.ffmpeg import sniff
from tests.live_service import Live, ScriptedEngine, live_service
from tests.speech_programs import direct, recorded, speech_folder, speech_is

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
ROUTE = "/v1/audio/speech"
HELLO = "Hello there."  # 12 characters, 0.12 seconds of the simulator's tone
LONG = "This is the first sentence of a long answer. " + "And then one more of them follows. " * 20


@asynccontextmanager
async def speaking(
    folder: Path, play: dict[str, str] | None = None, **settings: Any
) -> AsyncIterator[tuple[Live, Path]]:
    place = speech_folder(folder, "tts_server", **(play or {}))
    engine = ScriptedEngine()
    engine.gate.set()
    async with live_service(folder, engine, **{"text_to_speech": str(place), **settings}) as live:
        await speech_is(live, "ready", "failed")
        yield live, place


async def speak(live: Live, text: str = HELLO, **body: Any) -> httpx.Response:
    return await live.http.post(ROUTE, json={"input": text, "response_format": "wav", **body})


def seconds(content: bytes) -> float:
    with wave.open(io.BytesIO(content)) as sound:
        assert (sound.getnchannels(), sound.getsampwidth(), sound.getframerate()) == (1, 2, 24_000)
        return len(sound.readframes(10_000_000)) / 48_000


@pytest.mark.parametrize("samples", ["int16", "float32"])
async def test_a_wav_has_sixteen_bits_whatever_the_program_makes(samples: str, tmp_path: Path) -> None:
    async with speaking(tmp_path, {"wav": samples}) as (live, place):
        answer = await speak(live, voice="af_heart", speed=1.5, model="tts-1-hd")
        metrics = (await live.http.get("/metrics")).text
    assert answer.headers["content-type"] == "audio/wav"
    assert seconds(answer.content) == pytest.approx(0.12)
    assert recorded(place) == [
        {"model": "tts-1", "input": HELLO, "response_format": "wav", "voice": "af_heart", "speed": 1.5}
    ]
    assert 'qwen_speech_seconds_total{engine="text_to_speech"} 0.12' in metrics
    assert 'qwen_time_to_first_sound_seconds_count{engine="text_to_speech"} 1.0' in metrics


@pytest.mark.parametrize("rate", ["24000", "16000"])
async def test_pcm_is_openais_and_not_the_programs_floats(rate: str, tmp_path: Path) -> None:
    async with speaking(tmp_path, {"wav": "float32", "rate": rate}) as (live, _):
        answer = await speak(live, response_format="pcm")
    assert len(answer.content) == pytest.approx(0.12 * 24_000 * 2, abs=2)
    loudest = max(abs(int.from_bytes(answer.content[at : at + 2], "little", signed=True)) for at in range(0, 5000, 2))
    assert 7500 < loudest <= 8000


@needs_ffmpeg
@pytest.mark.parametrize(
    ("kind", "sniffed"), [("mp3", "mp3"), ("opus", "ogg"), ("aac", "aac"), ("flac", "flac"), (None, "mp3")]
)
async def test_other_formats_are_made_by_ffmpeg(kind: str | None, sniffed: str, tmp_path: Path) -> None:
    async with speaking(tmp_path) as (live, _):
        answer = await speak(live, LONG, response_format=kind)
    assert sniff(answer.content) == sniffed
    made = tmp_path / "made"
    made.write_bytes(answer.content)
    probe = [
        "ffprobe",
        "-v",
        "error",
        "-count_packets",
        "-show_entries",
        "packet=pts_time",
        "-of",
        "csv=p=0",
        str(made),
    ]
    times = (await asyncio.to_thread(subprocess.run, probe, check=True, capture_output=True, text=True)).stdout.split()
    assert float(times[-1].strip(",")) == pytest.approx(len(LONG) / 100, abs=0.4)


async def test_without_ffmpeg_a_wav_is_what_comes_unasked_and_the_rest_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with speaking(tmp_path) as (live, _):
        monkeypatch.setenv("PATH", str(tmp_path))
        unasked = await speak(live, response_format=None)
        refused = await speak(live, response_format="mp3")
    assert seconds(unasked.content) == pytest.approx(0.12)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "response_format")
    assert "ask for wav or pcm" in refused.json()["error"]["message"]


async def test_a_long_text_is_spoken_sentence_by_sentence_and_the_first_sound_comes_early(tmp_path: Path) -> None:
    async with speaking(tmp_path, {"delay": "0.3"}) as (live, place):
        begun = time.monotonic()
        first, content = 0.0, b""
        async with live.http.stream("POST", ROUTE, json={"input": LONG, "response_format": "wav"}) as answer:
            async for part in answer.aiter_raw():
                first = first or time.monotonic() - begun
                content += part
        whole = time.monotonic() - begun
    spoken = [one["input"] for one in recorded(place)]
    assert spoken[0] == "This is the first sentence of a long answer."
    assert " ".join(spoken) == LONG.strip()
    assert len(spoken) >= 5
    assert first < whole / 2
    assert seconds(content) == pytest.approx(sum(map(len, spoken)) / 100)


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"input": ""}, 400, "input"),
        ({"input": " \n"}, 400, "input"),
        ({"input": "x" * 501}, 413, "input"),
        ({"input": HELLO, "speed": 9}, 400, "speed"),
        ({"input": HELLO, "response_format": "midi"}, 400, "response_format"),
        ({"input": HELLO, "stream_format": "morse"}, 400, "stream_format"),
        ({"input": HELLO, "voice": "nobody", "response_format": "wav"}, 400, "input"),
        ({}, 400, "input"),
    ],
)
async def test_a_wrong_body_names_the_field(body: dict[str, Any], status: int, field: str, tmp_path: Path) -> None:
    async with speaking(tmp_path, max_speech_characters=500) as (live, _):
        answer = await live.http.post(ROUTE, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, field), answer.text


async def test_the_voice_of_the_configuration_stands_in_for_none(tmp_path: Path) -> None:
    async with speaking(tmp_path, text_to_speech_voice="zf_xiaobei") as (live, place):
        await speak(live)
        ignored = await speak(live, voice={"id": "af_heart"}, instructions="Whisper.")
    assert [one["voice"] for one in recorded(place)] == ["zf_xiaobei", "af_heart"]
    assert ignored.headers["x-ignored-parameters"] == "instructions"


@pytest.mark.parametrize(
    ("fault", "status", "words"),
    [
        ("die", 502, "it crashed (SIGSEGV)"),
        ("hangup", 502, "closed the connection"),
        ("garbage", 502, "no WAV"),
        ("500", 502, "AX_ENGINE_RunSync failed"),
        ("hang", 504, "no answer within 6 s"),
    ],
)
async def test_a_fault_before_the_first_sound_has_its_status_and_heals(
    fault: str, status: int, words: str, tmp_path: Path
) -> None:
    async with speaking(tmp_path, speech_timeout=6) as (live, place):
        direct(place, fault=fault)
        answer = await speak(live)
        assert (answer.status_code, words in answer.json()["error"]["message"]) == (status, True), answer.text
        await speech_is(live, "ready")
        assert seconds((await speak(live)).content) == pytest.approx(0.12)


@pytest.mark.parametrize("kind", ["wav", "pcm", pytest.param("mp3", marks=needs_ffmpeg)])
async def test_a_fault_after_the_first_sound_is_no_clean_end(kind: str, tmp_path: Path) -> None:
    async with speaking(tmp_path) as (live, place):
        direct(place, fault_after="2", fault="die")
        with pytest.raises(httpx.RemoteProtocolError):
            await speak(live, LONG * 3, response_format=kind)
        await speech_is(live, "ready", restarts=1)
        assert (await speak(live)).status_code == 200


def events(content: bytes) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix(b"data: ")) for line in content.split(b"\n\n")[:-1]]


async def test_sound_comes_as_events_with_an_end_of_their_own(tmp_path: Path) -> None:
    async with speaking(tmp_path) as (live, _):
        answer = await speak(live, LONG, stream_format="sse")
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    *deltas, done = events(answer.content)
    assert {one["type"] for one in deltas} == {"speech.audio.delta"}
    assert len(deltas) > 3
    assert seconds(b"".join(base64.b64decode(one["audio"]) for one in deltas)) == pytest.approx(
        len(LONG) / 100, abs=0.5
    )
    assert done == {"type": "speech.audio.done", "usage": {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}}


async def test_a_fault_among_the_events_is_the_last_of_them(tmp_path: Path) -> None:
    async with speaking(tmp_path) as (live, place):
        direct(place, fault="die")
        early = await speak(live, stream_format="sse")
        assert (early.status_code, "SIGSEGV" in early.json()["error"]["message"]) == (502, True)
        await speech_is(live, "ready", restarts=1)
        direct(place, fault_after="2", fault="die")
        late = await speak(live, LONG * 3, stream_format="sse")
    first, *_, last = events(late.content)
    assert (late.status_code, first["type"], last["error"]["code"]) == (200, "speech.audio.delta", "engine_died")


async def test_a_listener_who_leaves_ends_it_after_the_sentence(tmp_path: Path) -> None:
    async with speaking(tmp_path, {"delay": "0.2"}) as (live, place):
        async with live.http.stream("POST", ROUTE, json={"input": LONG, "response_format": "pcm"}) as answer:
            async for _ in answer.aiter_raw():
                break
        assert seconds((await speak(live)).content) == pytest.approx(0.12)
        asked = len(recorded(place))
    assert asked <= 4  # the first, the one that was running, and ours; ten would have been all


async def test_without_the_setting_the_route_says_what_is_missing(tmp_path: Path) -> None:
    async with speaking(tmp_path, text_to_speech=None) as (live, _):
        answer = await speak(live)
    assert (answer.status_code, answer.json()["error"]["code"]) == (501, "not_offered")


async def test_a_server_that_runs_elsewhere_is_joined_and_asked_for_the_model_that_was_named(tmp_path: Path) -> None:
    async with speaking(tmp_path / "there") as (there, place):
        elsewhere = tmp_path / "here"
        elsewhere.mkdir()
        engine = ScriptedEngine()
        engine.gate.set()
        async with live_service(elsewhere, engine, text_to_speech=there.url) as here:
            await speech_is(here, "ready")
            answer = await speak(here, LONG, voice="af_heart")
    assert seconds(answer.content) == pytest.approx(len(LONG) / 100, abs=0.5)
    assert {one["voice"] for one in recorded(place)} == {"af_heart"}
