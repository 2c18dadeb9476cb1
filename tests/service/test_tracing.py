"""Traces reach a real OTLP receiver, continue the caller's, and go on to Triton."""

import asyncio
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from tritonclient.grpc.service_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)

from model_def.config import PRESETS, PackageConfig
from service.backends.triton_endpoint import Endpoint
from service.breaker import Breaker
from service.deadline import Deadline
from service.errors import BadSetting, DependencyFailed
from service.scenes import warm_up
from service.tracing import Tracing, call_metadata, open_tracing
from tests.service.world import SCHEMA, opener, request, running, settings

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{CALLER}-01"


@contextmanager
def receiver() -> Iterator[tuple[str, list[Any]]]:
    """The URL of an OTLP/HTTP receiver, and the spans that it got."""
    spans: list[Any] = []

    class Receive(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    spans.extend(scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Receive)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", spans
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_request_is_a_span_of_its_callers_trace_with_a_span_a_stage(redis_url: str) -> None:
    """Stages are children of the request's span, which is the caller's child; they add up to it;
    a caller that does not trace is not traced at a share of 0."""
    with receiver() as (url, spans):
        config = settings(redis_url, otel_endpoint=url, otel_share=0)
        with running(config, opener(SCHEMA)) as client:
            client.post("/v1/rank", json=request(3), headers={"traceparent": TRACEPARENT})
            client.post("/v1/rank", json=request(3))
    (whole,) = [span for span in spans if span.name == "POST /v1/rank"]
    stages = [span for span in spans if span is not whole]
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    assert whole.parent_span_id.hex() == CALLER
    assert {span.parent_span_id for span in stages} == {whole.span_id}
    names = [span.name for span in sorted(stages, key=lambda span: span.start_time_unix_nano)]
    assert names[:2] == ["read", "queue"]
    assert {"features", "backend", "encode"} <= set(names)
    taken = sum(span.end_time_unix_nano - span.start_time_unix_nano for span in stages)
    assert taken <= whole.end_time_unix_nano - whole.start_time_unix_nano
    attributes = {a.key: a.value for a in whole.attributes}
    assert attributes["scene"].string_value == "home"
    assert attributes["http.response.status_code"].int_value == 200


class Listening(GRPCInferenceServiceServicer):  # type: ignore[misc]  # untyped
    """A Triton that only notes what it was called with."""

    def __init__(self) -> None:
        self.metadata: dict[str, str] = {}

    def ModelInfer(self, request: Any, context: Any) -> None:
        self.metadata = dict(context.invocation_metadata())
        context.abort(grpc.StatusCode.UNAVAILABLE, "noted")


def test_triton_is_called_with_the_requests_trace(redis_url: str) -> None:
    """The gRPC call carries a traceparent of the same trace; without a trace it carries none."""
    listening = Listening()
    server = grpc.server(ThreadPoolExecutor(1))
    add_GRPCInferenceServiceServicer_to_server(listening, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    config = PackageConfig(version="v", model=PRESETS["tiny"], features=SCHEMA)
    tracing = open_tracing(settings(redis_url, otel_endpoint="http://127.0.0.1:9/v1/traces"))
    assert isinstance(tracing, Tracing)

    async def call() -> None:
        endpoint = Endpoint(f"127.0.0.1:{port}", None, "m", config, None, Breaker("triton"))
        with pytest.raises(DependencyFailed):
            await endpoint.score(warm_up(SCHEMA, 1)[0], Deadline.after(10))
        await endpoint.close()

    async def calls() -> None:
        with tracing.request({"traceparent": f"00-{TRACE}-{CALLER}-00"}):
            await call()
        assert listening.metadata["traceparent"].split("-")[1] == TRACE
        assert call_metadata() == ()
        await call()
        assert "traceparent" not in listening.metadata

    asyncio.run(calls())
    server.stop(None).wait()
    tracing.close()


def test_traces_without_the_package_are_refused_at_start(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for and not installed: the message has the remedy."""
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(BadSetting, match=r"pip install 'mtgr-serving\[otel\]'"):
        open_tracing(settings(redis_url, otel_endpoint="http://x/v1/traces"))
