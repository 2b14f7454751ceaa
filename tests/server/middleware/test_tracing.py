from __future__ import annotations

import itertools
import json
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from locallab.errors import ConfigError, EngineFailure
from locallab.server.app import create_app
from locallab.server.dialects.assistant.websocket import PATH
from locallab.server.middleware.tracing import Traces
from locallab.settings import ServerSettings
from tests.support.fake_engine import say
from tests.support.fake_pool import making
from tests.support.http_server import Serve
from tests.support.otlp_collector import Collector, attributes, collecting
from tests.support.replicas import cluster_in
from tests.support.tiny_server import tiny_server
from tests.support.wait import PATIENCE, until

HELLO = {"messages": [{"role": "user", "content": "Hello"}]}
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collecting(monkeypatch) as found:
        yield found


def test_a_request_is_a_span_with_its_phases(serve: Serve, collector: Collector) -> None:
    with serve(otel=True) as served:
        served.script(*say("Hello there", 1))
        served.engine.cached = 4
        headers = {"x-request-id": "mine", "user-agent": "test"}
        answer = served.http.post("/chat/completions", json=HELLO, headers=headers).json()
    [span] = collector.named("POST /v1/chat/completions")
    found = attributes(span)
    expected = {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "url.path": "/chat/completions",
        "url.scheme": "http",
        "client.address": "127.0.0.1",
        "user_agent.original": "test",
        "locallab.request_id": "mine",
        "gen_ai.operation.name": "chat",
        "gen_ai.response.model": "tiny:1b",
        "gen_ai.usage.input_tokens": answer["usage"]["prompt_tokens"],
        "gen_ai.usage.output_tokens": answer["usage"]["completion_tokens"],
        "gen_ai.usage.cache_read.input_tokens": 4,
        "gen_ai.response.finish_reasons": ["stop"],
    }
    assert {name: found.get(name) for name in expected} == expected
    assert (span.kind, span.parent_span_id, span.status.code) == (Span.SPAN_KIND_SERVER, b"", Status.STATUS_CODE_UNSET)
    phases = collector.below(span)
    assert phases[0].name == "queue" and {phase.name for phase in phases} <= {"queue", "prefill", "decode"}
    assert span.start_time_unix_nano <= phases[0].start_time_unix_nano
    assert all(one.end_time_unix_nano == two.start_time_unix_nano for one, two in itertools.pairwise(phases))
    assert phases[-1].end_time_unix_nano <= span.end_time_unix_nano
    assert collector.resource["service.name"] == "locallab"


def test_the_clients_span_is_the_parent(serve: Serve, collector: Collector) -> None:
    with serve(otel=True) as served:
        served.http.get("/health", headers={"traceparent": PARENT, "tracestate": "a=b"})
        served.http.get("/health/live", headers={"traceparent": "00-nonsense"})
    [span], [other] = collector.named("GET /health"), collector.named("GET /health/live")
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == tuple(PARENT.split("-")[1:3])
    assert span.trace_state == "a=b"
    assert other.parent_span_id == b""


def test_a_client_that_does_not_sample_is_heeded(serve: Serve, collector: Collector) -> None:
    with serve(otel=True) as served:
        served.http.get("/health", headers={"traceparent": PARENT[:-2] + "00"})
        served.http.get("/health/live")
    collector.named("GET /health/live")
    assert not collector._named("GET /health")


def test_a_stream_ends_with_its_last_byte(serve: Serve, collector: Collector) -> None:
    with serve(otel=True) as served:
        go = threading.Event()
        served.script(b"one", go, b"two")
        with served.http.stream("POST", "/v1/chat/completions", json={**HELLO, "stream": True}) as response:
            lines = response.iter_lines()
            next(lines)
            time.sleep(0.05)
            assert not collector._named("POST /v1/chat/completions")
            go.set()
            list(lines)
    [span] = collector.named("POST /v1/chat/completions")
    assert attributes(span)["gen_ai.response.finish_reasons"] == ["stop"]
    assert span.end_time_unix_nano - span.start_time_unix_nano > 50e6


def test_a_client_that_leaves_is_no_error(serve: Serve, collector: Collector) -> None:
    with serve(otel=True) as served:
        served.script(b"one", threading.Event())
        with httpx.stream("POST", f"{served.url}/v1/completions", json={"prompt": "x", "stream": True}) as response:
            next(response.iter_lines())
        [span] = collector.named("POST /v1/completions")
        [queue] = collector.named("queue")
    assert span.status.code == Status.STATUS_CODE_UNSET
    assert queue.parent_span_id == span.span_id
    cancelled = [attributes(each).get("gen_ai.response.finish_reasons") for each in collector.below(span)]
    assert ["cancelled"] in cancelled


def test_what_fails_is_an_error(serve: Serve, collector: Collector) -> None:
    with serve(otel=True) as served:
        served.script(EngineFailure("llama_decode failed"))
        assert served.http.post("/v1/chat/completions", json=HELLO).status_code == 500
        assert served.http.get("/nowhere").status_code == 404
    [span], [missing] = collector.named("POST /v1/chat/completions"), collector.named("GET")
    assert (span.status.code, attributes(span)["error.type"]) == (Status.STATUS_CODE_ERROR, "500")
    assert (missing.status.code, attributes(missing)["http.response.status_code"]) == (Status.STATUS_CODE_UNSET, 404)


def test_a_stream_that_breaks_is_an_error(serve: Serve, collector: Collector) -> None:
    with serve(otel=True) as served:
        served.script(b"one", EngineFailure("llama_decode failed"))
        served.http.post("/v1/chat/completions", json={**HELLO, "stream": True}).read()
    [span] = collector.named("POST /v1/chat/completions")
    assert attributes(span)["http.response.status_code"] == 200
    assert (span.status.code, attributes(span)["error.type"]) == (Status.STATUS_CODE_ERROR, "generation")


def test_a_request_of_a_websocket_is_a_span(serve: Serve, collector: Collector) -> None:
    with serve(otel=True) as served:
        served.script(*say("Hi", 1))
        url = f"ws{served.url.removeprefix('http')}{PATH}"
        with connect(url, additional_headers={"traceparent": PARENT}, open_timeout=PATIENCE) as talk:
            [handshake] = collector.named(f"GET {PATH}")  # before the connection ends
            for _ in range(2):
                talk.send(json.dumps({"task": "chat", "prompt": "Hi"}))
                while json.loads(talk.recv(PATIENCE))["type"] != "done":
                    pass
            spans = collector.named(f"WS {PATH}", 2)
        with pytest.raises(InvalidStatus), connect(url, origin="https://evil.example"):  # type: ignore[arg-type]
            pass
        refused = collector.named(f"GET {PATH}", 2)[1]
    assert attributes(handshake)["http.response.status_code"] == 101
    assert attributes(refused)["http.response.status_code"] == 403
    for span in spans:
        assert span.kind == Span.SPAN_KIND_SERVER
        assert (span.trace_id.hex(), span.parent_span_id.hex()) == tuple(PARENT.split("-")[1:3])
        assert span.links[0].span_id == handshake.span_id
        assert attributes(span)["gen_ai.usage.output_tokens"] == 2
        assert collector.below(span)[0].name == "queue"


def test_the_engines_own_times(collector: Collector, tmp_path: Path) -> None:
    with tiny_server(tmp_path, otel=True) as served:
        body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "ignore_eos": True}
        timings = served.http.post("/v1/chat/completions", json=body).json()["timings"]
        served.http.post("/v1/embeddings", json={"model": "embed", "input": "hello"}).raise_for_status()
    [span] = collector.named("POST /v1/chat/completions")
    queue, prefill, decode = collector.below(span)
    assert [each.name for each in (queue, prefill, decode)] == ["queue", "prefill", "decode"]
    assert queue.end_time_unix_nano == prefill.start_time_unix_nano
    assert prefill.end_time_unix_nano == decode.start_time_unix_nano
    assert decode.end_time_unix_nano <= span.end_time_unix_nano
    assert milliseconds(prefill) == pytest.approx(timings["prompt_ms"], abs=0.01)
    assert milliseconds(decode) == pytest.approx(timings["predicted_ms"], abs=0.01)
    assert attributes(prefill)["gen_ai.usage.input_tokens"] == attributes(span)["gen_ai.usage.input_tokens"] > 0
    assert attributes(decode)["gen_ai.usage.output_tokens"] == 8
    assert attributes(span)["gen_ai.response.finish_reasons"] == ["length"]
    found = attributes(collector.named("POST /v1/embeddings")[0])
    assert (found["gen_ai.operation.name"], found["gen_ai.response.model"]) == ("embeddings", "embed")
    assert found["gen_ai.usage.input_tokens"] == 3


def test_the_front_of_a_cluster_has_the_phases_of_its_replicas(collector: Collector, tmp_path: Path) -> None:
    with cluster_in(tmp_path, 1, otel=True) as cluster:
        usage = cluster.http.post("/v1/chat/completions", json=HELLO).json()["usage"]
    [span] = collector.named("POST /v1/chat/completions")
    assert attributes(span)["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    assert collector.below(span)[0].name == "queue"
    assert "decode" in {each.name for each in collector.below(span)}


def milliseconds(span: Span) -> float:
    return (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6


def test_keys_are_in_no_span(serve: Serve, collector: Collector) -> None:
    with serve(otel=True, api_key="ll-secret") as served:
        headers = {"authorization": "Bearer ll-secret"}
        assert served.http.get("/v1/models?api_key=ll-secret", headers=headers).status_code == 200
    collector.named("GET /v1/models")
    assert all(b"ll-secret" not in span.SerializeToString() for span in collector.spans)


def test_a_collector_that_is_gone_is_one_line_and_slows_nothing(
    serve: Serve, collector: Collector, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")

    def said(text: str) -> list[str]:
        return [record.getMessage() for record in caplog.records if text in record.getMessage()]

    collector.status = 400
    with serve(otel=True) as served:
        for _ in range(3):
            assert served.http.post("/v1/chat/completions", json=HELLO).status_code == 200
            time.sleep(0.05)
        until(lambda: bool(said("traces cannot be sent")))
        collector.status = 200
        served.http.get("/health")
        until(lambda: bool(said("traces can be sent again")))
    [line] = said("traces cannot be sent")
    assert collector.url in line
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]


def test_the_end_does_not_wait_for_a_collector_that_says_nothing(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("locallab.server.middleware.tracing.PARTING", 0.2)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "30")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with serve(otel=True) as served:
            served.http.get("/health")
            began = time.monotonic()
        assert time.monotonic() - began < 10


def test_a_server_that_does_not_start_leaves_no_thread(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with making(tmp_path) as made, pytest.raises(ConfigError, match="native_rate"):
        create_app(made.pool, ServerSettings(otel=True, native_rate="none"))
    assert not [thread for thread in set(threading.enumerate()) - before if "Otel" in thread.name]


@pytest.mark.parametrize("name", ["OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"])
def test_another_protocol_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "grpc")
    with pytest.raises(ConfigError, match=f"{name}: traces are sent by http/protobuf only, got 'grpc'"):
        Traces()


def test_the_standard_variables_name_the_service(serve: Serve, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=mine,deployment.environment=test")
    with serve(otel=True) as served:
        served.http.get("/health")
    collector.named("GET /health")
    assert (collector.resource["service.name"], collector.resource["deployment.environment"]) == ("mine", "test")


PROGRAM = """if True:
    import sys
    from pathlib import Path
    from locallab.models.registry import Registry
    from locallab.models.store import Store
    from locallab.pool import Pool
    from locallab.server.app import create_app
    from locallab.settings import ServerSettings
    if "missing" in sys.argv:
        sys.modules["opentelemetry"] = None
    app = create_app(Pool(Registry(), Store(Path(sys.argv[1]))), ServerSettings(otel="missing" in sys.argv))
    print([each.cls.__name__ for each in app.user_middleware if "Trac" in each.cls.__name__])
    print([name for name in sys.modules if name.startswith("opentelemetry")])
"""


def run(*arguments: str) -> Any:
    return subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, timeout=PATIENCE)


def test_off_it_is_not_there(tmp_path: Path) -> None:
    assert run(str(tmp_path)).stdout == "[]\n[]\n"


def test_a_missing_library_is_named(tmp_path: Path) -> None:
    done = run(str(tmp_path), "missing")
    assert done.stderr.splitlines()[-1].endswith(
        "ConfigError: otel: needs OpenTelemetry: pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http"
    )
