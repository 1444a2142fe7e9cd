"""Streams of both APIs, as servers send them and as they break."""

import orjson
import pytest

from bench.load.wire import OllamaWire, OpenAIWire, Question, error_in

OPENAI = (
    b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
    b": ping\n\n"
    b'data: {"choices":[{"delta":{"reasoning_content":"hm"}}]}\n\n'
    b'data: {"choices":[{"delta":{"content":"Hi"}}]}\r\n\r\n'
    b'data: {"choices":[{"delta":{"content":" \xc3\xa9"},"finish_reason":"stop"}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":4}}}\n\n'
    b"data: [DONE]\n\n"
)
OLLAMA = (
    b'{"message":{"role":"assistant","content":"","thinking":"hm"},"done":false}\n'
    b'{"message":{"content":"Hi"},"done":false}\n'
    b'{"message":{"content":""},"done":true,"done_reason":"stop","total_duration":5000000000,"load_duration":0,'
    b'"prompt_eval_count":9,"prompt_eval_duration":1000000000,"eval_count":2,"eval_duration":1500000000}\n'
)


def test_an_openai_stream_reads_the_same_wherever_it_is_split() -> None:
    for at in range(len(OPENAI)):
        answer = OpenAIWire().read([(1.0, OPENAI[:at]), (2.0, OPENAI[at:])])
        assert (answer.text, answer.finish, answer.error, answer.complete) == ("Hi é", "stop", "", True)
        assert (answer.prompt_tokens, answer.completion_tokens, answer.cached_tokens) == (9, 3, 4)
        assert len(answer.token_times) == 3
        assert answer.token_times == sorted(answer.token_times)


def test_an_ollama_stream_reads_the_same_wherever_it_is_split() -> None:
    for at in range(len(OLLAMA)):
        answer = OllamaWire().read([(1.0, OLLAMA[:at]), (2.0, OLLAMA[at:])])
        assert (answer.text, answer.finish, answer.error) == ("Hi", "stop", "")
        assert (answer.prompt_tokens, answer.completion_tokens) == (9, 2)
        assert answer.queue == pytest.approx(2.5)
        assert len(answer.token_times) == 2


def test_a_piece_has_the_time_at_which_its_line_was_complete() -> None:
    answer = OllamaWire().read([(1.0, b'{"message":{"content":"a"}}\n{"message":'), (3.0, b'{"content":"b"}}\n')])
    assert answer.token_times == [1.0, 3.0]


@pytest.mark.parametrize(("body", "words"), [
    (b"", "ended without its end mark"),
    (b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n', "ended without its end mark"),
    (b'data: {"error":{"message":"the card is gone"}}\n\n', "the card is gone"),
    (b"data: <html>\n\n", "not understood"),
    (b"data: []\n\n", "not understood"),
])  # fmt: skip
def test_a_stream_that_is_not_whole_is_an_error(body: bytes, words: str) -> None:
    assert words in OpenAIWire().read([(0.0, body)]).error


def test_errors_of_both_apis_are_named_with_their_status() -> None:
    assert error_in(b'{"error":{"message":"full"}}', 429) == "429: full"
    assert error_in(b'{"error":"full"}', 503) == "503: full"
    assert error_in(b"<html>", 502) == "status 502"


def test_the_bodies_ask_for_a_stream_with_usage_and_a_bounded_greedy_answer() -> None:
    question = Question([{"role": "user", "content": "x"}], 64, {"type": "object"})
    openai = OpenAIWire().body("m", question)
    assert openai["stream_options"] == {"include_usage": True}
    assert (openai["max_tokens"], openai["temperature"]) == (64, 0)
    assert openai["response_format"]["json_schema"]["schema"] == {"type": "object"}
    ollama = OllamaWire().body("m", question)
    assert ollama["options"] == {"num_predict": 64, "temperature": 0}
    assert ollama["format"] == {"type": "object"}
    assert orjson.dumps(openai)
