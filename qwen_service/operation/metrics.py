"""Prometheus metrics. Counted once per request at its end; gauges are read from the service when it is scraped.

Names follow llama.cpp and vLLM, with the prefix qwen_. docs/operations.md and the Grafana dashboard use them.
"""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from qwen_service.operation.state import CardView, EngineState, ServiceState
from qwen_service.pipeline.warming import WarmCounts
from qwen_service.request_record import RequestRecord

# Seconds. A card prefills 15 to 100 tokens a second and generates 4 to 15, a good CPU 100: hence the wide ranges.
WAIT = (0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 20, 30, 60)
FIRST_TOKEN = (0.02, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 40, 60, 120)
PER_TOKEN = (0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1)
WHOLE = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600)

REJECTIONS = ("QueueFull", "QueueTimeout", "Loading", "ShuttingDown")
PHASES = ("ready", "loading", "restarting", "failed", "stopped")
STATUSES = ("ok", "degraded", "down")
CARD_STATES = ("ok", "warm", "paused", "lost", "unknown")


class Metrics:
    def __init__(self, version: str) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(namespace="qwen", registry=registry)  # qwen_process_resident_memory_bytes and relatives
        Gauge("qwen_build_info", "Always 1; the version is in its label.", ["version"], registry=registry).labels(
            version
        ).set(1)
        self._requests = Counter(
            "qwen_requests", "Requests that have ended.", ["dialect", "route", "status"], registry=registry
        )
        self._rejected = Counter("qwen_requests_rejected", "Requests told to come back.", ["reason"], registry=registry)
        self._wait = _seconds("qwen_queue_wait_seconds", "Wait for a slot.", WAIT, registry)
        self._first = _seconds("qwen_time_to_first_token_seconds", "From arrival to token one.", FIRST_TOKEN, registry)
        self._token = _seconds("qwen_time_per_output_token_seconds", "Per later token.", PER_TOKEN, registry)
        self._whole = _seconds("qwen_generation_seconds", "From arrival to the end of a reply.", WHOLE, registry)
        self._prompt = _tokens("qwen_prompt_tokens", "Prompt tokens, cached ones included.", registry)
        self._cached = _tokens("qwen_cached_prompt_tokens", "Prompt tokens that the KV cache held.", registry)
        self._generated = _tokens("qwen_generated_tokens", "Generated tokens.", registry)
        self._trims = Counter(
            "qwen_context_trims", "Conversations that were shortened to fit.", ["model"], registry=registry
        )
        self._fallbacks = Counter(
            "qwen_fallback_requests", "Answered by the CPU in place of the card.", ["model"], registry=registry
        )
        self._speech = Counter("qwen_speech_seconds", "Sound heard or made.", ["engine"], registry=registry)
        self._speaking = Histogram(
            "qwen_speech_request_seconds", "From arrival to the end.", ["engine"], buckets=WHOLE, registry=registry
        )
        self._first_sound = Histogram(
            "qwen_time_to_first_sound_seconds", "From arrival.", ["engine"], buckets=FIRST_TOKEN, registry=registry
        )
        self._errors = Counter("qwen_errors", "Requests that ended in an error, by kind.", ["error"], registry=registry)

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
        yield _gauge("qwen_uptime_seconds", "Since the service started.", state.uptime)
        yield _gauge("qwen_fallback_active", "1 while the CPU answers in place of the card.", state.fallback_serves)
        if state.warmings is not None:
            yield from _warmings(state.warmings)
        yield _one_hot("qwen_status", "1 for what /health says.", ("status",), [((), state.status)], STATUSES)
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
    yield _one_hot("qwen_engine_state", "1 for the state it is in.", ("model", "engine", "state"), phases, PHASES)


def _warmings(counts: WarmCounts) -> Iterable[Metric]:
    family = CounterMetricFamily("qwen_warmings", "Prefilled while nobody waited.", labels=["kind"])
    family.add_metric(["conversation"], counts.conversations)
    family.add_metric(["head"], counts.heads)
    yield family
    yield CounterMetricFamily("qwen_warming_seconds", "That took so long.", value=counts.seconds)
    yield CounterMetricFamily("qwen_warming_hits", "Requests that began with it.", value=counts.hits)


def _cards(views: Iterable[CardView]) -> Iterable[Metric]:
    views = list(views)
    for name, text, value in (
        ("qwen_card_temperature_celsius", "Of its chip.", lambda card: card.temperature),
        ("qwen_card_cmm_used_bytes", "Its own memory in use.", lambda card: _bytes(card.cmm_used)),
        ("qwen_card_cmm_total_bytes", "Its own memory.", lambda card: _bytes(card.cmm_total)),
        ("qwen_card_npu_utilisation_percent", "Of its NPU.", lambda card: card.npu_percent),
    ):
        family = GaugeMetricFamily(name, text, labels=["card"])
        for view in views:
            if (reading := value(view.card)) is not None:
                family.add_metric([str(view.card.index)], reading)
        yield family
    states = [((str(view.card.index),), view.state) for view in views]
    yield _one_hot("qwen_card_state", "1 for the state it is in.", ("card", "state"), states, CARD_STATES)


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


def _seconds(name: str, text: str, buckets: tuple[float, ...], registry: CollectorRegistry) -> Histogram:
    return Histogram(name, text, ["model"], buckets=buckets, registry=registry)


def _tokens(name: str, text: str, registry: CollectorRegistry) -> Counter:
    return Counter(name, text, ["model"], registry=registry)
