"""Home Assistant's own client of the Wyoming protocol, and clients that mean no good."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from wyoming.asr import Transcribe, Transcript
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.error import Error
from wyoming.event import Event, Eventable
from wyoming.info import Describe, Info
from wyoming.ping import Ping, Pong
from wyoming.tts import Synthesize, SynthesizeVoice

from tests.live_service import Live, ScriptedEngine, live_service
from tests.runtimes.simulators.test_simulator_main_api import free_port
from tests.speech_programs import direct, recorded, recording, speech_folder, speech_is

SAMPLES = recording(1.5)[44:]


@asynccontextmanager
async def talking(folder: Path, **settings: Any) -> AsyncIterator[tuple[Live, AsyncTcpClient, int]]:
    ears, voice = speech_folder(folder, "asr_server"), speech_folder(folder, "tts_server")
    engine, port = ScriptedEngine(), free_port()
    engine.gate.set()
    given = {"speech_to_text": str(ears), "text_to_speech": str(voice), "wyoming_port": port}
    async with live_service(folder, engine, **{**given, **settings}) as live:
        await speech_is(live, "ready")
        async with AsyncTcpClient("127.0.0.1", port) as client:
            yield live, client, port


async def send(client: AsyncTcpClient, *events: Eventable) -> None:
    for event in events:
        await client.write_event(event.event())


async def answer(client: AsyncTcpClient) -> Event:
    async with asyncio.timeout(30):
        event = await client.read_event()
    assert event is not None
    return event


async def say(client: AsyncTcpClient, samples: bytes = SAMPLES, **asked: Any) -> Event:
    await send(client, Transcribe(**asked), AudioStart(rate=16_000, width=2, channels=1))
    for start in range(0, len(samples), 2048):
        await send(client, AudioChunk(rate=16_000, width=2, channels=1, audio=samples[start : start + 2048]))
    await send(client, AudioStop())
    return await answer(client)


async def test_it_describes_what_it_can(tmp_path: Path) -> None:
    async with talking(tmp_path, speech_languages=("en", "de"), text_to_speech_voice="af_heart") as (_, client, _port):
        await send(client, Describe())
        info = Info.from_event(await answer(client))
        await send(client, Ping("a"))
        assert Pong.from_event(await answer(client)).text == "a"
    (asr,), (tts,) = info.asr, info.tts
    assert [(model.name, model.languages) for model in asr.models] == [("sensevoice", ["en", "de"])]
    assert [(voice.name, voice.languages) for voice in tts.voices] == [("af_heart", ["en", "de"])]


async def test_what_is_said_is_written_down(tmp_path: Path) -> None:
    async with talking(tmp_path) as (live, client, _):
        first = await say(client, name="sensevoice", language="en")
        second = await say(client, SAMPLES[:16_000])
        metrics = (await live.http.get("/metrics")).text
    assert Transcript.from_event(first).text == "I heard 1.50 seconds."
    assert Transcript.from_event(second).text == "I heard 0.50 seconds."
    assert recorded(tmp_path / "asr_server")[0]["language"] == "en"
    assert 'qwen_requests_total{dialect="wyoming",route="transcribe",status="200"} 2.0' in metrics


async def test_a_text_is_spoken(tmp_path: Path) -> None:
    async with talking(tmp_path) as (_, client, _port):
        await send(client, Synthesize("Hello there.", voice=SynthesizeVoice(name="default")))
        start = AudioStart.from_event(await answer(client))
        audio = b""
        while AudioChunk.is_type((event := await answer(client)).type):
            audio += AudioChunk.from_event(event).audio
        assert AudioStop.is_type(event.type)
    assert (start.rate, start.width, start.channels) == (24_000, 2, 1)
    assert len(audio) == 24_000 * 2 * 12 // 100
    assert "voice" not in recorded(tmp_path / "tts_server")[0]


async def test_an_error_is_an_event_and_the_talk_goes_on(tmp_path: Path) -> None:
    async with talking(tmp_path) as (live, client, _):
        await send(client, AudioStop())
        assert "No audio" in Error.from_event(await answer(client)).text
        await send(client, AudioStart(rate=48_000, width=4, channels=2))
        assert "width 4 and 2 channels" in Error.from_event(await answer(client)).text
        direct(tmp_path / "asr_server", fault="500")
        assert "AX_ENGINE_RunSync failed" in Error.from_event(await say(client)).text
        assert Error.from_event(await say(client, name="whisper_huge")).code == "UnknownModel"
        assert Transcript.is_type((await say(client)).type)
        metrics = (await live.http.get("/metrics")).text
    assert 'route="transcribe",status="500"} 2.0' in metrics


async def test_audio_is_bounded(tmp_path: Path) -> None:
    async with talking(tmp_path, max_audio_bytes=20_000) as (_, client, _port):
        assert Error.from_event(await say(client)).code == "RequestTooLarge"
    assert recorded(tmp_path / "asr_server") == []


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"{}\n",
        b"[]\n",
        b"3\n",
        b'{"type": "ping", "data_length": "many"}\n',
        b'{"type": "ping", "data_length": -1}\n',
        json.dumps({"type": "audio-chunk", "payload_length": 10**12}).encode() + b"\n",
        json.dumps({"type": "ping", "data_length": 5}).encode() + b"\nabcde",
        b'{"type": "audio-chunk", "data": 7}\n',
        b"x" * 200_000,
        b'{"type": "ping"',
        b"\xff\xfe\n",
        b'{"type": "synthesize"}\n',
        b'{"type": "audio-start", "data": {"rate": "x"}}\n',
        b'{"type": "audio-start", "data": {"rate": 16000, "width": {}, "channels": []}}\n',
        b'{"type": "synthesize", "data": {"text": 7}}\n',
        b'{"type": "synthesize", "data": {"text": "\\ud800"}}\n',
        b'{"type": "synthesize", "data": {"text": "Hi", "voice": {"name": ["a"]}}}\n',
        b'{"type": "synthesize", "data": {"text": "Hi", "voice": 7}}\n',
        b'{"type": "transcribe", "data": {"name": {}}}\n',
        b'{"type": "ping", "data": {"text": []}}\n',
        b'{"type": ["ping"]}\n',
        b"[" * 60_000 + b"\n",
    ],
)
async def test_nonsense_ends_its_connection_and_nothing_else(
    data: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with talking(tmp_path) as (live, client, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(data)
        writer.write_eof()
        async with asyncio.timeout(30):
            with suppress(ConnectionResetError):  # what it did not read
                await reader.read()
        writer.close()
        assert Transcript.is_type((await say(client)).type)
        assert (await live.http.get("/health")).json()["status"] == "ok"
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


async def test_without_the_setting_nobody_listens(tmp_path: Path) -> None:
    port = free_port()
    async with live_service(tmp_path, wyoming_port=port):  # neither ears nor voice
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)


async def test_the_service_stops_with_a_client_that_waits(tmp_path: Path) -> None:
    async with talking(tmp_path) as (_, _client, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b'{"type": "ping"}\n')
        assert b"pong" in await reader.readline()
    async with asyncio.timeout(30):
        await reader.read()  # to the end, which comes
    writer.close()
