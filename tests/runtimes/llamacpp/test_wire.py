import json
from typing import Any

import pytest

from qwen_service.chat import Sampling, TokenLogprob
from qwen_service.errors import InvalidRequest, PromptTooLong, ProtocolError
from qwen_service.runtime import Piece, Prefill
from qwen_service.runtimes.llamacpp.wire import CompletionReader, completion_body, refusal


def event(**fields: Any) -> bytes:
    return json.dumps({"content": "", "tokens": [], "stop": False, "tokens_predicted": 0, **fields}).encode()


def test_only_what_was_asked_for_is_sent() -> None:
    body = completion_body([1, 2], Sampling())
    assert body["prompt"] == [1, 2]
    assert body["n_predict"] == -1
    assert not body.keys() & {"temperature", "top_p", "seed", "n_probs", "grammar", "json_schema", "logit_bias"}


def test_each_sampling_field_reaches_the_engine_under_its_name() -> None:
    sampling = Sampling(
        max_tokens=7,
        temperature=0.0,
        top_p=0.5,
        top_k=3,
        min_p=0.1,
        seed=42,
        presence_penalty=1.0,
        frequency_penalty=0.5,
        repeat_penalty=1.1,
        logit_bias={5: -100.0},
        top_logprobs=2,
        json_schema={"type": "object"},
    )
    body = completion_body([1], sampling)
    assert {name: body[name] for name in ("temperature", "top_p", "top_k", "min_p", "seed")} == {
        "temperature": 0.0,
        "top_p": 0.5,
        "top_k": 3,
        "min_p": 0.1,
        "seed": 42,
    }
    assert (body["presence_penalty"], body["frequency_penalty"], body["repeat_penalty"]) == (1.0, 0.5, 1.1)
    assert (body["n_predict"], body["n_probs"]) == (7, 2)
    assert body["logit_bias"] == [(5, -100.0)]
    assert body["json_schema"] == {"type": "object"}


@pytest.mark.parametrize("seed", [-1, -5, 2**32 - 1, 2**63])
def test_any_seed_becomes_one_that_the_engine_does_not_take_for_random(seed: int) -> None:
    assert 0 <= completion_body([1], Sampling(seed=seed))["seed"] < 2**32 - 1


def test_our_grammar_goes_before_a_schema() -> None:
    body = completion_body([1], Sampling(grammar="root ::= [a-z]+", json_schema={}))
    assert body["grammar"] == "root ::= [a-z]+"
    assert "json_schema" not in body


def test_counts_are_differences_of_the_running_total() -> None:
    reader = CompletionReader(None)
    assert reader.feed(event(prompt_progress={"total": 9, "cache": 4, "processed": 9})) == Prefill(9, 4)
    assert reader.feed(event(content="Hi", tokens=[5], tokens_predicted=1)) == Piece("Hi", 1, (5,))
    assert reader.feed(event(content="😀", tokens=[8], tokens_predicted=4)) == Piece("😀", 3, (8,))
    assert reader.feed(event(stop=True, stop_type="eos", tokens_predicted=5)) == Piece("", 1, (), (), "stop")


@pytest.mark.parametrize(("stop_type", "reason"), [("eos", "stop"), ("limit", "length"), ("word", "stop")])
def test_the_engines_way_of_stopping_becomes_a_finish_reason(stop_type: str, reason: str) -> None:
    piece = CompletionReader(None).feed(event(stop=True, stop_type=stop_type))
    assert isinstance(piece, Piece)
    assert piece.finish_reason == reason


ENTRY = {"token": "a", "bytes": [97], "logprob": -0.5, "top_logprobs": [{"token": "b", "bytes": [98], "logprob": -0.1}]}
END = {"token": "", "bytes": [], "logprob": -0.2, "top_logprobs": []}


@pytest.mark.parametrize(("top", "alternatives"), [(0, ()), (1, (TokenLogprob("b", b"b", -0.1),))])
def test_logprobs_have_as_many_alternatives_as_asked_for(top: int, alternatives: tuple[TokenLogprob, ...]) -> None:
    piece = CompletionReader(top).feed(event(content="a", tokens_predicted=1, completion_probabilities=[ENTRY]))
    assert isinstance(piece, Piece)
    assert piece.logprobs == (TokenLogprob("a", b"a", -0.5, alternatives),)


def test_the_end_token_has_no_logprob_since_it_is_no_text() -> None:
    piece = CompletionReader(1).feed(event(tokens_predicted=1, completion_probabilities=[END]))
    assert isinstance(piece, Piece)
    assert piece.logprobs == ()


@pytest.mark.parametrize("data", [b"nonsense", b"{}", b"[1]", b'{"prompt_progress": {}}', event(content=1)[:-5]])
def test_an_event_that_cannot_be_read_is_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        CompletionReader(None).feed(data)


def test_an_error_in_mid_stream_is_raised() -> None:
    with pytest.raises(ProtocolError, match="KV cache is full"):
        CompletionReader(None).feed(json.dumps({"error": {"code": 500, "message": "KV cache is full"}}).encode())


def test_the_engines_refusals_are_the_clients_fault_where_they_are() -> None:
    too_long = {"code": 400, "message": "2100 tokens", "type": "exceed_context_size_error"}
    assert isinstance(refusal(400, too_long), PromptTooLong)
    assert isinstance(refusal(400, {"code": 400, "message": "invalid tokens"}), InvalidRequest)
    assert isinstance(refusal(500, "<html>"), ProtocolError)
