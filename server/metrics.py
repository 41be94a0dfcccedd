"""Prometheus metrics under the names that vLLM's dashboards use, with the prefix `hal:`.

Gauges and engine counters are read from the latest EngineStats when somebody scrapes; request
counters and histograms are fed by the front, whose clock measures every interval.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from hal.engine.request import EngineStats
from hal.errors import NOT_FINITE, DeviceOutOfMemory, EngineError, HalError
from hal.server.errors import ApiError
from hal.server.facts import RequestFacts
from hal.server.limits import HttpRecord
from hal.server.metric_names import MetricsCompat
from hal.server.metrics_compat import WithTheirNames
from hal.server.process_metrics import ProcessMetrics

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_PREFIX = "hal:"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_TOKENS = tuple(2**i for i in range(18))
_KNOWN_ERRORS = (EngineError.code, NOT_FINITE, DeviceOutOfMemory.code)
_KNOWN_METHODS = frozenset({"GET", "HEAD", "POST", "OPTIONS", "PUT", "PATCH", "DELETE"})


@dataclass(frozen=True, slots=True)
class EngineView:
    """What a scrape reads: the latest stats, the last heartbeat's age, and what never changes.

    pressure_stage, circuit: numbers of hal.server.pressure.Stage and hal.server.breaker.Circuit
    memory: bytes of each part of the plan made at the start
    """

    stats: EngineStats
    heartbeat_age_s: float
    num_queued_tokens: int
    block_size: int
    site_levels: Mapping[str, int]
    pressure_stage: int
    circuit: int
    memory: Mapping[str, int]


class ServerMetrics:
    """All metrics of one server, in a registry of its own."""

    def __init__(
        self,
        model_name: str,
        view: Callable[[], EngineView | None],
        compat: MetricsCompat = MetricsCompat.NONE,
    ) -> None:
        self._registry = CollectorRegistry()
        is_theirs = compat is MetricsCompat.VLLM
        self._shown: Collector = WithTheirNames(self._registry) if is_theirs else self._registry
        self._model_name = model_name
        self._registry.register(_EngineCollector(model_name, view))
        self._http = self._counter("http_requests_total", "HTTP answers", "handler method status")
        self._success = self._counter("request_success_total", "Choices by end", "finished_reason")
        self._rejected = self._counter("requests_rejected_total", "Refused requests", "reason")
        self._aborted = self._counter("requests_aborted_total", "Aborted requests", "cause")
        self._ttft = self._histogram("time_to_first_token_seconds", "Until the first", _SECONDS)
        itl = self._histogram("inter_token_latency_seconds", "Between two", _TOKEN_SECONDS)
        self._itl = itl.labels(model_name)  # looked up once: it is fed with every token
        self._e2e = self._histogram("e2e_request_latency_seconds", "Whole request", _SECONDS)
        self._prompt = self._histogram("request_prompt_tokens", "Prompt tokens", _TOKENS)
        self._generated = self._histogram("request_generation_tokens", "New tokens", _TOKENS)
        self._longest = self._histogram(
            "request_max_num_generation_tokens", "New tokens of the longest choice", _TOKENS
        )
        self._queue = self._phase("queue", "From the engine's acceptance to the first step")
        self._prefill = self._phase("prefill", "From the first step to the first token")
        self._decode = self._phase("decode", "From the first token to the last")
        self._inference = self._phase("inference", "From the first step to the last token")
        self._n = self._histogram("request_params_n", "Choices that were asked for", _TOKENS[:8])
        self._max_tokens = self._histogram(
            "request_params_max_tokens", "Longest answer that was asked for", _TOKENS
        )
        self._errors = self._counter(
            "request_errors_total", "Requests that the engine lost", "code"
        )
        for code in _KNOWN_ERRORS:
            # An alert on an increase would miss the first of a counter that was not there.
            self._errors.labels(model_name, code)

    def http_answer(self, record: HttpRecord, known_paths: Container[str]) -> None:
        # A label for every path that somebody tries would grow without bound.
        handler = record.path if record.path in known_paths else "other"
        method = record.method if record.method in _KNOWN_METHODS else "other"
        self._http.labels(self._model_name, handler, method, str(record.status)).inc()

    def rejected(self, code: str) -> None:
        self._rejected.labels(self._model_name, code).inc()

    def aborted(self, cause: str) -> None:
        self._aborted.labels(self._model_name, cause).inc()

    def first_token(self, seconds: float) -> None:
        self._ttft.labels(self._model_name).observe(seconds)

    def next_token(self, seconds: float) -> None:
        self._itl.observe(seconds)

    def choice_finished(self, reason: str) -> None:
        self._success.labels(self._model_name, reason).inc()

    def request_finished(self, seconds: float, num_prompt: int, num_generated: int) -> None:
        self._e2e.labels(self._model_name).observe(seconds)
        self._prompt.labels(self._model_name).observe(num_prompt)
        self._generated.labels(self._model_name).observe(num_generated)

    def generation_finished(self, facts: RequestFacts, num_longest: int) -> None:
        """All choices of a request have ended, each in its own way."""
        name = self._model_name
        self._longest.labels(name).observe(num_longest)
        if facts.params is not None:
            self._n.labels(name).observe(facts.params.n)
            self._max_tokens.labels(name).observe(facts.params.max_tokens or 0)
        phases = facts.phases
        if phases is not None:
            self._queue.labels(name).observe(phases.queue_s)
            self._prefill.labels(name).observe(phases.prefill_s)
            self._decode.labels(name).observe(phases.decode_s)
            self._inference.labels(name).observe(phases.prefill_s + phases.decode_s)

    def request_failed(self, cause: Exception | str | None) -> None:
        """The engine ended a request: its error, or only the code of it."""
        code = cause.code if isinstance(cause, HalError | ApiError) else cause
        self._errors.labels(
            self._model_name, code if isinstance(code, str) else EngineError.code
        ).inc()

    def watch(
        self, worst_lag_s: Callable[[], float], pids: Callable[[], Mapping[str, int]]
    ) -> None:
        """Both are read at each scrape; pids: of every process that runs, by its name."""
        labels = {"model_name": self._model_name}
        self._registry.register(ProcessMetrics(_PREFIX, labels, pids))
        gauge = Gauge(
            _PREFIX + "event_loop_lag_seconds",
            "Longest delay of the front's event loop in ten seconds",
            ["model_name"],
            registry=self._registry,
        )
        gauge.labels(self._model_name).set_function(worst_lag_s)

    def render(self) -> bytes:
        return generate_latest(self._shown)

    def _phase(self, name: str, help: str) -> Histogram:
        return self._histogram(f"request_{name}_time_seconds", help, _SECONDS)

    def _counter(self, name: str, help: str, labels: str) -> Counter:
        names = ["model_name", *labels.split()]
        return Counter(_PREFIX + name, help, names, registry=self._registry)

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
        labels = ["model_name"]
        return Histogram(_PREFIX + name, help, labels, buckets=buckets, registry=self._registry)


class _EngineCollector(Collector):
    """Turns the latest EngineStats into metric families at scrape time."""

    def __init__(self, model_name: str, view: Callable[[], EngineView | None]) -> None:
        self._model_name = model_name
        self._view = view

    def collect(self) -> Iterable[Metric]:
        view = self._view()
        if view is None:
            return
        stats = view.stats
        total = max(stats.num_blocks_total, 1)
        yield self._gauge("num_requests_running", "Sequences in steps", stats.num_running)
        yield self._gauge("num_requests_waiting", "Sequences in the queue", stats.num_waiting)
        yield self._gauge("kv_cache_usage_perc", "Used share (0-1)", stats.num_blocks_used / total)
        swap_total = max(stats.num_swap_blocks_total, 1)
        swapped = stats.num_swap_blocks_used / swap_total
        yield self._gauge("cpu_cache_usage_perc", "Used share of the swap space (0-1)", swapped)
        yield self._gauge(
            "engine_heartbeat_age_seconds", "Since the engine's last message", view.heartbeat_age_s
        )
        yield self._gauge(
            "queue_tokens", "Prompt tokens without a first token", view.num_queued_tokens
        )
        yield self._gauge("pressure_stage", "What is given up (0: nothing)", view.pressure_stage)
        yield self._gauge("circuit_state", "0 closed, 1 half-open, 2 open", view.circuit)
        yield self._blocks(stats)
        yield self._evictions(stats)
        yield self._memory(view)
        yield self._swaps(stats)
        yield self._cache_config(view)
        yield self._site_levels(view)
        yield self._counter("num_preemptions", "Preempted sequences", stats.num_preemptions)
        yield self._counter("deadline_missed", "Sequences dropped for timeout_s", stats.num_late)
        yield self._counter("prompt_tokens", "Prompt tokens accepted", stats.num_prompt_tokens)
        yield self._counter("generation_tokens", "Tokens generated", stats.num_generated_tokens)
        yield self._counter("prefix_cache_queries", "Tokens looked up", stats.num_prefix_queries)
        yield self._counter("prefix_cache_hits", "Tokens found", stats.num_prefix_hits)
        yield self._counter("engine_steps", "Engine steps", stats.num_steps)

    def _blocks(self, stats: EngineStats) -> Metric:
        family = GaugeMetricFamily(
            _PREFIX + "kv_blocks", "KV blocks by state", labels=["model_name", "state"]
        )
        held = stats.num_blocks_used + stats.num_blocks_cached + stats.num_blocks_pinned
        free = stats.num_blocks_total - held
        family.add_metric([self._model_name, "used"], stats.num_blocks_used)
        family.add_metric([self._model_name, "cached"], stats.num_blocks_cached)
        family.add_metric([self._model_name, "pinned"], stats.num_blocks_pinned)
        family.add_metric([self._model_name, "free"], free)
        return family

    def _evictions(self, stats: EngineStats) -> Metric:
        family = CounterMetricFamily(
            _PREFIX + "prefix_cache_evictions",
            "Cached blocks given up: for room, or unused for the whole TTL",
            labels=["model_name", "reason"],
        )
        family.add_metric([self._model_name, "capacity"], stats.num_evicted)
        family.add_metric([self._model_name, "expired"], stats.num_expired)
        return family

    def _swaps(self, stats: EngineStats) -> Metric:
        family = CounterMetricFamily(
            _PREFIX + "swapped_blocks",
            "KV blocks copied to the swap space and back",
            labels=["model_name", "direction"],
        )
        family.add_metric([self._model_name, "out"], stats.num_swapped_out)
        family.add_metric([self._model_name, "in"], stats.num_swapped_in)
        return family

    def _site_levels(self, view: EngineView) -> Metric:
        family = GaugeMetricFamily(
            _PREFIX + "kernel_sites", "Sites by level", labels=["model_name", "level"]
        )
        for level, count in view.site_levels.items():
            family.add_metric([self._model_name, level], count)
        return family

    def _memory(self, view: EngineView) -> Metric:
        family = GaugeMetricFamily(
            _PREFIX + "memory_bytes",
            "Of the device, as planned at the start",
            labels=["model_name", "part"],
        )
        for part, num_bytes in view.memory.items():
            family.add_metric([self._model_name, part], num_bytes)
        return family

    def _cache_config(self, view: EngineView) -> Metric:
        labels = ["model_name", "block_size", "num_blocks"]
        family = GaugeMetricFamily(_PREFIX + "cache_config_info", "KV cache shape", labels=labels)
        values = [self._model_name, str(view.block_size), str(view.stats.num_blocks_total)]
        family.add_metric(values, 1)
        return family

    def _gauge(self, name: str, help: str, value: float) -> Metric:
        family = GaugeMetricFamily(_PREFIX + name, help, labels=["model_name"])
        family.add_metric([self._model_name], value)
        return family

    def _counter(self, name: str, help: str, value: float) -> Metric:
        family = CounterMetricFamily(_PREFIX + name, help, labels=["model_name"])
        family.add_metric([self._model_name], value)
        return family
