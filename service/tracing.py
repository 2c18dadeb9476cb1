"""Traces of ranking requests, for OpenTelemetry; off unless `otel_endpoint` is set.

A request's span continues the caller's trace (W3C `traceparent`), or begins one for a share of the
requests; its stages are spans below it, features among them (Redis) and backend (Triton, which gets
the `traceparent` with each call). Spans leave in the background; what cannot leave is dropped.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from time import time_ns
from typing import TYPE_CHECKING, Any

from service.deadline import Stages
from service.errors import BadSetting
from service.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

CLIENTS = {"features": "redis", "backend": "inference"}
"""Stages that wait for another system, and what it is."""

_traceparent: ContextVar[str | None] = ContextVar("traceparent", default=None)


def call_metadata() -> tuple[tuple[str, str], ...]:
    """Metadata (gRPC) or headers that have a server continue the request's trace, if it has one."""
    traceparent = _traceparent.get()
    return () if traceparent is None else (("traceparent", traceparent),)


@dataclass
class Traced:
    """What a request's span will say of it."""

    stages: Stages | None = None
    attributes: dict[str, str | int] = field(default_factory=dict)


class Tracing:
    """Spans of ranking requests."""

    def __init__(self, provider: "TracerProvider"):
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("mtgr")
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def request(self, headers: Mapping[str, str]) -> Iterator[Traced]:
        """The span of the request that the block answers."""
        from opentelemetry import trace

        traced, start_ns = Traced(), time_ns()
        span = self._tracer.start_span(
            "POST /v1/rank",
            context=self._propagator.extract(headers),
            kind=trace.SpanKind.SERVER,
            start_time=start_ns,
        )
        context, carrier = trace.set_span_in_context(span), dict[str, str]()
        self._propagator.inject(carrier, context)
        token = _traceparent.set(carrier["traceparent"])
        try:
            yield traced
        finally:
            _traceparent.reset(token)
            if span.is_recording():
                span.set_attributes(traced.attributes)
                self._add_stages(context, traced.stages, start_ns)
            span.end()

    def _add_stages(self, context: Any, stages: Stages | None, start_ns: int) -> None:
        """A span a stage, end to end, as they add up to the whole."""
        from opentelemetry import trace

        for name, seconds in (stages.seconds if stages else {}).items():
            system = CLIENTS.get(name)
            kind = trace.SpanKind.CLIENT if system else trace.SpanKind.INTERNAL
            end_ns = start_ns + int(1e9 * seconds)
            span = self._tracer.start_span(name, context, kind, start_time=start_ns)
            if system:
                span.set_attribute("peer.service", system)
            span.end(end_ns)
            start_ns = end_ns

    def close(self) -> None:
        """Send what waits, within the exporter's own time limit."""
        self._provider.shutdown()


def open_tracing(settings: Settings) -> Tracing | None:
    """As the settings ask, or None; raises BadSetting where OpenTelemetry is not installed."""
    if not settings.otel_endpoint:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    except ModuleNotFoundError:
        raise BadSetting(
            "otel_endpoint: needs OpenTelemetry: pip install 'mtgr-serving[otel]'"
        ) from None
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(settings.otel_share)),
        resource=Resource.create({"service.name": "mtgr-gateway"}),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(
        BatchSpanProcessor(OTLPSpanExporter(settings.otel_endpoint, timeout=5))
    )
    return Tracing(provider)
