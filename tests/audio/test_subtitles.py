import pytest

from qwen_service.audio.speech_to_text import Segment, segments_of, subtitles
from qwen_service.errors import ProtocolError, Unsupported

SEGMENTS = (Segment(0, 2.5, " Hello\n there. "), Segment(3725.0006, 3726.9996, "a --> b & <i>c</i>"))


def test_srt_has_numbers_and_commas() -> None:
    assert subtitles(SEGMENTS, "srt") == (
        "1\n00:00:00,000 --> 00:00:02,500\nHello there.\n\n2\n01:02:05,001 --> 01:02:07,000\na -> b & <i>c</i>\n\n"
    )


def test_vtt_has_a_head_and_points_and_no_markup_of_the_speaker() -> None:
    assert subtitles(SEGMENTS, "vtt") == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:02.500\nHello there.\n\n"
        "01:02:05.001 --> 01:02:07.000\na -> b &amp; &lt;i>c&lt;/i>\n\n"
    )


def test_silence_has_subtitles_without_cues() -> None:
    assert subtitles(segments_of({"text": " "}), "vtt") == "WEBVTT\n\n"
    assert subtitles(segments_of({"text": "", "segments": []}), "srt") == ""


def test_a_text_without_times_makes_no_subtitles() -> None:
    with pytest.raises(Unsupported, match="gives no times"):
        segments_of({"text": "Hello."})


@pytest.mark.parametrize("segments", [[{"text": "Hello."}], [{"start": "x", "end": 1, "text": ""}], ["Hello."], 7])
def test_segments_of_another_shape_are_the_programs_fault(segments: object) -> None:
    with pytest.raises(ProtocolError, match="segments have no times"):
        segments_of({"text": "Hello.", "segments": segments})
