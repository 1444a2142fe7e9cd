"""What a file is, by its first bytes; made by ffmpeg where it is installed."""

import shutil
import subprocess
from pathlib import Path

import pytest

from qwen_service.audio.ffmpeg import sniff
from qwen_service.audio.sound import wav_bytes

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")


@needs_ffmpeg
@pytest.mark.parametrize(
    ("suffix", "kind"),
    [
        ("wav", "wav"),
        ("mp3", "mp3"),
        ("ogg", "ogg"),
        ("webm", "webm"),
        ("m4a", "m4a"),
        ("flac", "flac"),
        ("aac", "aac"),
    ],
)
def test_a_file_is_known_by_its_first_bytes(suffix: str, kind: str, tmp_path: Path) -> None:
    made = tmp_path / f"tone.{suffix}"
    tone = ["-f", "lavfi", "-i", "sine=frequency=440:duration=0.3"]
    subprocess.run(["ffmpeg", "-v", "error", *tone, str(made)], check=True)
    assert sniff(made.read_bytes()) == kind


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"#EXTM3U\nfile:///etc/passwd", b"RIFF\0\0\0\0AVI ", b"%PDF-1.7", b"GIF89a"]
)
def test_other_files_are_not(data: bytes) -> None:
    assert sniff(data) == ""


def test_a_wav_is_known_without_ffmpeg() -> None:
    assert sniff(wav_bytes(b"\0\0", 16_000)) == "wav"
