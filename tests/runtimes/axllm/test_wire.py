import pytest

from qwen_service.errors import ProtocolError
from qwen_service.runtimes.axllm.wire import AxLlmStream


def chunk(content: bytes, finish: bytes = b"null") -> bytes:
    return b'{"choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":%s}]}' % (content, finish)


def test_text_comes_as_it_is_and_done_after_a_finish_reason_is_an_end() -> None:
    stream = AxLlmStream()
    assert [stream.feed(data) for data in (chunk("a 🦜".encode()), chunk(b"", b'"stop"'), b"[DONE]")] == [
        "a 🦜",
        "",
        "",
    ]
    assert stream.ended
    assert stream.finished


def test_done_without_a_finish_reason_is_a_cut() -> None:
    stream = AxLlmStream()
    stream.feed(chunk(b"a"))
    stream.feed(b"[DONE]")
    assert stream.ended
    assert not stream.finished


def test_half_a_character_does_not_end_the_reply() -> None:
    stream = AxLlmStream()
    parrot = "🦜".encode()
    text = stream.feed(chunk(b"a " + parrot[:2])) + stream.feed(chunk(parrot[2:] + b" b"))
    assert text.startswith("a \N{REPLACEMENT CHARACTER}")
    assert text.endswith(" b")


@pytest.mark.parametrize("data", [b"{", b"[]", b"3", b'{"error": {"message": "no"}}'])
def test_what_is_no_chunk_is_an_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        AxLlmStream().feed(data)
