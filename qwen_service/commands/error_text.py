"""What a service's error says, in its answer or in its stream: in the shape of OpenAI, of Anthropic or of Ollama."""

import json
from collections.abc import Mapping
from typing import Any


def answer_text(body: bytes, status: int) -> str:
    """The message of an error answer; `status 502` for what is no JSON object, such as a proxy's own page."""
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    return error_text(document) if isinstance(document, dict) else f"status {status}"


def error_text(document: Mapping[str, Any]) -> str:
    """The message of an error document; all of the document when it has none."""
    error = document.get("error")
    message = error.get("message") if isinstance(error, Mapping) else error
    return str(message or document)
