"""Recognises audio formats, and converts them by ffmpeg, where ffmpeg is installed.

ffmpeg gets files only, and is told their format. Otherwise a playlist, or a container that names other files, could make it
read those.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from qwen_service.audio.sound import wav_bytes, wav_head
from qwen_service.errors import InvalidRequest, RequestTooLarge, RuntimeFailure, Unsupported
from qwen_service.process.child import ChildProcess
from qwen_service.process.uninterrupted import finish_even_if_cancelled

QUIET = ("-nostdin", "-v", "quiet", "-protocol_whitelist", "file,pipe")
TIMEOUT = 60.0  # seconds; an hour of speech takes a Raspberry Pi 5 a quarter of that
FIRST_OUTPUT = 1.0  # seconds to wait for the first converted bytes; a very short sound may give none
SILENCE = 0.05  # after so many seconds without more bytes everything fed counts as converted
RATE = 16_000  # Hz: what speech models are trained on
SPEECH = ("-vn", "-ac", "1", "-ar", str(RATE), "-f", "s16le")

# Format -> ffmpeg's demuxer. Playlists are left out: they would make ffmpeg open other files.
DEMUXERS = {"wav": "wav", "mp3": "mp3", "ogg": "ogg", "webm": "matroska", "m4a": "mov", "flac": "flac", "aac": "aac"}
# For each response_format of /v1/audio/speech: its media type, and ffmpeg's arguments.
MEDIA_TYPES = {
    "wav": "audio/wav",
    "pcm": "audio/pcm",
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
}
ENCODERS = {
    "mp3": ("-c:a", "libmp3lame", "-b:a", "64k", "-f", "mp3"),
    "opus": ("-c:a", "libopus", "-b:a", "32k", "-page_duration", "200000", "-f", "ogg"),
    "aac": ("-c:a", "aac", "-b:a", "64k", "-f", "adts"),
    "flac": ("-c:a", "flac", "-f", "flac"),
}


def is_installed() -> bool:
    return shutil.which("ffmpeg") is not None


async def to_speech_wav(data: bytes, kind: str, most: int) -> bytes:
    """Convert to WAV: 16 kHz, one channel, 16 bit. Raises Unsupported, InvalidRequest, or RequestTooLarge above `most` bytes."""
    if not is_installed():
        text = f"The file is {kind}; without ffmpeg, which is not installed, the service takes wav and mp3 only."
        raise Unsupported(text, param="file")
    with TemporaryDirectory(prefix="qwen-audio-") as folder:
        source = Path(folder) / "in"
        await finish_even_if_cancelled(asyncio.to_thread(source.write_bytes, data))
        arguments = ("-f", DEMUXERS[kind], "-i", str(source), *SPEECH, "-fs", str(most + 1024), "pipe:1")
        samples = await _run(arguments)
    if not samples:
        raise InvalidRequest(f"The audio cannot be read, although it begins like {kind}.", param="file")
    if len(samples) > most:
        raise RequestTooLarge(f"The audio is too long: at most {most // (2 * RATE)} seconds.", param="file")
    return wav_bytes(samples, RATE)


class Encoder:
    """Encodes samples to a compressed stream, for audio that is sent while it is made."""

    def __init__(self, child: ChildProcess, output: "asyncio.Queue[bytes]") -> None:
        self._child = child
        self._output = output

    async def feed(self, samples: bytes) -> bytes:
        """Encode samples. Returns the bytes that are ready; the last fraction of a second comes with the next call."""
        self._child.write(samples)
        parts: list[bytes] = []
        with suppress(TimeoutError):
            while True:
                async with asyncio.timeout(SILENCE if parts else FIRST_OUTPUT):
                    parts.append(await self._output.get())
        return b"".join(parts)

    def _rest(self) -> bytes:
        parts = []
        while not self._output.empty():
            parts.append(self._output.get_nowait())
        return b"".join(parts)

    async def finish(self) -> bytes:
        self._child.close_stdin()
        if not await self._child.ends_within(TIMEOUT) or self._child.returncode != 0:
            raise RuntimeFailure("ffmpeg could not convert the speech.")
        return self._rest()


@asynccontextmanager
async def encoder(kind: str, rate: int) -> AsyncIterator[Encoder]:
    output: asyncio.Queue[bytes] = asyncio.Queue()
    samples = ("-f", "s16le", "-ar", str(rate), "-ac", "1", "-probesize", "32", "-i", "pipe:0")
    argv = ["ffmpeg", *QUIET, *samples, *ENCODERS[kind], "-flush_packets", "1", "pipe:1"]
    child = await ChildProcess.start(argv, name="ffmpeg", on_output=output.put_nowait, stdin=True)
    try:
        yield Encoder(child, output)
    finally:
        await child.stop(grace=1.0)


async def _run(arguments: Sequence[str]) -> bytes:
    """Run ffmpeg. Returns its output; empty when it failed."""
    parts: list[bytes] = []
    child = await ChildProcess.start(["ffmpeg", *QUIET, *arguments], name="ffmpeg", on_output=parts.append)
    try:
        if not await child.ends_within(TIMEOUT) or child.returncode != 0:
            return b""
    finally:
        await child.stop(grace=1.0)
    return b"".join(parts)


def sniff(data: bytes) -> str:
    """Recognise an audio format by its first bytes, because the file name that a client gives proves nothing.

    Returns a key of DEMUXERS; "" when the format is not recognised.
    """
    head = data[:16]
    if wav_head(data) is not None:
        return "wav"
    for name, magic in (("ogg", b"OggS"), ("flac", b"fLaC"), ("webm", b"\x1a\x45\xdf\xa3"), ("mp3", b"ID3")):
        if head.startswith(magic):
            return name
    if head[4:8] == b"ftyp":
        return "m4a"
    if len(head) >= 2 and head[0] == 0xFF:
        if head[1] & 0xF6 == 0xF0:  # ADTS: twelve bits of ones, layer 0
            return "aac"
        if head[1] & 0xE0 == 0xE0 and head[1] & 0x06:  # MPEG: eleven bits of ones, a layer
            return "mp3"
    return ""
