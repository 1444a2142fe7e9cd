"""GET /health: ok and degraded are 200, down is 503; /health/live and /health/ready for orchestrators.

The answers come at once from known state: no card is asked, no work is started, no place in the line is taken.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from starlette.responses import PlainTextResponse, Response

from qwen_service.api.reply import json_response
from qwen_service.operation.metrics import Metrics
from qwen_service.operation.state import CardView, EngineState, ModelState, ServiceState


def health_router(state: Callable[[], ServiceState]) -> APIRouter:
    router = APIRouter(tags=["operation"])
    refusal = "The service cannot answer requests; `details` has the reason in plain words."
    down: dict[int | str, dict[str, Any]] = {503: {"description": refusal}}

    @router.get("/health", summary="How the service is", responses=down)
    async def health() -> Response:
        now = state()
        return json_response(document(now), 503 if now.status == "down" else 200)

    @router.get("/health/live", summary="Whether the process is alive")
    async def live() -> Response:
        return json_response({"status": "ok"}, 200)

    @router.get("/health/ready", summary="Whether requests can be answered now", responses=down)
    async def ready() -> Response:
        status = state().status
        return json_response({"status": status}, 503 if status == "down" else 200)

    return router


def metrics_router(metrics: Metrics) -> APIRouter:
    router = APIRouter(tags=["operation"])

    @router.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
    async def show() -> Response:
        return Response(metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def document(state: ServiceState) -> dict[str, Any]:
    return {
        "status": state.status,
        "details": {
            "tokenizer": "ok" if state.model is not None and state.model.tokenizer_ready else "down",
            "model": _model(state.model) if state.model else {"state": "none", "error": state.trouble},
            "switching_to": state.switching_to or None,
            "npu": {"cards": [_card(view) for view in state.cards], "error": state.card_fault or None},
            "replicas": [asdict(replica) for replica in state.replicas],
            "queue": {"running": state.running, "waiting": state.waiting, "size": state.queue_size},
            "speech": {engine.name: _engine(engine) for engine in state.speech},
            "fallback": _model(state.fallback) if state.fallback else None,
            "trouble": state.trouble or None,
            "uptime": round(state.uptime, 1),
            "version": state.version,
        },
    }


def _model(model: ModelState) -> dict[str, Any]:
    first = next((engine for engine in model.engines if engine.phase != "ready"), model.engines[0])
    return {
        "name": model.name,
        "runtime": model.runtime,
        "state": "unloaded" if model.asleep else model.phase,
        "progress": first.progress or None,
        "restarts": sum(engine.restarts for engine in model.engines),
        "error": first.last_error or None,
        "seconds_per_100_prompt_tokens": model.prompt_seconds,
        "engines": [_engine(engine) for engine in model.engines],
    }


def _engine(engine: EngineState) -> dict[str, Any]:
    return {
        "name": engine.name,
        "state": engine.phase,
        "progress": engine.progress or None,
        "restarts": engine.restarts,
        "error": engine.last_error or None,
        "warm": {"kind": engine.warm.kind, "tokens": engine.warm.tokens} if engine.warm else None,
        "cache": engine.cache or None,
    }


def _card(view: CardView) -> dict[str, Any]:
    card = view.card
    return {
        "index": card.index,
        "name": card.name,
        "state": view.state,
        "reason": view.reason or None,
        "temperature_celsius": card.temperature,
        "cmm_used_kib": card.cmm_used,
        "cmm_total_kib": card.cmm_total,
        "npu_percent": card.npu_percent,
        "driver": card.driver or None,
        "bus": card.bus_id or None,
        "processes": [{"pid": p.pid, "name": p.name, "cmm_kib": p.cmm_kib} for p in card.processes],
    }
