"""Samples in the forms in which speech programs send them."""

import io
import struct
import wave
from array import array

import pytest

from qwen_service.audio.sound import UNKNOWN_SIZE, Sound, read_wav, wav_bytes, wav_head, with_true_size
from qwen_service.errors import ProtocolError

RAMP = array("h", [0, 1000, -1000, 32767, -32768, 5])


def written(data: bytes, *, kind: int = 1, channels: int = 1, rate: int = 24_000, bits: int = 16) -> bytes:
    form = struct.pack("<HHIIHH", kind, channels, rate, rate * channels * bits // 8, channels * bits // 8, bits)
    extra = b"LIST" + struct.pack("<I", 3) + b"abc\0"  # an odd chunk is padded
    return (
        b"RIFF\0\0\0\0WAVEfmt " + struct.pack("<I", 16) + form + extra + b"data" + struct.pack("<I", len(data)) + data
    )


def test_what_is_written_is_what_the_wave_module_reads() -> None:
    with wave.open(io.BytesIO(wav_bytes(RAMP.tobytes(), 24_000))) as sound:
        assert (sound.getnchannels(), sound.getsampwidth(), sound.getframerate()) == (1, 2, 24_000)
        assert sound.readframes(100) == RAMP.tobytes()


def test_sixteen_bits_pass_as_they_are() -> None:
    assert read_wav(written(RAMP.tobytes())) == Sound(RAMP.tobytes(), 24_000)


def test_floats_become_integers_and_what_is_too_loud_is_cut() -> None:
    floats = array("f", [0.0, 0.5, -1.0, 2.0, -3.0, float("nan")])
    sound = read_wav(written(floats.tobytes(), kind=3, bits=32))
    assert array("h", sound.samples).tolist() == [0, 16383, -32767, 32767, -32767, 0]


@pytest.mark.parametrize(("bits", "one"), [(24, b"\0\x34\x12"), (32, b"\0\0\x34\x12")])
def test_of_wider_integers_the_two_highest_bytes_count(bits: int, one: bytes) -> None:
    assert array("h", read_wav(written(one * 3, bits=bits)).samples).tolist() == [0x1234] * 3


def test_eight_bits_are_unsigned() -> None:
    assert array("h", read_wav(written(bytes([128, 129, 0]), bits=8)).samples).tolist() == [0, 256, -32768]


def test_two_channels_become_one() -> None:
    stereo = array("h", [100, 300, -100, -300])
    assert array("h", read_wav(written(stereo.tobytes(), channels=2)).samples).tolist() == [200, -200]


def test_a_stream_that_does_not_know_its_size_is_read_to_its_end() -> None:
    assert read_wav(wav_bytes(RAMP.tobytes(), 16_000, UNKNOWN_SIZE)) == Sound(RAMP.tobytes(), 16_000)


def test_a_header_can_be_told_the_true_size() -> None:
    streamed = wav_bytes(RAMP.tobytes(), 16_000, UNKNOWN_SIZE)
    assert with_true_size(streamed) == wav_bytes(RAMP.tobytes(), 16_000)
    assert with_true_size(wav_bytes(RAMP.tobytes(), 16_000)) == wav_bytes(RAMP.tobytes(), 16_000)


def test_half_a_sample_at_the_end_is_dropped() -> None:
    assert read_wav(written(RAMP.tobytes() + b"\1")).samples == RAMP.tobytes()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html>",
        b"RIFF\0\0\0\0WAVE",
        written(b"", kind=7),
        written(b"", kind=3, bits=16),
        written(b"", channels=0),
        written(b"", rate=0),
        b"RIFF\0\0\0\0WAVEdata\4\0\0\0abcd",
    ],
)
def test_what_is_no_sound_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_wav(data)


def test_every_beginning_of_a_wav_is_read_or_refused() -> None:
    whole = written(RAMP.tobytes())
    for end in range(len(whole)):
        head = wav_head(whole[:end])
        assert head is None or head.start + head.size <= end


def test_another_rate_keeps_the_length_and_the_shape() -> None:
    slow = Sound(array("h", range(0, 16_000, 2)).tobytes(), 8_000)
    fast = slow.at_rate(24_000)
    assert (fast.rate, fast.seconds) == (24_000, 1.0)
    assert array("h", fast.samples)[:7].tolist() == [0, 1, 1, 2, 3, 3, 4]
    assert fast.at_rate(8_000) == slow
    assert slow.at_rate(8_000) is not None
    assert Sound(b"", 8_000).at_rate(24_000) == Sound(b"", 24_000)
