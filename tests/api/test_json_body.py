import json

import orjson
import pytest

from qwen_service.api.json_body import parse
from qwen_service.errors import RequestTooLarge

SIZE = 4_194_304  # the default of max_body_bytes


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (rb'"\ud800"', "�"),
        (rb'"a\uDC00b"', "a�b"),
        (rb'"\ud83d\ude00"', "\U0001f600"),
        (rb'"\ud83d\ud83d\ude00"', "�\U0001f600"),
        (rb'"\ude00\ud83d"', "��"),
        (rb'"\\ud800"', r"\ud800"),
        (rb'"\\\ud800"', "\\�"),
        (b'\xef\xbb\xbf"mark"', "mark"),
    ],
)
def test_half_a_surrogate_pair_becomes_the_replacement_character(written: bytes, read: str) -> None:
    assert parse(written) == read
    assert parse(b'{"deep": [' + written.removeprefix(b"\xef\xbb\xbf") + b"]}") == {"deep": [read]}


@pytest.mark.parametrize("body", [b"", b"{", b'"\\ud800', b'"\xff"', b"[" * 100_000, b'{"a": 1} x'])
def test_what_is_not_json_is_refused(body: bytes) -> None:
    with pytest.raises((json.JSONDecodeError, RequestTooLarge)):
        parse(body)


@pytest.mark.parametrize("item", [b"[],", b"{},", b'"",', b'{"a":1},', b"[[[[]]]],"])
def test_more_values_than_the_size_deserves_are_refused(item: bytes) -> None:
    with pytest.raises(RequestTooLarge, match="lists, objects, keys and strings"):
        parse(b"[" + item * (SIZE // len(item) - 1) + b"0]")


def test_many_keys_are_refused() -> None:
    keys = b",".join(b'"%x":1' % index for index in range(350_000))
    with pytest.raises(RequestTooLarge):
        parse(b"{" + keys + b"}")


def test_text_that_looks_like_many_values_is_text() -> None:
    code = json.dumps({"rows": [{"a": [1], "b": ["x", "y"]}]}) * 50_000
    body = orjson.dumps({"messages": [{"role": "user", "content": code}]})
    assert len(body) > SIZE / 2
    assert parse(body)["messages"][0]["content"] == code


def test_constants_that_are_no_json_are_read_where_a_field_is_ignored() -> None:
    assert parse(b'{"x": Infinity, "y": 1}') == {"x": float("inf"), "y": 1}
    for broken in (b"[NaN", b"[NaN," + b"9" * 5000 + b"]", b"[" * 5000 + b"NaN" + b"]" * 5000, b'[NaN, "\xff"]'):
        with pytest.raises(json.JSONDecodeError):
            parse(broken)


def test_numbers_are_cheap() -> None:
    assert len(parse(b"[" + b"12345," * 500_000 + b"1]")) == 500_001


def test_a_flood_of_half_surrogates_is_refused() -> None:
    with pytest.raises(json.JSONDecodeError):
        parse(b'"' + rb"\ud800" * 600_000 + b'"')
    assert parse(b'"' + rb"\ud800" * 100_000 + b'"') == "\ufffd" * 100_000
