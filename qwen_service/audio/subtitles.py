"""A transcript as subtitles, SubRip (srt) or WebVTT, from the segments that the speech program told. IO-free."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from qwen_service.errors import ProtocolError, Unsupported

MEDIA_TYPES = {"srt": "application/x-subrip", "vtt": "text/vtt"}


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
    """`kind`: srt or vtt."""
    cues = "".join(_cue(number, segment, kind) for number, segment in enumerate(segments, 1))
    return f"WEBVTT\n\n{cues}" if kind == "vtt" else cues


def _cue(number: int, segment: Segment, kind: str) -> str:
    # An empty line ends a cue, and an arrow is what the line of its times is known by.
    text = " ".join(segment.text.split()).replace("-->", "->")
    mark, point = (f"{number}\n", ",") if kind == "srt" else ("", ".")
    if kind == "vtt":
        text = text.replace("&", "&amp;").replace("<", "&lt;")
    return f"{mark}{_time(segment.start, point)} --> {_time(segment.end, point)}\n{text}\n\n"


def _time(seconds: float, point: str) -> str:
    whole, thousandths = divmod(round(max(seconds, 0) * 1000), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{point}{thousandths:03}"
