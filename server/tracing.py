"""One OpenTelemetry span for each request to a model, with the attributes of the GenAI conventions.

Spans are made when a request has ended, from what the front noted on the way, so a server without
`--otlp-endpoint` pays nothing. They hold numbers and names only: prompts, answers, tool arguments
and stop strings are never exported.

Source: OpenTelemetry semantic conventions for generative AI (development status), 2026.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import hal
from hal.errors import UnsupportedError
from hal.server.facts import RequestFacts
from hal.server.limits import HttpRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

Attribute = str | bool | int | float | list[str]

PROVIDER = "hal"
_CLIENT_ERRORS = range(400, 500)


class RequestSpans:
    """Exports spans in a thread of its own; close() sends what is left."""

    def __init__(self, exporter: SpanExporter, model: str) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create(
            {"service.name": "hal-serve", "service.version": hal.__version__}
        )
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("hal.server", hal.__version__)
        self._propagator = TraceContextTextMapPropagator()
        self._model = model

    def request_ended(self, record: HttpRecord) -> None:
        """Routes without a model have no span."""
        from opentelemetry.trace import SpanKind, set_span_in_context

        facts = record.facts
        if not facts.operation:
            return
        span = self._tracer.start_span(
            f"{facts.operation} {self._model}",
            context=self._propagator.extract(record.parent),
            kind=SpanKind.SERVER,
            start_time=facts.started_ns,
            attributes=_attributes(record, self._model),
        )
        _set_status(span, record)
        if span.is_recording():
            context = set_span_in_context(span)
            for name, (start_at, end_at) in _stages(facts).items():
                child = self._tracer.start_span(
                    name, context=context, start_time=_wall_ns(facts, start_at)
                )
                child.end(_wall_ns(facts, end_at))
        span.end(_wall_ns(facts, facts.started_at + record.seconds))

    def close(self) -> None:
        self._provider.shutdown()


def otlp_spans(endpoint: str, model: str) -> RequestSpans:
    """Over OTLP/HTTP to `endpoint`, as http://127.0.0.1:4318/v1/traces.

    Raises UnsupportedError where the extra is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk import trace  # noqa: F401  is it there as well?
    except ImportError as error:
        raise UnsupportedError(
            f"--otlp-endpoint needs OpenTelemetry ({error}): pip install 'hal-runtime[otel]'"
        ) from error
    return RequestSpans(OTLPSpanExporter(endpoint=endpoint), model)


def _wall_ns(facts: RequestFacts, at: float) -> int:
    """A moment of the monotonic clock on the wall clock that the request started on."""
    return facts.started_ns + round(1e9 * (at - facts.started_at))


def _stages(facts: RequestFacts) -> Mapping[str, tuple[float, float]]:
    """Start and end of what followed each other; the text of an answer is made while it decodes."""
    if facts.submitted_at is None:
        return {}
    stages = {"tokenize": (facts.started_at, facts.submitted_at)}
    phases = facts.phases
    if phases is not None:
        start = facts.submitted_at
        for name, seconds in (
            ("queue", phases.queue_s),
            ("prefill", phases.prefill_s),
            ("decode", phases.decode_s),
        ):
            stages[name] = (start, start + seconds)
            start += seconds
    return stages


def _set_status(span: Span, record: HttpRecord) -> None:
    """Only what the server did wrong is an error of a server's span."""
    from opentelemetry.trace import Status, StatusCode

    code = record.facts.error_code
    if (code and record.status not in _CLIENT_ERRORS) or record.status >= 500:
        span.set_status(Status(StatusCode.ERROR, code or None))


def _attributes(record: HttpRecord, model: str) -> dict[str, Attribute]:
    facts = record.facts
    known: dict[str, Attribute | None] = {
        "gen_ai.operation.name": facts.operation,
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": model,
        "gen_ai.response.model": model,
        "gen_ai.response.id": facts.answer_id or None,
        "gen_ai.response.finish_reasons": facts.finish_reasons or None,
        "gen_ai.response.time_to_first_chunk": facts.ttft_s,
        "gen_ai.request.stream": facts.is_stream,
        "http.request.method": record.method,
        "http.route": record.path,
        "http.response.status_code": record.status,
        "hal.request_id": record.request_id,
        "error.type": facts.error_code or None,
        **_params(facts),
        **_usage(facts),
    }
    return {name: value for name, value in known.items() if value is not None}


def _params(facts: RequestFacts) -> dict[str, Attribute | None]:
    params = facts.params
    if params is None:
        return {}
    return {
        "gen_ai.request.max_tokens": params.max_tokens,
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.request.top_k": params.top_k,
        "gen_ai.request.frequency_penalty": params.frequency_penalty,
        "gen_ai.request.presence_penalty": params.presence_penalty,
        "gen_ai.request.seed": params.seed,
        "gen_ai.request.choice.count": params.n,
    }


def _usage(facts: RequestFacts) -> dict[str, Attribute | None]:
    usage = facts.usage
    if usage is None:
        return {}
    return {
        "gen_ai.usage.input_tokens": usage.num_prompt,
        "gen_ai.usage.output_tokens": usage.num_completion,
        "gen_ai.usage.cache_read.input_tokens": usage.num_cached,
        "gen_ai.usage.reasoning.output_tokens": usage.num_reasoning,
    }
