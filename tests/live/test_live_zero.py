"""Settings at 0 and at their bounds do what docs/configuration.md says of them."""

from pathlib import Path

import httpx
import pytest

from qwen_service.settings import Settings
from tests.live_service import ScriptedEngine, live_service
from tests.service_process import service_process

HELLO = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}


def test_without_a_line_and_without_patience_a_free_slot_still_answers(small_gguf: Path) -> None:
    zeros = ("--queue-size", "0", "--queue-timeout", "0", "--drain-timeout", "0", "--npu-poll-interval", "0")
    with service_process(
        "--model-path", str(small_gguf), "--fallback-after", "0", "--max-tokens", "0", *zeros
    ) as service:
        answer = httpx.post(f"{service.url}/v1/chat/completions", json=HELLO, timeout=60)
        assert answer.status_code == 200
        assert answer.json()["usage"]["completion_tokens"] > 0


def numbers(bound: str) -> dict[str, float]:
    """Every setting that is a number and no port, at its bound `ge` or `le`. Those that must be above 0 have no `ge`."""
    found = {}
    for name, field in Settings.model_fields.items():
        limits = {
            kind: getattr(part, kind) for part in field.metadata for kind in ("ge", "gt", "le") if hasattr(part, kind)
        }
        if field.annotation in (int, float) and not name.endswith("port") and not (bound == "ge" and "gt" in limits):
            found[name] = limits[bound]
    return found


@pytest.mark.parametrize("bound", ["ge", "le"])
async def test_with_every_number_at_a_bound_it_serves_and_stops(bound: str, tmp_path: Path) -> None:
    settings = numbers(bound)
    assert len(settings) > 25
    engine = ScriptedEngine()
    engine.gate.set()
    async with live_service(tmp_path, engine, **settings) as live:
        for _ in range(2):
            answer = await live.chat(max_tokens=2)
            assert answer.status_code == 200, answer.text
            assert answer.json()["choices"][0]["message"]["content"] == "He"
        streamed = await live.chat(stream=True)
        assert streamed.text.endswith("data: [DONE]\n\n")
        assert (await live.http.get("/health")).json()["status"] == "ok"
        large = "a" * 100_000
        assert (await live.chat(large)).status_code == (413 if bound == "ge" else 400)
