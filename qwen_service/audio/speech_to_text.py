"""Speech to text: chooses the model and the format, reads the program's answer, and makes subtitles of it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from qwen_service.audio import ffmpeg
from qwen_service.audio.engine import SpeechEngine
from qwen_service.audio.program import Answer, File, SpeechProgram
from qwen_service.audio.sound import wav_head, with_true_size
from qwen_service.errors import InvalidRequest, NotOffered, ProtocolError, RequestTooLarge, UnknownModel, Unsupported
from qwen_service.request_record import RequestRecord, recording
from qwen_service.settings import Settings

TAKEN = ("wav", "mp3")  # formats that the vendor's program reads
# OpenAI's model names, which clients send by default: they mean the model that is there.
ANY_MODEL = ("", "whisper-1", "gpt-4o-transcribe", "gpt-4o-mini-transcribe", "default")
SUBTITLES = {"srt": "application/x-subrip", "vtt": "text/vtt"}


@dataclass(frozen=True, slots=True)
class Heard:
    """The text that was heard. `details`: the whole answer of the program, when verbose_json was asked for."""

    text: str
    seconds: float | None = None
    language: str = ""
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Recording:
    content: bytes
    model: str = ""
    language: str = ""
    prompt: str = ""
    temperature: float | None = None
    detailed: bool = False


class SpeechToText:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.engine: SpeechEngine | None = None
        if settings.speech_to_text:
            program = SpeechProgram("speech_to_text", settings.speech_to_text, settings.asr_server, has_key=True)
            self.engine = SpeechEngine(program, settings)

    async def transcribe(self, given: Recording) -> Heard:
        return await self._hear("/v1/audio/transcriptions", given)

    async def translate(self, given: Recording) -> Heard:
        """Translate into English. Raises Unsupported when the program cannot."""
        if not self._offered().program.is_joined:
            raise Unsupported("The speech model here cannot translate: it writes down what it hears.", param="model")
        return await self._hear("/v1/audio/translations", given)

    def ignored(self, given: Recording) -> tuple[str, ...]:
        """The names of the parameters that were given but are not honoured: the vendor's program has none of them."""
        if self._offered().program.is_joined:
            return ()
        return tuple(name for name in ("prompt", "temperature") if getattr(given, name) not in ("", None))

    async def models(self) -> tuple[str, ...]:
        return await self._offered().models()

    def _offered(self) -> SpeechEngine:
        if self.engine is None:
            raise NotOffered(
                "This service has no ears: set speech_to_text to the folder of a speech model, or to a URL."
            )
        return self.engine

    async def _hear(self, path: str, given: Recording) -> Heard:
        engine = self._offered()
        with recording() as record:
            record.speech = "speech_to_text"
            return await self._ask(engine, path, given, record)

    async def _ask(self, engine: SpeechEngine, path: str, given: Recording, record: RequestRecord) -> Heard:
        content, kind = await self._taken(given.content)
        head = wav_head(content)
        seconds = head.seconds if head is not None else None
        record.speech_seconds = seconds or 0.0
        fields = {"model": await self._model(engine, given.model)}
        fields |= {"language": given.language} if given.language else {}
        if engine.program.is_joined:
            fields |= {"prompt": given.prompt} if given.prompt else {}
            fields |= {"temperature": str(given.temperature)} if given.temperature is not None else {}
        fields["response_format"] = "verbose_json" if given.detailed else "json"
        file = File(f"audio.{kind}", content, "audio/wav" if kind == "wav" else "audio/mpeg")
        answer = await engine.ask(lambda server: server.post_form(path, fields, file))
        return _heard(answer, seconds, given.language)

    async def _taken(self, content: bytes) -> tuple[bytes, str]:
        """Convert the audio to a format that the program reads. Returns the file and its name."""
        most = self._settings.max_audio_bytes
        if len(content) > most:
            raise RequestTooLarge(
                f"The audio has {len(content)} bytes; at most {most} are allowed (max_audio_bytes).", param="file"
            )
        if not content:
            raise InvalidRequest("The file is empty.", param="file")
        kind = ffmpeg.sniff(content)
        if not kind:
            known = "wav and mp3" + (", ogg, webm, m4a, flac and aac" if ffmpeg.is_installed() else "")
            raise InvalidRequest(f"The file is no audio that the service knows: it takes {known}.", param="file")
        if kind in TAKEN:
            return with_true_size(content), kind
        return await ffmpeg.to_speech_wav(content, kind, most), "wav"

    async def _model(self, engine: SpeechEngine, wanted: str) -> str:
        """The program's name of the model."""
        default = self._settings.speech_to_text_model
        if engine.program.is_joined:  # its list may be incomplete, so the name is passed on
            return default or wanted or ANY_MODEL[1] if wanted in ANY_MODEL else wanted
        models = await engine.models()
        if wanted in models:
            return wanted
        if wanted in ANY_MODEL or self._settings.unknown_model == "default":
            return default or (models[0] if models else wanted)
        raise UnknownModel(wanted, f"For speech there is {', '.join(models)}.")


def _heard(answer: Answer, seconds: float | None, language: str) -> Heard:
    _refuse(answer)
    try:
        said = orjson.loads(answer.content)
        text = said["text"]
    except (orjson.JSONDecodeError, LookupError, TypeError) as error:
        raise ProtocolError(f"The speech program's answer is no transcript: {answer.text[:200]}") from error
    if not isinstance(text, str):
        raise ProtocolError(f"The speech program's answer has no text: {answer.text[:200]}")
    return Heard(text.strip(), said.get("duration", seconds), said.get("language") or language, said)


def _refuse(answer: Answer) -> None:
    if answer.status == 200:
        return
    reason = reason_of(answer)
    if answer.status in (404, 405, 501):
        raise Unsupported(f"The speech program does not offer this: {reason}")
    if answer.status == 413:
        raise RequestTooLarge(f"The speech program refused the audio: {reason}", param="file")
    if answer.status in (400, 415, 422):
        raise InvalidRequest(f"The speech program refused the audio: {reason}", param="file")
    raise ProtocolError(f"The speech program answered HTTP {answer.status}: {reason}")


def reason_of(answer: Answer) -> str:
    """The text of the program's error, in any of the usual shapes."""
    try:
        error = orjson.loads(answer.content)["error"]
        return str(error["message"] if isinstance(error, dict) else error)[:300]
    except (orjson.JSONDecodeError, LookupError, TypeError):
        return answer.text[:300].strip() or "no reason was given"


@dataclass(frozen=True, slots=True)
class Segment:
    """`start` and `end` in seconds."""

    start: float
    end: float
    text: str


def segments_of(details: Mapping[str, Any]) -> tuple[Segment, ...]:
    """Raises Unsupported where the program gave a text without times."""
    found = details.get("segments")
    if not found and str(details.get("text") or "").strip():
        raise Unsupported(
            "The speech program here gives no times, of which subtitles are made: ask for json, text or verbose_json.",
            param="response_format",
        )
    try:
        return tuple(Segment(float(one["start"]), float(one["end"]), str(one["text"])) for one in found or ())
    except (LookupError, TypeError, ValueError) as error:
        raise ProtocolError(f"The speech program's segments have no times: {str(found)[:200]}") from error


def subtitles(segments: Iterable[Segment], kind: str) -> str:
    """Write the segments as subtitles. `kind`: srt (SubRip) or vtt (WebVTT)."""
    cues = "".join(_cue(number, segment, kind) for number, segment in enumerate(segments, 1))
    return f"WEBVTT\n\n{cues}" if kind == "vtt" else cues


def _cue(number: int, segment: Segment, kind: str) -> str:
    # An empty line ends a cue, and an arrow is what the line of its times is known by.
    text = " ".join(segment.text.split()).replace("-->", "->")
    mark, point = (f"{number}\n", ",") if kind == "srt" else ("", ".")
    if kind == "vtt":
        text = text.replace("&", "&amp;").replace("<", "&lt;")
    return f"{mark}{_clock_time(segment.start, point)} --> {_clock_time(segment.end, point)}\n{text}\n\n"


def _clock_time(seconds: float, point: str) -> str:
    whole, thousandths = divmod(round(max(seconds, 0) * 1000), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{point}{thousandths:03}"
