"""Settings at 0 do what docs/configuration.md says of 0."""

from pathlib import Path

import httpx

from tests.service_process import service_process

HELLO = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}


def test_without_a_line_and_without_patience_a_free_slot_still_answers(smollm2: Path) -> None:
    zeros = ("--queue-size", "0", "--queue-timeout", "0", "--drain-timeout", "0", "--npu-poll-interval", "0")
    with service_process("--model-path", str(smollm2), "--fallback-after", "0", "--max-tokens", "0", *zeros) as service:
        answer = httpx.post(f"{service.url}/v1/chat/completions", json=HELLO, timeout=60)
        assert answer.status_code == 200
        assert answer.json()["usage"]["completion_tokens"] > 0
