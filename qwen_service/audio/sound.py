"""Sound as 16 bit samples of one channel: read from the usual kinds of WAV, written as WAV or as OpenAI's pcm.

IO-free. Speech programs write float or 16 bit WAV; OpenAI's `pcm` is 16 bit, little-endian, 24 000 Hz.
"""

import struct
import sys
from array import array
from dataclasses import dataclass
from itertools import chain

from qwen_service.errors import ProtocolError

PCM_RATE = 24_000  # Hz, of OpenAI's pcm
UNKNOWN_SIZE = 0xFFFFFFFF  # the size in the header of a streamed WAV
INTEGER, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE  # WAVE_FORMAT_*


@dataclass(frozen=True, slots=True)
class Sound:
    samples: bytes  # 16 bit, little-endian, one channel
    rate: int  # Hz

    @property
    def seconds(self) -> float:
        return len(self.samples) / 2 / self.rate

    def at_rate(self, rate: int) -> "Sound":
        """Resample by linear interpolation, which is good enough for speech when the rates are close."""
        if rate == self.rate or not self.samples:
            return Sound(self.samples, rate)
        old = _array("h", self.samples)
        step = self.rate / rate
        last = len(old) - 1
        new = array("h", bytes(2 * round(len(old) / step)))
        for index in range(len(new)):
            place = index * step
            left = min(int(place), last)
            new[index] = round(old[left] + (old[min(left + 1, last)] - old[left]) * (place - left))
        return Sound(_bytes(new), rate)


@dataclass(frozen=True, slots=True)
class WavHead:
    """The header of a WAV: format, and position and size of its samples."""

    kind: int
    channels: int
    rate: int
    bits: int
    start: int
    size: int

    @property
    def seconds(self) -> float:
        return self.size / (self.channels * self.bits // 8 * self.rate)


def wav_head(data: bytes) -> WavHead | None:
    """Read the header; None when the bytes are no WAV or a broken one."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return None
    form: tuple[int, int, int, int] | None = None
    place = 12
    while place + 8 <= len(data):
        name, size = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], "little")
        place += 8
        if name == b"fmt " and len(data) >= place + 16:
            kind, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", data, place)
            if kind == EXTENSIBLE and size >= 26 and len(data) >= place + 26:
                kind = struct.unpack_from("<H", data, place + 24)[0]
            form = (kind, channels, rate, bits)
        if name == b"data":
            break
        place += size + size % 2
    else:
        return None
    if form is None or not (0 < form[1] <= 32 and 0 < form[2] <= 768_000 and form[3] in (8, 16, 24, 32, 64)):
        return None
    return WavHead(*form, start=place, size=min(size, len(data) - place))  # a streamed WAV claims an unknown size


def with_true_size(data: bytes) -> bytes:
    """Write the true size into the header: a streamed WAV has a wrong one, which programs believe."""
    head = wav_head(data)
    if head is None or int.from_bytes(data[head.start - 4 : head.start], "little") == head.size:
        return data
    end = head.start + head.size
    size, whole = head.size.to_bytes(4, "little"), (end - 8).to_bytes(4, "little")
    return data[:4] + whole + data[8 : head.start - 4] + size + data[head.start : end]


def read_wav(data: bytes) -> Sound:
    """Read a WAV. Raises ProtocolError when the bytes are no WAV of a known kind."""
    head = wav_head(data)
    if head is None:
        raise ProtocolError(f"The speech program sent no WAV: {data[:40]!r}")
    width = head.bits // 8
    whole = head.size - head.size % (width * head.channels)
    raw = data[head.start : head.start + whole]
    if (head.kind, head.bits, head.channels) == (INTEGER, 16, 1):
        return Sound(raw, head.rate)
    samples = _integers(raw, head)
    if head.channels > 1:
        groups = (samples[channel :: head.channels] for channel in range(head.channels))
        samples = array("h", (sum(group) // head.channels for group in zip(*groups, strict=True)))
    return Sound(_bytes(samples), head.rate)


def wav_bytes(samples: bytes, rate: int, size: int | None = None) -> bytes:
    """Make a WAV of these samples. `size`: bytes of samples in all, when more follow."""
    size = len(samples) if size is None else size
    whole = UNKNOWN_SIZE if size == UNKNOWN_SIZE else size + 36
    form = struct.pack("<HHIIHH", INTEGER, 1, rate, rate * 2, 2, 16)
    head = b"RIFF" + whole.to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little") + form
    return head + b"data" + size.to_bytes(4, "little") + samples


def _integers(raw: bytes, head: WavHead) -> "array[int]":
    if head.kind == FLOAT and head.bits in (32, 64):
        floats = _array("f" if head.bits == 32 else "d", raw)
        # NaN becomes silence: every comparison with it is false.
        return array("h", (int(32767 * max(-1.0, min(1.0, value))) if value == value else 0 for value in floats))  # noqa: PLR0124
    if head.kind != INTEGER or head.bits == 64:
        raise ProtocolError(f"The speech program sent WAV of kind {head.kind} with {head.bits} bits, which is unknown.")
    if head.bits == 8:
        return array("h", ((value - 128) << 8 for value in raw))
    if head.bits == 16:
        return _array("h", raw)
    width = head.bits // 8  # the two highest bytes of each sample are enough
    high = bytes(chain.from_iterable(zip(raw[width - 2 :: width], raw[width - 1 :: width], strict=True)))
    return _array("h", high)


def _array(code: str, raw: bytes) -> "array[int]":
    samples: array[int] = array(code, raw)
    if sys.byteorder == "big":
        samples.byteswap()
    return samples


def _bytes(samples: "array[int]") -> bytes:
    if sys.byteorder == "big":
        samples = array("h", samples)
        samples.byteswap()
    return samples.tobytes()
