import time
from dataclasses import replace

import pytest

from qwen_service.card.smi import Card
from qwen_service.chat import Finished, Started, Timings, Usage
from qwen_service.operation.metrics import Metrics
from qwen_service.operation.state import CardView, EngineState, ModelState, ServiceState
from qwen_service.request_record import RequestRecord

STATE = ServiceState(
    "1.0",
    uptime=7,
    running=1,
    waiting=3,
    queue_size=16,
    model=ModelState("m", "ax_repl", "ready", (EngineState("m/0", "ready"), EngineState("m/1", "loading", restarts=4))),
    cards=(
        CardView(Card(0, temperature=61.5, cmm_used=2, cmm_total=10, npu_percent=99), "warm"),
        CardView(Card(1), "lost"),
    ),
)


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def generation() -> RequestRecord:
    record = RequestRecord("r", "POST", "/v1/chat/completions", "openai", route="/v1/chat/completions", status=200)
    record.begin(Started("m", trimmed_messages=2), 0.7)
    record.generated(1)
    record.generated(10)
    record.end(Finished("stop", Usage(30, 11, 20), Timings(queue=0.7)))
    record.first_token, record.duration = 1.5, 2.5
    return record


def test_what_the_cpu_answered_for_the_card_is_counted_apart() -> None:
    metrics = Metrics("1.0")
    metrics.observe(generation())
    record = generation()
    record.begin(Started("small", served_by="llamacpp (fallback)", fallback=True), 0.0)
    metrics.observe(record)
    assert value(metrics, "qwen_fallback_requests_total", model="small") == 1
    assert value(metrics, "qwen_fallback_requests_total", model="m") is None


@pytest.mark.parametrize(
    ("card", "cpu", "active"), [("ready", "ready", 0), ("restarting", "loading", 0), ("restarting", "ready", 1)]
)
def test_the_fallback_is_active_while_it_alone_can_answer(card: str, cpu: str, active: int) -> None:
    metrics = Metrics("1.0")
    models = [ModelState(phase, "r", phase, (EngineState(phase, phase),)) for phase in (card, cpu)]
    metrics.observe_state(lambda: replace(STATE, model=models[0], fallback=models[1]))
    assert value(metrics, "qwen_fallback_active") == active


def test_a_generation_is_counted_with_its_tokens_and_times() -> None:
    metrics = Metrics("1.0")
    metrics.observe(generation())
    route = {"dialect": "openai", "route": "/v1/chat/completions", "status": "200"}
    assert value(metrics, "qwen_requests_total", **route) == 1
    expected = {
        "qwen_prompt_tokens_total": 30,
        "qwen_cached_prompt_tokens_total": 20,
        "qwen_generated_tokens_total": 11,
        "qwen_context_trims_total": 1,
        "qwen_queue_wait_seconds_sum": 0.7,
        "qwen_time_to_first_token_seconds_sum": 1.5,
        "qwen_generation_seconds_sum": 2.5,
        "qwen_time_per_output_token_seconds_sum": 0.1,
    }
    assert {name: value(metrics, name, model="m") for name in expected} == expected


def test_times_of_slow_cards_and_quick_cpus_fall_between_the_buckets() -> None:
    metrics = Metrics("1.0")
    for per_second in (1.5, 3.7, 15, 90):
        record = generation()
        record.first_token, record.duration = 1.0, 1.0 + 10 / per_second
        metrics.observe(record)
    name = "qwen_time_per_output_token_seconds_bucket"
    counts = [value(metrics, name, model="m", le=bound) for bound in ("0.01", "0.02", "0.075", "0.3", "1.0")]
    assert counts == [0, 1, 2, 3, 4]


def test_refusals_are_counted_by_reason_and_paths_of_clients_make_no_labels() -> None:
    metrics = Metrics("1.0")
    metrics.observe(RequestRecord("r", "POST", "/api/chat", "ollama", route="/api/chat", status=503, error="QueueFull"))
    metrics.observe(RequestRecord("r", "GET", "/x/y/z", "", status=404))
    assert value(metrics, "qwen_requests_rejected_total", reason="QueueFull") == 1
    assert value(metrics, "qwen_errors_total", error="QueueFull") == 1
    assert value(metrics, "qwen_requests_total", dialect="other", route="other", status="404") == 1


def test_gauges_show_the_service_at_the_moment_of_the_scrape() -> None:
    metrics = Metrics("1.0")
    metrics.observe_state(lambda: STATE)
    assert value(metrics, "qwen_requests_running") == 1
    assert value(metrics, "qwen_requests_waiting") == 3
    assert value(metrics, "qwen_status", status="degraded") == 1
    assert value(metrics, "qwen_engine_restarts_total", model="m", engine="m/1") == 4
    states = [
        value(metrics, "qwen_engine_state", model="m", engine="m/1", state=state) for state in ("loading", "ready")
    ]
    assert states == [1, 0]
    assert value(metrics, "qwen_card_temperature_celsius", card="0") == 61.5
    assert value(metrics, "qwen_card_temperature_celsius", card="1") is None
    assert value(metrics, "qwen_card_cmm_total_bytes", card="0") == 10240
    assert value(metrics, "qwen_card_state", card="1", state="lost") == 1
    assert (value(metrics, "qwen_process_resident_memory_bytes") or 0) > 1e6


@pytest.mark.no_cover
def test_counting_a_request_costs_microseconds() -> None:
    metrics, record = Metrics("1.0"), generation()
    batches = []
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(100):
            metrics.observe(record)
        batches.append((time.perf_counter() - start) / 100)
    assert min(batches) < 200e-6  # about 15 on the machine this was made on
