"""Pictures as clients send them: type and size by their first bytes, nothing fetched."""

import base64
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from qwen_service.api.pictures import from_base64, from_url
from qwen_service.errors import InvalidRequest, RequestError, Unsupported

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")


def png(width: int = 40, height: int = 30) -> bytes:
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", width, height) + b"\x08\x02\0\0\0"


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


@needs_ffmpeg
@pytest.mark.parametrize(
    ("suffix", "media_type"),
    [("png", "image/png"), ("jpg", "image/jpeg"), ("gif", "image/gif"), ("webp", "image/webp")],
)
def test_real_pictures_tell_their_type_and_size(suffix: str, media_type: str, tmp_path: Path) -> None:
    path = tmp_path / f"picture.{suffix}"
    source = ["-f", "lavfi", "-i", "testsrc=size=322x242", "-frames:v", "1"]
    subprocess.run(["ffmpeg", "-v", "error", *source, str(path)], check=True)
    image = from_base64(encoded(path.read_bytes()), "images[0]")
    assert (image.media_type, image.width, image.height) == (media_type, 322, 242)
    assert image.data == path.read_bytes()


@pytest.mark.parametrize(
    ("form", "body"),
    [
        (b"VP8X", bytes(4) + (1999).to_bytes(3, "little") + (1).to_bytes(3, "little")),
        (b"VP8L", b"\x2f" + (1999 | 1 << 14).to_bytes(4, "little") + bytes(5)),
        (b"VP8 ", bytes(3) + b"\x9d\x01\x2a" + struct.pack("<HH", 2000, 2)),
    ],
)
def test_all_three_forms_of_webp(form: bytes, body: bytes) -> None:
    data = b"RIFF\0\0\0\0WEBP" + form + bytes(4) + body
    image = from_base64(encoded(data), "x")
    assert (image.width, image.height) == (2000, 2)


def test_a_data_uri_is_taken_whatever_type_it_claims() -> None:
    for head in (
        "data:image/png;base64,",
        "data:image/jpeg;base64,",
        "DATA:image/svg+xml;charset=utf-8;base64,",
        "data:;base64,",
    ):
        assert from_url(head + encoded(png()), "x").media_type == "image/png"
    assert from_url(encoded(png()), "x") == from_base64(encoded(png()), "x")


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:1/x.png", "https://host/x", "file:///etc/passwd", "FTP://host/x", "gopher:x", "javascript:1"],
)
def test_no_url_is_fetched_and_the_error_says_why(url: str) -> None:
    with pytest.raises(Unsupported, match="fetches no URL") as raised:
        from_url(url, "messages[0].content[1].image_url")
    assert raised.value.param == "messages[0].content[1].image_url"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", Unsupported),
        ("no base64!", InvalidRequest),
        ("data:image/png,raw", InvalidRequest),
        (encoded(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), Unsupported),
        (encoded(b"%PDF-1.7"), Unsupported),
        (encoded(png()[:20]), InvalidRequest),
        (encoded(png(0, 5)), InvalidRequest),
        (encoded(b"\xff\xd8\xff\xe0"), InvalidRequest),
        (encoded(b"\xff\xd8\xff\xe0\0\x02\xff\xda" + bytes(50)), InvalidRequest),
        (encoded(b"GIF89a\1"), InvalidRequest),
        (encoded(b"RIFF\0\0\0\0WEBPVP8X"), InvalidRequest),
    ],
)
def test_what_is_no_whole_picture_is_refused(text: str, error: type[RequestError]) -> None:
    with pytest.raises(error):
        from_url(text, "x")


@needs_ffmpeg
def test_every_beginning_of_a_jpeg_is_a_picture_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    source = ["-f", "lavfi", "-i", "testsrc=size=64x48", "-frames:v", "1"]
    subprocess.run(["ffmpeg", "-v", "error", *source, str(path)], check=True)
    whole = path.read_bytes()
    sizes = set()
    for end in range(3, 700):
        try:
            image = from_base64(encoded(whole[:end]), "x")
        except InvalidRequest:
            continue
        sizes.add((image.width, image.height))
    assert sizes == {(64, 48)}
