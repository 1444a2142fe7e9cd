import pytest

from qwen_service.api.ollama.request import FOR_EVER, chat_request, generate_request, ignored_options, seconds_of
from qwen_service.api.ollama.wire import ChatBody, GenerateBody
from qwen_service.errors import InvalidRequest, RequestTooLarge


@pytest.mark.parametrize(
    ("given", "seconds"),
    [(0, 0), (300, 300), (1.5, 1.5), ("5m", 300), ("1h30m", 5400), ("500ms", 0.5), ("0", 0), ("0s", 0), ("1.5h", 5400)],
)
def test_keep_alive_is_seconds_or_a_duration(given: float | str, seconds: float) -> None:
    assert seconds_of(given) == seconds


@pytest.mark.parametrize("given", [-1, "-1s", "-5m", -0.5])
def test_a_negative_keep_alive_is_for_ever(given: float | str) -> None:
    assert seconds_of(given) == FOR_EVER


@pytest.mark.parametrize("given", ["", "soon", "5", "m", "5 m", "5m!", "--1s"])
def test_what_is_no_duration_is_refused(given: str) -> None:
    with pytest.raises(InvalidRequest):
        seconds_of(given)


@pytest.mark.parametrize("text", ['{"a": 1}', '{"a": "cut off', "no JSON"])
def test_arguments_of_a_former_call_may_be_text(text: str) -> None:
    call = {"function": {"name": "f", "arguments": text}}
    body = ChatBody.model_validate({"model": "m", "messages": [{"role": "assistant", "tool_calls": [call]}]})
    (message,) = chat_request(body, "id", max_messages=9).messages
    assert message.tool_calls[0].arguments == text


def test_former_calls_get_different_ids() -> None:
    calls = [{"function": {"name": "f"}}] * 2
    body = ChatBody.model_validate({"model": "m", "messages": [{"role": "assistant", "tool_calls": calls}] * 2})
    messages = chat_request(body, "id", max_messages=9).messages
    assert len({call.id for message in messages for call in message.tool_calls}) == 4


def test_too_many_messages_are_refused() -> None:
    body = ChatBody.model_validate({"model": "m", "messages": [{"role": "user"}] * 3})
    with pytest.raises(RequestTooLarge):
        chat_request(body, "id", max_messages=2)


def test_raw_excludes_what_a_template_would_need() -> None:
    body = GenerateBody.model_validate({"model": "m", "prompt": "x", "raw": True, "system": "s"})
    with pytest.raises(InvalidRequest):
        generate_request(body, "id")


def test_options_of_loading_are_ignored_in_silence_and_those_of_sampling_by_name() -> None:
    body = ChatBody.model_validate(
        {"model": "m", "options": {"num_gpu": 1, "num_thread": 4, "mirostat": 2, "tfs_z": 1.0}}
    )
    assert ignored_options(body) == ["tfs_z", "mirostat"]
