"""OpenAI's audio routes: transcriptions, translations, speech."""

import base64
import logging
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from typing import Any

from fastapi import APIRouter
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Send

from qwen_service.api.openai.errors import error_chunk
from qwen_service.api.openai.wire import SpeechBody, TranscriptionFields, VoiceId, form_fields
from qwen_service.api.openai.wire_reply import ERRORS
from qwen_service.api.reply import json_response, sse
from qwen_service.api.streaming import LateReply, WholeReply
from qwen_service.audio import ffmpeg
from qwen_service.audio.ffmpeg import ENCODERS, MEDIA_TYPES
from qwen_service.audio.sound import PCM_RATE, UNKNOWN_SIZE, Sound, wav_bytes
from qwen_service.audio.speech_to_text import SUBTITLES, Heard, Recording, segments_of, subtitles
from qwen_service.audio.text_to_speech import Text, TextToSpeech
from qwen_service.errors import InvalidRequest, ServiceError, Unsupported
from qwen_service.service import Service

log = logging.getLogger(__name__)

FORM_FIELDS = 32
FIELD_BYTES = 65_536
EVENTS = "text/event-stream; charset=utf-8"
LISTS = (
    "timestamp_granularities",
    "include",
    "keywords",
    "languages",
    "known_speaker_names",
    "known_speaker_references",
)
IGNORED = ("chunking_strategy", *(f"{name}[]" for name in LISTS))


def audio_router(service: Service) -> APIRouter:
    router = APIRouter(tags=["OpenAI"], responses=ERRORS)

    @router.post("/v1/audio/transcriptions", summary="Write down what a recording says", openapi_extra=_FORM)
    async def transcriptions(request: Request) -> Response:
        return await written(request, translated=False)

    @router.post("/v1/audio/translations", summary="The same, in English", openapi_extra=_FORM)
    async def translations(request: Request) -> Response:
        return await written(request, translated=True)

    @router.post("/v1/audio/speech", summary="Speak a text")
    async def speech(body: SpeechBody) -> Response:
        return _spoken(service.voice, body)

    async def written(request: Request, *, translated: bool) -> Response:
        async with request.form(max_files=1, max_fields=FORM_FIELDS, max_part_size=FIELD_BYTES) as form:
            fields, given = _fields(form), await _recording(form)
        ignored = (*service.ears.ignored(given), *(name for name in IGNORED if name in form))
        headers = {"X-Ignored-Parameters": ", ".join(ignored)} if ignored else {}

        async def whole() -> Response:
            heard = await (service.ears.translate(given) if translated else service.ears.transcribe(given))
            return _transcript(heard, fields, headers, task="translate" if translated else "transcribe")

        return WholeReply(whole)

    return router


def _fields(form: FormData) -> TranscriptionFields:
    texts = {name: value for name, value in form.items() if isinstance(value, str) and value != ""}
    fields = form_fields(texts)
    if fields.response_format == "diarized_json":
        text = "response_format diarized_json is not supported: the speech model here does not tell speakers apart."
        raise Unsupported(text, param="response_format")
    return fields


async def _recording(form: FormData) -> Recording:
    fields, file = _fields(form), form.get("file")
    if not isinstance(file, UploadFile):
        raise InvalidRequest("The form has no file: send multipart/form-data with a part named `file`.", param="file")
    return Recording(
        content=await file.read(),
        model=fields.model,
        language=fields.language,
        prompt=fields.prompt,
        temperature=fields.temperature,
        detailed=fields.response_format in ("verbose_json", *SUBTITLES),
    )


def _transcript(heard: Heard, fields: TranscriptionFields, headers: dict[str, str], *, task: str) -> Response:
    if fields.response_format == "text":
        return PlainTextResponse(heard.text + "\n", headers=headers)
    if (media_type := SUBTITLES.get(fields.response_format)) is not None:
        text = subtitles(segments_of(heard.details), fields.response_format)
        return Response(text, headers=headers, media_type=f"{media_type}; charset=utf-8")
    if fields.stream:
        delta = sse({"type": "transcript.text.delta", "delta": heard.text})
        done = sse({"type": "transcript.text.done", "text": heard.text})
        return Response(delta + done, headers=headers, media_type=EVENTS)
    content: dict[str, Any] = {"text": heard.text}
    if fields.response_format == "verbose_json":
        known = {"task": task, "duration": heard.seconds or 0.0, "language": heard.language, "segments": []}
        content = {**known, **heard.details, **content}
    return json_response(content, headers=headers)


def _spoken(voice: TextToSpeech, body: SpeechBody) -> Response:
    # OpenAI's default is mp3, which needs ffmpeg.
    kind = body.response_format or ("mp3" if ffmpeg.is_installed() else "wav")
    if kind in ENCODERS and not ffmpeg.is_installed():
        text = f"response_format {kind} needs ffmpeg, which this machine does not have: ask for wav or pcm."
        raise Unsupported(text, param="response_format")
    wanted = body.voice.id if isinstance(body.voice, VoiceId) else body.voice or ""
    count = len(voice.pieces(body.input))
    sounds = voice.speak(Text(body.input, wanted, body.speed, body.model or ""))
    headers = {"X-Ignored-Parameters": "instructions"} if body.instructions else {}
    encoded = _encoded(sounds, kind, whole=count == 1)
    if body.stream_format == "sse":
        return AudioReply(_events(encoded), EVENTS, headers)
    return AudioReply(encoded, MEDIA_TYPES[kind], headers)


async def _events(chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """The sound in OpenAI's events. An error before the first one is raised, a later one is told in the stream."""
    begun = False
    async with aclosing(chunks):
        try:
            async for chunk in chunks:
                if chunk:
                    yield sse({"type": "speech.audio.delta", "audio": base64.b64encode(chunk).decode()})
                    begun = True
        except ServiceError as error:
            if not begun:
                raise
            log.error("The speech of a running reply broke off: %s", error.message)
            yield error_chunk(error)
            return
    # Clients want these three; the programs count no tokens.
    usage = dict.fromkeys(("input_tokens", "output_tokens", "total_tokens"), 0)
    yield sse({"type": "speech.audio.done", "usage": usage})


async def _encoded(sounds: AsyncGenerator[Sound, None], kind: str, *, whole: bool) -> AsyncGenerator[bytes, None]:
    """`whole`: it comes in one piece, so that even a WAV knows its size."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(aclosing(sounds))
        encoder: ffmpeg.Encoder | None = None
        begun = False
        async for sound in sounds:
            if kind in ENCODERS:
                if encoder is None:
                    encoder = await stack.enter_async_context(ffmpeg.encoder(kind, sound.rate))
                yield await encoder.feed(sound.samples)
            elif kind == "pcm":
                yield sound.at_rate(PCM_RATE).samples
            elif not begun:
                yield wav_bytes(sound.samples, sound.rate, None if whole else UNKNOWN_SIZE)
            else:
                yield sound.samples
            begun = True
        if encoder is not None:
            yield await encoder.finish()


class AudioReply(LateReply):
    """Sends the status with the first sound, so that an earlier error has its own status. A later one cuts the connection."""

    def __init__(self, chunks: AsyncGenerator[bytes, None], media_type: str, headers: dict[str, str]) -> None:
        super().__init__(media_type, lambda: headers)
        self._chunks = chunks

    async def break_off(self, error: Exception, send: Send) -> None:  # noqa: ARG002  # see LateReply
        if not isinstance(error, ServiceError):
            raise error
        # The server closes the connection of an answer without an end, so that no client takes it for whole.
        log.error("The speech of a running reply broke off: %s", error.message)

    async def stream(self, send: Send) -> None:
        async with aclosing(self._chunks) as chunks:
            async for chunk in chunks:
                if chunk:
                    await self.send_chunk(send, chunk)
        if not self.begun:
            await self.begin(send)
        await self.end(send)


_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        **TranscriptionFields.model_json_schema()["properties"],
                    },
                }
            }
        },
    }
}
