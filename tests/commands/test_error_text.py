import pytest

from qwen_service.commands.error_text import answer_text


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"error": {"message": "Try again.", "code": "queue_full"}}', "Try again."),  # OpenAI
        (
            b'{"type": "error", "error": {"type": "overloaded_error", "message": "Try again."}}',
            "Try again.",
        ),  # Anthropic
        (b'{"error": "Try again."}', "Try again."),  # Ollama
        (b'{"detail": "Not Found"}', "{'detail': 'Not Found'}"),  # another server
        (b'{"error": {"code": 7}}', "{'error': {'code': 7}}"),
        (b'{"error": null}', "{'error': None}"),
        (b"<html>Bad gateway</html>", "status 502"),
        (b"[]", "status 502"),
        (b"\xff", "status 502"),
        (b"", "status 502"),
    ],
)
def test_what_an_error_answer_says(body: bytes, text: str) -> None:
    assert answer_text(body, 502) == text
