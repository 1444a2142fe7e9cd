import pytest

from qwen_service.runtimes.local_http import SseReader

STREAM = (
    b'data: {"a": 1}\n\n'
    b": a ping\n\n"
    b"event: error\ndata: two\ndata: lines\n\n"
    b"data:no space\r\n\r\n"
    b"id: 7\nretry: 10\n\n"
    b"data: \xc3\xa9 [DONE]\n\n"
    b"data: cut off"
)
EVENTS = [b'{"a": 1}', b"two\nlines", b"no space", b"\xc3\xa9 [DONE]"]


@pytest.mark.parametrize("position", range(len(STREAM) + 1))
def test_a_stream_split_anywhere_gives_the_same_events(position: int) -> None:
    reader = SseReader()
    assert reader.feed(STREAM[:position]) + reader.feed(STREAM[position:]) == EVENTS


def test_a_stream_of_single_bytes_gives_the_same_events() -> None:
    reader = SseReader()
    assert [event for byte in STREAM for event in reader.feed(bytes([byte]))] == EVENTS


def test_an_event_is_given_as_soon_as_its_blank_line_is_there() -> None:
    reader = SseReader()
    assert reader.feed(b"data: x\n") == []
    assert reader.feed(b"\n") == [b"x"]
