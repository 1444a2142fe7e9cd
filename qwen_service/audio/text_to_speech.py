"""Text to speech: speaks a long text sentence by sentence and yields the samples of each as soon as it has them."""

import asyncio
import re
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass

from qwen_service.audio.engine import SpeechEngine
from qwen_service.audio.program import Answer, SpeechProgram
from qwen_service.audio.sound import Sound, read_wav
from qwen_service.audio.speech_to_text import reason_of
from qwen_service.errors import InvalidRequest, NotOffered, ProtocolError, RequestTooLarge
from qwen_service.request_record import recording
from qwen_service.settings import Settings

MODEL = "tts-1"  # the only model of the vendor's program
FIRST = 40  # characters after which the first piece ends at the next sentence: the listener waits for it
ENOUGH = 160  # the same for the later ones: longer pieces have a better melody
LONGEST = 400  # no piece is longer; Kokoro takes about 510 phonemes at once

_END = re.compile(r"""(?<=[.!?…])["'”’»)\]]*\s+(?=\S)|(?<=[。！？；])\s*|\n\s*\n\s*|(?<=[:;])\s+""")
# A full stop after one of these does not end a sentence: a single capital, a number, an abbreviation.
_NO_END = re.compile(
    r"(?:\b[A-Z]|^\s*\d+|\b(?:Dr|Mr|Mrs|Ms|Prof|St|Nr|No|vs|etc|ca|bzw|usw|e\.g|i\.e|z\.B|d\.h|u\.a))\.$", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Text:
    text: str
    voice: str = ""
    speed: float | None = None
    model: str = ""


class TextToSpeech:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.engine: SpeechEngine | None = None
        if settings.text_to_speech:
            program = SpeechProgram("text_to_speech", settings.text_to_speech, settings.tts_server, has_key=False)
            self.engine = SpeechEngine(program, settings)

    def pieces(self, text: str) -> list[str]:
        """The sentences that will be spoken one by one. Raises NotOffered, InvalidRequest or RequestTooLarge."""
        if self.engine is None:
            raise NotOffered(
                "This service has no voice: set text_to_speech to the folder of a speech model, or to a URL."
            )
        most = self._settings.max_speech_characters
        if len(text) > most:
            raise RequestTooLarge(
                f"The input has {len(text)} characters; at most {most} are allowed (max_speech_characters).",
                param="input",
            )
        found = pieces(text)
        if not found:
            raise InvalidRequest("The input has no text to speak.", param="input")
        return found

    async def speak(self, given: Text) -> AsyncGenerator[Sound, None]:
        """Yield the sound of each piece, all at the sample rate of the first."""
        rate = 0
        with recording() as record:
            for part in self.pieces(given.text):
                record.speech = "text_to_speech"
                sound = await asyncio.to_thread(_sound, await self._answer(given, part), rate)
                rate = sound.rate
                record.speech_seconds += sound.seconds
                record.first_sound()
                yield sound

    async def _answer(self, given: Text, part: str) -> Answer:
        assert self.engine is not None, "pieces() has seen to that"
        return await self.engine.ask(lambda server: server.post_json("/v1/audio/speech", self._body(given, part)))

    def _body(self, given: Text, part: str) -> dict[str, object]:
        assert self.engine is not None
        body: dict[str, object] = {"model": MODEL, "input": part, "response_format": "wav"}
        if self.engine.program.is_joined:
            body["model"] = self._settings.text_to_speech_model or given.model or MODEL
        if voice := given.voice or self._settings.text_to_speech_voice:
            body["voice"] = voice
        if given.speed is not None:
            body["speed"] = given.speed
        return body


def _sound(answer: Answer, rate: int) -> Sound:
    if answer.status in (400, 404, 413, 422):
        raise InvalidRequest(f"The speech program refused the text: {reason_of(answer)}", param="input")
    if answer.status != 200:
        raise ProtocolError(f"The speech program answered HTTP {answer.status}: {reason_of(answer)}")
    sound = read_wav(answer.content)
    return sound.at_rate(rate) if rate else sound


def pieces(text: str) -> list[str]:
    """Cut a long text into pieces that are spoken one by one, so that the first sound does not wait for the last sentence.

    The pieces are in order, none empty, none longer than LONGEST; only the white space between them is dropped.
    """
    result: list[str] = []
    held = ""
    for sentence in _sentences(text):
        if held and len(held) + 1 + len(sentence) > LONGEST:
            result.append(held)
            held = ""
        held = f"{held} {sentence}".strip()
        if len(held) >= (ENOUGH if result else FIRST):
            result.append(held)
            held = ""
    return [*result, held] if held else result


def _sentences(text: str) -> Iterator[str]:
    start = 0
    for end in _END.finditer(text):
        if not _NO_END.search(text, max(start, end.start() - 12), end.start()):
            yield from _bounded(text[start : end.start()] + end.group().rstrip())
            start = end.end()
    yield from _bounded(text[start:])


def _bounded(sentence: str) -> Iterator[str]:
    """Cut a sentence into pieces of at most LONGEST characters, at a comma or a space where possible."""
    rest = " ".join(sentence.split())
    while len(rest) > LONGEST:
        window = rest[:LONGEST]
        cut = max(window.rfind(mark) + 1 for mark in (", ", "，", "、"))
        cut = cut if cut > LONGEST // 2 else window.rfind(" ")
        cut = cut if cut > 0 else LONGEST
        yield rest[:cut].strip()
        rest = rest[cut:].strip()
    if rest:
        yield rest
