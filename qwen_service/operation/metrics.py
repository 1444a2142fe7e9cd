"""Prometheus metrics. Counted once per request at its end; gauges are read from the service when it is scraped.

Names follow llama.cpp and vLLM, with the prefix qwen_. docs/operations.md and the Grafana dashboard use them.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from qwen_service.card.monitor import CardState
from qwen_service.engines.supervisor import Phase
from qwen_service.operation.state import CardView, EngineState, ServiceState, Status
from qwen_service.pipeline.warming import WarmCounts
from qwen_service.request_record import RequestRecord

# Seconds. A card prefills 15 to 100 tokens a second and generates 4 to 15, a good CPU 100: hence the wide ranges.
WAIT = (0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 20, 30, 60)
FIRST_TOKEN = (0.02, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 40, 60, 120)
PER_TOKEN = (0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1)
WHOLE = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600)

REJECTIONS = ("QueueFull", "QueueTimeout", "Loading", "ShuttingDown")


class Metrics:
    def __init__(self, version: str) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(namespace="qwen", registry=registry)  # qwen_process_resident_memory_bytes and relatives
        build = Gauge("qwen_build_info", "Always 1; the version is in its label.", ["version"], registry=registry)
        build.labels(version).set(1)
        counter, seconds = partial(Counter, registry=registry), partial(Histogram, registry=registry)
        self._requests = counter("qwen_requests", "Requests that have ended.", ["dialect", "route", "status"])
        self._rejected = counter("qwen_requests_rejected", "Requests told to come back later.", ["reason"])
        self._errors = counter("qwen_errors", "Requests that ended in an error, by kind.", ["error"])
        of = ["model"]
        self._wait = seconds("qwen_queue_wait_seconds", "Wait for a slot.", of, buckets=WAIT)
        self._first = seconds(
            "qwen_time_to_first_token_seconds", "From arrival to the first token.", of, buckets=FIRST_TOKEN
        )
        self._token = seconds(
            "qwen_time_per_output_token_seconds", "Time per token after the first.", of, buckets=PER_TOKEN
        )
        self._whole = seconds("qwen_generation_seconds", "From arrival to the end of a reply.", of, buckets=WHOLE)
        self._prompt = counter("qwen_prompt_tokens", "Prompt tokens, cached ones included.", of)
        self._cached = counter("qwen_cached_prompt_tokens", "Prompt tokens that the KV cache held.", of)
        self._generated = counter("qwen_generated_tokens", "Generated tokens.", of)
        self._trims = counter("qwen_context_trims", "Conversations that were shortened to fit.", of)
        self._fallbacks = counter("qwen_fallback_requests", "Requests answered by the CPU in place of the card.", of)
        of = ["engine"]
        self._speech = counter("qwen_speech_seconds", "Seconds of sound heard or made.", of)
        self._speaking = seconds(
            "qwen_speech_request_seconds", "From arrival to the end of the answer.", of, buckets=WHOLE
        )
        self._first_sound = seconds(
            "qwen_time_to_first_sound_seconds", "From arrival to the first sound.", of, buckets=FIRST_TOKEN
        )

    def observe(self, record: RequestRecord) -> None:
        """A request has ended. Labels come from us, never from a client."""
        self._requests.labels(record.dialect or "other", record.route or "other", str(record.status)).inc()
        if record.error:
            self._errors.labels(record.error).inc()
        if record.error in REJECTIONS:
            self._rejected.labels(record.error).inc()
        if record.model:
            self._observe_generation(record)
        if record.speech:
            self._observe_speech(record)

    def observe_state(self, state: Callable[[], ServiceState]) -> None:
        """Show what `state` says at each scrape."""
        self.registry.register(_StateCollector(state))

    def render(self) -> bytes:
        return generate_latest(self.registry)

    def _observe_generation(self, record: RequestRecord) -> None:
        model = record.model
        self._prompt.labels(model).inc(record.prompt_tokens)
        self._cached.labels(model).inc(record.cached_tokens)
        self._generated.labels(model).inc(record.completion_tokens)
        self._wait.labels(model).observe(record.queue)
        self._whole.labels(model).observe(record.duration)
        if record.fallback:
            self._fallbacks.labels(model).inc()
        if record.trimmed_messages:
            self._trims.labels(model).inc()
        if record.first_token is None:
            return
        self._first.labels(model).observe(record.first_token)
        if record.completion_tokens > 1:
            per_token = (record.duration - record.first_token) / (record.completion_tokens - 1)
            self._token.labels(model).observe(max(0.0, per_token))

    def _observe_speech(self, record: RequestRecord) -> None:
        self._speech.labels(record.speech).inc(record.speech_seconds)
        self._speaking.labels(record.speech).observe(record.duration)
        if record.first_token is not None:
            self._first_sound.labels(record.speech).observe(record.first_token)


class _StateCollector:
    def __init__(self, state: Callable[[], ServiceState]) -> None:
        self._state = state

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        state = self._state()
        yield _gauge("qwen_requests_running", "Generations that hold a slot.", state.running)
        yield _gauge("qwen_requests_waiting", "Requests waiting for a slot.", state.waiting)
        yield _gauge("qwen_queue_size", "Requests that may wait.", state.queue_size)
        yield _gauge("qwen_uptime_seconds", "Seconds since the service started.", state.uptime)
        yield _gauge("qwen_fallback_active", "1 while the CPU answers in place of the card.", state.fallback_serves)
        if state.warmings is not None:
            yield from _warmings(state.warmings)
        yield _one_hot(
            "qwen_status",
            "1 for the status that /health shows, 0 for the others.",
            ("status",),
            [((), state.status)],
            get_args(Status),
        )
        yield from _engines(
            [
                *((model.name, model.engines) for model in (state.model, state.fallback) if model is not None),
                *((engine.name, (engine,)) for engine in state.speech),
            ]
        )
        yield from _cards(state.cards)


def _engines(models: list[tuple[str, tuple[EngineState, ...]]]) -> Iterable[Metric]:
    restarts = CounterMetricFamily("qwen_engine_restarts", "Restarts after a failure.", labels=["model", "engine"])
    for model, engines in models:
        for engine in engines:
            restarts.add_metric([model, engine.name], engine.restarts)
    yield restarts
    phases = [((model, engine.name), engine.phase) for model, engines in models for engine in engines]
    yield _one_hot(
        "qwen_engine_state",
        "1 for the present state of the engine.",
        ("model", "engine", "state"),
        phases,
        get_args(Phase),
    )


def _warmings(counts: WarmCounts) -> Iterable[Metric]:
    family = CounterMetricFamily("qwen_warmings", "Prefixes prefilled while nobody waited.", labels=["kind"])
    family.add_metric(["conversation"], counts.conversations)
    family.add_metric(["head"], counts.heads)
    yield family
    yield CounterMetricFamily(
        "qwen_warming_seconds", "Seconds spent on prefilling while nobody waited.", value=counts.seconds
    )
    yield CounterMetricFamily(
        "qwen_warming_hits", "Requests that began with a prefix that had been prefilled.", value=counts.hits
    )


def _cards(views: Iterable[CardView]) -> Iterable[Metric]:
    views = list(views)
    for name, text, value in (
        ("qwen_card_temperature_celsius", "Temperature of the card.", lambda card: card.temperature),
        ("qwen_card_cmm_used_bytes", "Memory in use on the card.", lambda card: _bytes(card.cmm_used)),
        ("qwen_card_cmm_total_bytes", "Memory of the card.", lambda card: _bytes(card.cmm_total)),
        ("qwen_card_npu_utilisation_percent", "Load of the card's NPU.", lambda card: card.npu_percent),
    ):
        family = GaugeMetricFamily(name, text, labels=["card"])
        for view in views:
            if (reading := value(view.card)) is not None:
                family.add_metric([str(view.card.index)], reading)
        yield family
    states = [((str(view.card.index),), view.state) for view in views]
    yield _one_hot(
        "qwen_card_state", "1 for the present state of the card.", ("card", "state"), states, get_args(CardState)
    )


def _one_hot(
    name: str,
    text: str,
    labels: tuple[str, ...],
    values: Iterable[tuple[tuple[str, ...], str]],
    choices: tuple[str, ...],
) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for key, value in values:
        for choice in choices:
            family.add_metric([*key, choice], float(choice == value))
    return family


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _bytes(kib: int | None) -> int | None:
    return None if kib is None else kib * 1024
