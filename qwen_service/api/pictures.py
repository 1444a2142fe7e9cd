"""Reads the pictures in bodies of all dialects: base64 to Image, with type and size from the first bytes.

No picture is decoded, and no URL is fetched: a client could otherwise make us send requests into our own network.
"""

import base64
import binascii
import hashlib
import re
import struct
from collections.abc import Iterator

from qwen_service.chat import Image
from qwen_service.errors import InvalidRequest, Unsupported

TAKEN = "png, jpeg, webp and gif"
_DATA_URI = re.compile(r"data:(?:image/[\w.+-]{1,40})?(?:;[\w=.+-]{1,40})*;base64,", re.IGNORECASE)
_URL = re.compile(r"[a-z][a-z0-9+.-]{1,20}:", re.IGNORECASE)
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})  # JPEG markers that begin a frame and contain its size


def from_url(url: str, where: str) -> Image:
    """Read a picture from a `data:` URI. Raises InvalidRequest, or Unsupported for any other URL."""
    if (match := _DATA_URI.match(url)) is not None:
        return from_base64(url[match.end() :], where)
    if url[:5].lower() == "data:":
        raise InvalidRequest(f"{where}: a data: URI must be base64, such as data:image/jpeg;base64,...", param=where)
    if _URL.match(url):
        raise Unsupported(
            f"{where}: this service fetches no URL, since a URL could point into its own network. Send the picture"
            " itself: data:image/jpeg;base64,...",
            param=where,
        )
    return from_base64(url, where)


def from_base64(text: str, where: str) -> Image:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(f"{where}: the picture is not valid base64.", param=where) from None
    kind = _kind(data)
    if not kind:
        raise Unsupported(f"{where}: the picture is of no supported type, which are {TAKEN}.", param=where)
    size = next(_sizes(kind, data), None)
    if size is None or 0 in size:
        raise InvalidRequest(f"{where}: the picture is damaged: its header has no size.", param=where)
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    return Image(f"image/{kind}", data, *size, digest=digest)


def _kind(data: bytes) -> str:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    return "webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else ""


def _sizes(kind: str, data: bytes) -> Iterator[tuple[int, int]]:
    """Width and height from the header; empty when the header is incomplete."""
    match kind:
        case "png" if len(data) >= 24 and data[12:16] == b"IHDR":
            yield struct.unpack(">II", data[16:24])
        case "gif" if len(data) >= 10:
            yield struct.unpack("<HH", data[6:10])
        case "jpeg":
            yield from _of_jpeg(data)
        case "webp":
            yield from _of_webp(data)


def _of_jpeg(data: bytes) -> Iterator[tuple[int, int]]:
    place = 2
    while place + 9 < len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # padding
            place += 1
            continue
        if marker in _FRAMES:
            height, width = struct.unpack(">HH", data[place + 5 : place + 9])
            yield width, height
            return
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")


def _of_webp(data: bytes) -> Iterator[tuple[int, int]]:
    form, body = data[12:16], data[20:30]
    if len(body) < 10:
        return
    if form == b"VP8X":
        yield int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    elif form == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        yield (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif form == b"VP8 ":
        width, height = struct.unpack("<HH", body[6:10])
        yield width & 0x3FFF, height & 0x3FFF
