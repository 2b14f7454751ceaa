"""OpenTelemetry: a span for each request, and below it one for each phase of its answer.

Imported only if the setting asks for it. Where and how spans are sent is up to the standard variables, of which
OTEL_EXPORTER_OTLP_ENDPOINT is the first.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Awaitable, Sequence
from typing import Any

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from locallab.engine.request import Usage
from locallab.errors import ConfigError
from locallab.logs import request_id
from locallab.server.inference.generation import GenerationUsage
from locallab.server.middleware.access_log import BEGINNINGS
from locallab.version import __version__

try:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
    from opentelemetry.trace import Link, SpanKind, Status, StatusCode, set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError:
    packages = "opentelemetry-sdk opentelemetry-exporter-otlp-proto-http"
    raise ConfigError(f"otel: needs OpenTelemetry: pip install {packages}") from None

PARTING = 3.0
"""Seconds at the end for spans that are not sent yet."""

GONE = 499
"""The status of a request whose client left before it had one."""

OPERATIONS = {"embed": "embeddings", "rerank": "embeddings", "score": "embeddings"} | dict.fromkeys(
    ("chat", "messages", "responses", "assistant"), "chat"
)
"""The conventions' names of what routes with these words do; others complete a text."""

log = logging.getLogger(__name__)


class Exporter:
    """Sends spans; logs once that they cannot be sent, and once that they can again. The library would log every batch."""

    def __init__(self, inner: OTLPSpanExporter) -> None:
        self._inner = inner
        self._failing = False

    def export(self, spans: Sequence[Any]) -> SpanExportResult:
        try:
            result, reason = self._inner.export(spans), "nobody answers there, or it does not take them"
        except Exception as error:  # of an address that is none, for example
            result, reason = SpanExportResult.FAILURE, str(error)
        failing = result is not SpanExportResult.SUCCESS
        if failing and not self._failing:
            log.warning("traces cannot be sent to %s, and are dropped until they can: %s", _endpoint(), reason)
        elif self._failing and not failing:
            log.info("traces can be sent again")
        self._failing = failing
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 0) -> bool:
        return True


def _endpoint() -> str:
    names = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    return next(filter(None, map(os.environ.get, names)), "http://localhost:4318")


class Traces:
    """Makes spans and, from `start` to `close`, sends them in a thread: no request waits, and what cannot be sent is dropped.

    Raises ConfigError for a protocol other than http/protobuf.
    """

    def __init__(self) -> None:
        for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
            if (protocol := os.environ.get(name)) not in (None, "", "http/protobuf"):
                raise ConfigError(f"{name}: traces are sent by http/protobuf only, got {protocol!r}")
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        resource = Resource.create({"service.version": __version__})
        if str(resource.attributes["service.name"]).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": "locallab"}))
        self._exporter = Exporter(OTLPSpanExporter())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self.tracer = self._provider.get_tracer("locallab", __version__)
        self.propagator = TraceContextTextMapPropagator()

    def start(self) -> None:
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))

    def middleware(self) -> tuple[list[Middleware], list[Middleware]]:
        """Return the middleware behind the access log, and that behind the check of keys."""
        return [Middleware(Tracing, traces=self)], [Middleware(TracedSpending)]

    def close(self) -> None:
        """Send what is left, for PARTING seconds at most."""
        closing = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        closing.start()
        closing.join(PARTING)
        if closing.is_alive():
            self._exporter.shutdown()


class Trace:
    """The trace of one request, HTTP or WebSocket, as far as this server makes it."""

    def __init__(self, traces: Traces, scope: Scope) -> None:
        headers = Headers(scope=scope)
        client, server = scope.get("client") or ("-", None), scope.get("server") or ("-", None)
        self._tracer = traces.tracer
        self._state: dict[str, Any] = scope["state"]
        self._socket = scope["type"] == "websocket"
        self._method = scope.get("method", "GET")
        told = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        self._parent = traces.propagator.extract(told)
        attributes = {
            "http.request.method": self._method,
            "url.scheme": scope.get("scheme", "http"),
            "url.path": scope["path"],
            "network.protocol.version": scope.get("http_version", "1.1"),
            "user_agent.original": headers.get("user-agent", ""),
            "client.address": client[0],
            "server.address": server[0],
            "locallab.request_id": request_id.get(),
        }
        if server[1]:
            attributes["server.port"] = server[1]
        self._span = self._tracer.start_span(self._method, self._parent, SpanKind.SERVER, attributes)

    def spent(self, model: str, usage: Usage) -> None:
        """Note what the answers took, of a WebSocket's request as a span of its own."""
        end = time.time_ns()
        if self._socket:
            start = end - _nanoseconds(usage.seconds if isinstance(usage, GenerationUsage) else 0.0)
            links = [Link(self._span.get_span_context())]
            span = self._tracer.start_span(self._name("WS"), self._parent, SpanKind.SERVER, links=links, start_time=start)
        else:
            span = self._span
        span.set_attributes(self._attributes(model, usage))
        if isinstance(usage, GenerationUsage) and usage.reasons:
            if "error" in usage.reasons:
                span.set_status(Status(StatusCode.ERROR))
                span.set_attribute("error.type", "generation")
            self._phases(span, usage, end)
        if self._socket:
            span.end(end)

    def end(self, status: int) -> None:
        """End the span of the HTTP request, which may be the handshake of a WebSocket. May be called again."""
        if not self._span.is_recording():
            return
        status = status or GONE
        self._span.update_name(self._name(self._method))
        if route := self._state.get("route"):
            self._span.set_attribute("http.route", route)
        self._span.set_attribute("http.response.status_code", status)
        if status >= 500:
            self._span.set_attribute("error.type", str(status))
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()

    def _name(self, method: str) -> str:
        return f"{method} {self._state['route']}" if self._state.get("route") else method

    def _attributes(self, model: str, usage: Usage) -> dict[str, Any]:
        route = self._state.get("route") or ""
        operation = next((OPERATIONS[word] for word in OPERATIONS if word in route), "text_completion")
        found: dict[str, Any] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "locallab",
            "gen_ai.request.model": model,
            "gen_ai.response.model": model,
            "gen_ai.usage.input_tokens": usage.prompt_tokens,
        }
        if operation != "embeddings":
            found["gen_ai.usage.output_tokens"] = usage.completion_tokens
            found["gen_ai.usage.cache_read.input_tokens"] = usage.cached_tokens
        if isinstance(usage, GenerationUsage) and usage.reasons:
            found["gen_ai.response.finish_reasons"] = usage.reasons
        return found

    def _phases(self, span: Any, spent: GenerationUsage, end: int) -> None:
        """Add the spans of what the engine did, which ended now."""
        begin = end - _nanoseconds(spent.seconds)
        computing = begin + _nanoseconds(spent.queue_seconds)
        answering = end - _nanoseconds(spent.answer_seconds)
        read = {
            "gen_ai.usage.input_tokens": spent.prompt_tokens,
            "gen_ai.usage.cache_read.input_tokens": spent.cached_tokens,
        }
        wrote = {"gen_ai.usage.output_tokens": spent.completion_tokens, "gen_ai.response.finish_reasons": spent.reasons}
        phases: Sequence[tuple[str, int, int, dict[str, Any]]] = [
            ("queue", begin, computing, {}),
            ("prefill", computing, answering, read),
            ("decode", answering, end, wrote),
        ]
        for name, first, last, attributes in phases:
            if name == "queue" or last > first or (name == "decode" and spent.completion_tokens):
                phase = self._tracer.start_span(name, set_span_in_context(span), attributes=attributes, start_time=first)
                phase.end(last)


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)


class Tracing:
    """Middleware that makes a span of each request."""

    def __init__(self, app: ASGIApp, traces: Traces) -> None:
        self._app = app
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        status = 0
        scope.setdefault("state", {})
        scope["state"]["trace"] = trace = Trace(self._traces, scope)

        def relay(message: Message) -> Awaitable[None]:  # not a coroutine: it runs for every token
            nonlocal status
            if not status:
                if message["type"] in BEGINNINGS:
                    status = message.get("status", 101)
                elif message["type"] == "websocket.close":
                    status = 403
                if message["type"] != "http.response.start":
                    trace.end(status)  # a handshake is over; its connection may last for hours
            return send(message)

        try:
            await self._app(scope, receive, relay)
        finally:
            trace.end(status)


class TracedSpending:
    """Middleware behind `Auth`, which has said what counts the usage of a request: that goes into its span too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            trace, spend = scope["state"]["trace"], scope["state"]["spend"]

            def both(model: str, usage: Usage) -> None:
                spend(model, usage)
                trace.spent(model, usage)

            scope["state"]["spend"] = both
        await self._app(scope, receive, send)
