"""A collector of OpenTelemetry traces: an HTTP server on loopback that keeps the spans it gets."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.support.wait import until


@dataclasses.dataclass
class Collector:
    """Spans by the order in which they came, and the attributes of the process that sent them. `status` is the answer to those
    that come next."""

    url: str = ""
    status: int = 200
    spans: list[Span] = dataclasses.field(default_factory=list)
    resource: dict[str, Any] = dataclasses.field(default_factory=dict)

    def take(self, data: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(data).resource_spans:
            self.resource = {each.key: value(each.value) for each in resource.resource.attributes}
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]

    def named(self, name: str, count: int = 1) -> list[Span]:
        """Return the spans of this name, of which there are `count` in time."""
        until(lambda: len(self._named(name)) >= count)
        return self._named(name)

    def below(self, parent: Span) -> list[Span]:
        """Return the children of a span, by their beginning."""
        found = [span for span in self.spans if span.parent_span_id == parent.span_id]
        return sorted(found, key=lambda span: (span.start_time_unix_nano, span.end_time_unix_nano))

    def _named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]


def attributes(span: Span) -> dict[str, Any]:
    return {each.key: value(each.value) for each in span.attributes}


def value(found: AnyValue) -> Any:
    kind = found.WhichOneof("value")
    return [value(each) for each in found.array_value.values] if kind == "array_value" else getattr(found, str(kind))


@contextlib.contextmanager
def collecting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """Run a collector, to which servers that start meanwhile send without delay."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["content-length"]))
            if self.path == "/v1/traces" and collector.status == 200:
                collector.take(gzip.decompress(data) if self.headers.get("content-encoding") == "gzip" else data)
            self.send_response(collector.status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        collector.url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()
