"""Speech for Home Assistant: both speech engines as Wyoming services on their own port.

One connection serves one request: audio in, transcript out; or text in, audio out. The protocol has no passwords. The
size of what a client sends is bounded here, because the package's own reader accepts any length that a header claims.
"""

import asyncio
import json
import logging
import secrets
from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress
from functools import partial
from typing import Any, TypeVar

from wyoming.asr import Transcribe, Transcript
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.error import Error
from wyoming.event import Event, async_write_event
from wyoming.info import AsrModel, AsrProgram, Attribution, Describe, Info, TtsProgram, TtsVoice
from wyoming.ping import Ping, Pong
from wyoming.tts import Synthesize

from qwen_service.audio.sound import Sound, wav_bytes
from qwen_service.audio.speech_to_text import Recording, SpeechToText
from qwen_service.audio.text_to_speech import Text, TextToSpeech
from qwen_service.errors import InvalidRequest, RequestTooLarge, ServiceError
from qwen_service.request_record import RequestRecord, current_record
from qwen_service.settings import Settings

log = logging.getLogger(__name__)

T = TypeVar("T")

MOST_CONNECTIONS = 32
SILENCE = 60.0  # seconds after which a silent client is disconnected
MOST_DATA = 65_536  # bytes of an event's JSON
MOST_PAYLOAD = 1 << 20  # bytes of an event's audio
CHUNK = 4096  # bytes of audio in an event that we send
DEFAULT_VOICE = "default"
OURS = Attribution("qwen-service", "https://www.home-assistant.io/integrations/wyoming")


class WyomingServer:
    def __init__(
        self,
        settings: Settings,
        ears: SpeechToText,
        voice: TextToSpeech,
        finished: Callable[[RequestRecord], None],
        version: str,
    ) -> None:
        self._settings, self._ears, self._voice = settings, ears, voice
        self._finished, self._version = finished, version
        self._server: asyncio.Server | None = None
        self._talks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen. When the port is taken, log it and go on without Wyoming."""
        settings = self._settings
        try:
            self._server = await asyncio.start_server(
                self._connected, list(settings.wyoming_host), settings.wyoming_port, limit=MOST_DATA
            )
        except OSError as error:
            log.error("wyoming_port %d cannot be used: %s", settings.wyoming_port, error.strerror or error)
        else:
            log.info("Wyoming: listening on port %d", self.port)

    @property
    def port(self) -> int:
        return int(self._server.sockets[0].getsockname()[1]) if self._server is not None else 0

    async def stop(self) -> None:
        if self._server is None:
            return
        self._server.close()
        for talk in self._talks:
            talk.cancel()
        if self._talks:
            await asyncio.wait(self._talks)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "asyncio runs each connection as a task"
        self._talks.add(task)
        try:
            if len(self._talks) <= MOST_CONNECTIONS:
                await _Talk(self, reader, writer).run()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # the client left, or stopped reading
        except asyncio.CancelledError:
            pass  # the service stops; raised, start_server would log it
        finally:
            self._talks.discard(task)
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def info(self) -> Info:
        """The services and models that Home Assistant shows."""
        settings = self._settings
        common: dict[str, Any] = {"attribution": OURS, "installed": True, "version": self._version}
        languages = list(settings.speech_languages)
        asr, tts = [], []
        if self._ears.engine is not None:
            names = await self._names()
            models = [AsrModel(name=name, description=name, languages=languages, **common) for name in names]
            asr = [AsrProgram(name="qwen-service", description="Speech to text", models=models, **common)]
        if self._voice.engine is not None:
            name = settings.text_to_speech_voice or DEFAULT_VOICE
            voices = [TtsVoice(name=name, description=name, languages=languages, **common)]
            tts = [TtsProgram(name="qwen-service", description="Text to speech", voices=voices, **common)]
        return Info(asr=asr, tts=tts)

    async def _names(self) -> Sequence[str]:
        """Names of the speech-to-text models; one placeholder when the program is not up or lists none."""
        try:
            names = await self._ears.models()
        except ServiceError:
            names = ()
        engine = self._ears.engine
        joined = engine is not None and engine.program.is_joined
        return [self._settings.speech_to_text_model or "speech"] if joined or not names else names

    async def transcribe(self, recording: Recording, record: RequestRecord) -> Transcript:
        with _recorded(record, self._finished):
            heard = await self._ears.transcribe(recording)
            return Transcript(heard.text, language=heard.language or None)

    async def speak(self, text: Text, record: RequestRecord, send: Callable[[Event], Any]) -> None:
        with _recorded(record, self._finished):
            rate = 0
            async with aclosing(self._voice.speak(text)) as sounds:
                async for sound in sounds:
                    if not rate:
                        rate = sound.rate
                        await send(AudioStart(rate=rate, width=2, channels=1).event())
                    await _send_sound(sound, send)
            await send(AudioStop().event())

    def recording(self, samples: bytes, rate: int, asked: Transcribe) -> Recording:
        named = asked.name if asked.name != "speech" else ""
        return Recording(wav_bytes(samples, rate), model=named or "", language=asked.language or "")

    @property
    def most_audio(self) -> int:
        return self._settings.max_audio_bytes


class _Talk:
    def __init__(self, server: WyomingServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._server, self._reader = server, reader
        self._send = partial(async_write_event, writer=writer)
        self._client = str((writer.get_extra_info("peername") or ("",))[0])
        self._asked = Transcribe()
        self._samples = bytearray()
        self._rate = 0

    async def run(self) -> None:
        while (event := await self._next()) is not None:
            try:
                await self._answer(event)
            except ServiceError as error:
                self._samples.clear()
                self._rate = 0
                await self._send(Error(error.message, type(error).__name__).event())

    async def _next(self) -> Event | None:
        """The next event; None when the client has left, is silent for too long, or sends something else."""
        try:
            async with asyncio.timeout(SILENCE):
                return await read_event(self._reader)
        except (ValueError, TypeError, LookupError, RecursionError, TimeoutError) as error:
            log.info("Wyoming: the client %s is disconnected: %s", self._client, error or "it was silent for too long")
            return None

    async def _answer(self, event: Event) -> None:
        if Describe.is_type(event.type):
            await self._send((await self._server.info()).event())
        elif Ping.is_type(event.type):
            ping = _read(Ping.from_event, event)
            await self._send(Pong(text=_text("text", ping.text)).event())
        elif Transcribe.is_type(event.type):
            asked = _read(Transcribe.from_event, event)
            self._asked = Transcribe(_text("name", asked.name), _text("language", asked.language))
        elif AudioStart.is_type(event.type):
            self._begin(_read(AudioStart.from_event, event))
        elif AudioChunk.is_type(event.type):
            self._hear(event.payload or b"")
        elif AudioStop.is_type(event.type):
            await self._transcribe()
        elif Synthesize.is_type(event.type):
            await self._speak(_read(Synthesize.from_event, event))

    def _begin(self, start: AudioStart) -> None:
        if (start.width, start.channels) != (2, 1):
            raise InvalidRequest(
                f"The audio has width {start.width} and {start.channels} channels: expected width 2 (16 bit) and 1 channel."
            )
        if not isinstance(start.rate, int) or not 8000 <= start.rate <= 192_000:
            raise InvalidRequest(f"The rate of the audio is {start.rate!r}: expected 8000 to 192000 Hz.")
        self._rate = start.rate
        self._samples.clear()

    def _hear(self, samples: bytes) -> None:
        if not self._rate:  # the audio was refused, and no new one has begun
            return
        self._samples += samples
        if len(self._samples) > self._server.most_audio:
            raise RequestTooLarge(
                f"The audio is too long: at most {self._server.most_audio} bytes are allowed (max_audio_bytes)."
            )

    async def _transcribe(self) -> None:
        if not self._rate or not self._samples:
            raise InvalidRequest("No audio came before audio-stop: send it first.")
        recording = self._server.recording(bytes(self._samples), self._rate, self._asked)
        self._samples.clear()
        await self._send((await self._server.transcribe(recording, self._record("transcribe"))).event())

    async def _speak(self, asked: Synthesize) -> None:
        voice = _text("voice", asked.voice.name) if asked.voice is not None else None
        text = Text(_text("text", asked.text) or "", voice if voice and voice != DEFAULT_VOICE else "")
        await self._server.speak(text, self._record("synthesize"), self._send)

    def _record(self, what: str) -> RequestRecord:
        record = RequestRecord(secrets.token_hex(8), "WYOMING", what, "wyoming", self._client)
        record.route = what
        return record


class _recorded:
    """Record the work for the log and the metrics, as for an HTTP request."""

    def __init__(self, record: RequestRecord, finished: Callable[[RequestRecord], None]) -> None:
        self._record, self._finished = record, finished

    def __enter__(self) -> None:
        self._token = current_record.set(self._record)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        current_record.reset(self._token)
        if error is None:
            self._record.status = 200
        elif isinstance(error, ServiceError):
            self._record.status = 500
        self._record.close()
        self._finished(self._record)


async def read_event(reader: asyncio.StreamReader) -> Event | None:
    """Read one event; None at the end. Raises ValueError or a subclass when it is no event or too long."""
    line = await reader.readline()
    if not line:
        return None
    head = json.loads(line)
    if not isinstance(head, dict):
        raise ValueError("its event is no JSON object")
    data, payload = head.get("data_length") or 0, head.get("payload_length") or 0
    if not (isinstance(data, int) and isinstance(payload, int)):
        raise ValueError("the lengths of its event are no numbers")
    if not (0 <= data <= MOST_DATA and 0 <= payload <= MOST_PAYLOAD):
        raise ValueError(f"an event of {data + payload} bytes is too long")
    content = dict(head.get("data") or {})
    if data:
        content |= json.loads(await reader.readexactly(data))
    return Event(str(head["type"]), content, await reader.readexactly(payload) if payload else None)


def _read(read: Callable[[Event], T], event: Event) -> T:
    """Parse an event. Raises InvalidRequest when it lacks a field that its type needs."""
    try:
        return read(event)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise InvalidRequest(f"The event {event.type[:40]} lacks a field, or has a wrong one: {error!r}") from None


def _text(name: str, value: object) -> str | None:
    """A field of an event that must be text, if it is there. Raises InvalidRequest."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} is {str(value)[:40]}: expected text.")
    return value.encode(errors="replace").decode()  # half a surrogate pair has no form in UTF-8


async def _send_sound(sound: Sound, send: Callable[[Event], Any]) -> None:
    for start in range(0, len(sound.samples), CHUNK):
        audio = sound.samples[start : start + CHUNK]
        await send(AudioChunk(audio=audio, rate=sound.rate, width=2, channels=1).event())
