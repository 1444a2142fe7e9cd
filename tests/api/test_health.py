from collections.abc import Callable
from dataclasses import replace
from typing import Any

import orjson
import pytest
from fastapi import FastAPI

from qwen_service.api.health import document, health_router
from qwen_service.card.smi import Card
from qwen_service.operation.state import CardView, EngineState, ModelState, ServiceState
from tests.asgi_calls import call

READY = ModelState("qwen3-4b", "ax_api", "ready", (EngineState("qwen3-4b", "ready"),))
LOADING = ModelState("qwen3-4b", "ax_api", "loading", (EngineState("qwen3-4b", "loading", "loading 17/36"),))
FAILED = ModelState("qwen3-4b", "ax_api", "failed", (EngineState("qwen3-4b", "failed", "", 3, "No card was found."),))
HALF = ModelState("q", "ax_repl", "ready", (EngineState("q/0", "ready"), EngineState("q/1", "restarting", "", 1, "it")))
CPU = ModelState("smollm2-135m", "llamacpp", "ready", (EngineState("smollm2-135m", "ready"),))
FINE = ServiceState("1.0", 5, running=1, waiting=2, queue_size=16, model=READY)


def with_card(state: str, reason: str = "") -> ServiceState:
    return replace(
        FINE, cards=(CardView(Card(0, "AX650N", temperature=90, cmm_used=100, cmm_total=200), state, reason),)
    )


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (FINE, "ok"),
        (with_card("ok"), "ok"),
        (with_card("warm"), "ok"),
        (with_card("paused"), "degraded"),
        (with_card("lost"), "degraded"),
        (replace(FINE, card_fault="axcl-smi hung"), "degraded"),
        (replace(FINE, model=HALF), "degraded"),
        (replace(FINE, trouble="fallback_model: there is no such model"), "degraded"),
        (replace(FINE, model=LOADING), "down"),
        (replace(FINE, model=FAILED), "down"),
        (replace(FINE, model=None, trouble="no model is installed"), "down"),
        (replace(FINE, model=FAILED, fallback=CPU), "degraded"),
        (replace(FINE, model=FAILED, fallback=LOADING), "down"),
    ],
)
def test_the_status_says_whether_requests_are_answered_and_all_is_well(state: ServiceState, status: str) -> None:
    assert state.status == status


def test_the_document_names_what_is_wrong() -> None:
    details = document(replace(FINE, model=FAILED))["details"]
    assert details["model"]["error"] == "No card was found."
    assert details["model"]["restarts"] == 3
    assert details["tokenizer"] == "down"
    assert document(replace(FINE, model=LOADING))["details"]["model"]["progress"] == "loading 17/36"
    assert document(replace(FINE, model=None, trouble="no model"))["details"]["model"]["error"] == "no model"


def test_the_document_shows_card_queue_fallback_uptime_and_version() -> None:
    details = document(replace(with_card("paused", "Card 0 is hot"), fallback=CPU))["details"]
    (card,) = details["npu"]["cards"]
    assert (card["temperature_celsius"], card["cmm_used_kib"], card["cmm_total_kib"]) == (90, 100, 200)
    assert (card["state"], card["reason"]) == ("paused", "Card 0 is hot")
    assert details["queue"] == {"running": 1, "waiting": 2, "size": 16}
    assert details["fallback"]["name"] == "smollm2-135m"
    assert (details["uptime"], details["version"]) == (5, "1.0")


async def ask(path: str, state: Callable[[], ServiceState]) -> tuple[int, Any]:
    app = FastAPI()
    app.include_router(health_router(state))
    answer = await call(app, path)
    return answer.status, orjson.loads(answer.body)["status"]


async def test_ok_and_degraded_are_200_and_down_is_503() -> None:
    assert await ask("/health", lambda: FINE) == (200, "ok")
    assert await ask("/health", lambda: with_card("lost")) == (200, "degraded")
    assert await ask("/health", lambda: replace(FINE, model=LOADING)) == (503, "down")


async def test_a_live_service_need_not_be_ready() -> None:
    loading = replace(FINE, model=LOADING)
    assert await ask("/health/live", lambda: loading) == (200, "ok")
    assert await ask("/health/ready", lambda: loading) == (503, "down")
    assert await ask("/health/ready", lambda: FINE) == (200, "ok")
