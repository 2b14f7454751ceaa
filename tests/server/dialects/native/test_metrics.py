"""/metrics: exact counts in Prometheus's format, which do not fall when models are unloaded."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.sync.client import connect

from locallab.engine.costs import StepCosts
from tests.support.fake_engine import TEXT
from tests.support.http_server import Serve, Served
from tests.support.tiny_server import tiny_server
from tests.support.wait import until

LENGTH = len(TEXT.encode())


def scrape(http: httpx.Client) -> dict[str, float]:
    """Return all of our samples by name and labels, such as `prompt_tokens_total{model=tiny:1b}`."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(http.get("/metrics").text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[sample.name.removeprefix("locallab_") + (f"{{{labels}}}" if labels else "")] = sample.value
    return found


def test_content_type_and_names(served: Served) -> None:
    response = served.http.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    families = list(text_string_to_metric_families(response.text))
    assert all(family.name.startswith(("locallab", "process_")) and family.documentation for family in families)
    assert {family.type for family in families} <= {"counter", "gauge", "histogram"}
    openmetrics = served.http.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
    assert openmetrics.text.endswith("# EOF\n")


def test_tokens_and_requests_are_counted(serve: Serve) -> None:
    with serve() as served:
        before = scrape(served.http)
        assert before["completion_tokens_total{model=tiny:1b}"] == 0
        for _ in range(2):
            assert served.http.post("/generate", json={"prompt": "hi"}).status_code == 200
        served.http.post("/generate", json={})
        served.http.post("/generate/", json={"prompt": "hi", "model_id": "no-such"})
        after = scrape(served.http)
        assert after["completion_tokens_total{model=tiny:1b}"] == 2 * LENGTH
        assert after["prompt_tokens_total{model=tiny:1b}"] == 2 * 3
        assert after["http_requests_total{route=/generate,status=200}"] == 2
        assert after["http_requests_total{route=/generate,status=400}"] == 1
        assert after["http_requests_total{route=/generate,status=404}"] == 1
        assert after["http_requests_in_flight"] == 1  # this one
        assert all(value >= before[name] for name, value in after.items() if name in before and "_total" in name)


def test_routes_are_templates(served: Served) -> None:
    before = scrape(served.http)
    for path in ("/v1/models/some/model", "/no/such/path", "/no/such/other", "/health//"):
        served.http.get(path)
    after = scrape(served.http)
    grown = {name: after[name] - before.get(name, 0) for name in after if name.startswith("http_requests_total")}
    grown = {name: count for name, count in grown.items() if count}
    assert grown == {
        "http_requests_total{route=/v1/models/{id},status=404}": 1,
        "http_requests_total{route=other,status=404}": 2,
        "http_requests_total{route=/health,status=200}": 1,
        "http_requests_total{route=/metrics,status=200}": 1,
    }


def test_what_is_under_way_shows(served: Served) -> None:
    go_on = threading.Event()
    served.script(b"Hi", go_on, b"!")
    with served.http.stream("POST", "/generate", json={"prompt": "hi", "stream": True}) as response:
        lines = response.iter_lines()
        next(lines)
        now = scrape(served.http)
        assert now["http_requests_in_flight"] == 2 and now["requests_running{model=tiny:1b}"] == 1
        go_on.set()
        list(lines)
    assert scrape(served.http)["http_requests_in_flight"] == 1


def test_times_are_histograms(serve: Serve) -> None:
    with serve() as served:
        totals = served.engine.totals
        for seconds in (0.001, 0.002, 3.0, 99.0):
            totals.inter_token.observe(seconds)
        found = scrape(served.http)
        assert found["inter_token_seconds_bucket{le=0.001,model=tiny:1b}"] == 1
        assert found["inter_token_seconds_bucket{le=0.0025,model=tiny:1b}"] == 2
        assert found["inter_token_seconds_bucket{le=10.0,model=tiny:1b}"] == 3
        assert found["inter_token_seconds_bucket{le=+Inf,model=tiny:1b}"] == 4
        assert found["inter_token_seconds_count{model=tiny:1b}"] == 4
        assert found["inter_token_seconds_sum{model=tiny:1b}"] == totals.inter_token.sum
        assert found["time_to_first_token_seconds_count{model=tiny:1b}"] == 0
        assert found["step_seconds_count{model=tiny:1b}"] == 0


def test_prompts_by_what_the_cache_had(serve: Serve) -> None:
    with serve() as served:
        for cached, tier in ((0, "resident"), (4, "resident"), (5, "host")):
            served.engine.cached, served.engine.tier = cached, tier  # type: ignore[assignment]
            served.http.post("/generate", json={"prompt": "hello there"})
        found = {name: value for name, value in scrape(served.http).items() if name.startswith("prefix_cache") and value}
        assert found == {
            "prefix_cache_requests_total{model=tiny:1b,reason=first time}": 1,
            "prefix_cache_requests_total{model=tiny:1b,reason=diverged}": 2,
            "prefix_cache_missed_tokens_total{model=tiny:1b,reason=first time}": 12,
            "prefix_cache_missed_tokens_total{model=tiny:1b,reason=diverged}": 15,
            "prefix_cache_hit_tokens_total{model=tiny:1b,tier=resident}": 4,
            "prefix_cache_hit_tokens_total{model=tiny:1b,tier=host}": 5,
        }


def test_host_ram_of_prefixes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StepCosts, "pays", lambda *_: True)  # a tiny model computes as fast as it saves
    with tiny_server(tmp_path, cache_ram_mib=3) as tiny:
        found = scrape(tiny.http)
        assert found["prefix_cache_limit_bytes{model=chat}"] == 3 << 20 and not found["prefix_cache_stored_bytes{model=chat}"]
        tiny.post("/v1/completions", prompt="a long text " * 10, max_tokens=1)
        until(lambda: scrape(tiny.http)["prefix_cache_stored_bytes{model=chat}"] > 0)


def test_loads_and_what_engines_did_that_are_gone(serve: Serve) -> None:
    with serve() as served:
        served.http.post("/generate", json={"prompt": "hi"})
        served.http.post("/models/load", json={"model_id": "other:2b"})
        assert served.http.post("/models/load", json={"model_id": "broken:3b"}).status_code == 500
        served.http.post("/generate", json={"prompt": "hi", "model_id": "other:2b"})
        served.http.post("/models/load", json={"model_id": "tiny:1b"})
        served.http.post("/generate", json={"prompt": "hi", "model_id": "tiny:1b"})
        gc.collect()
        found = [scrape(served.http) for _ in range(2)][1]
        assert found["completion_tokens_total{model=tiny:1b}"] == 2 * LENGTH
        assert found["completion_tokens_total{model=other:2b}"] == LENGTH
        assert found["model_loads_total"] == 3 and found["model_load_failures_total"] == 1
        assert found["model_load_seconds_total"] > 0
        assert found["models_loaded"] == served.http.get("/system/info").json()["models"].__len__()
        assert found["model_context_tokens{model=tiny:1b}"] == 512
        assert any(name.startswith("model_info{") and "model=tiny:1b" in name for name in found)
        assert found["process_resident_memory_bytes"] > 0


def test_websockets_are_counted(served: Served) -> None:
    name = "http_requests_total{route=/api/v1/assistant/stream,status=101}"
    before = scrape(served.http)
    with connect(served.url.replace("http", "ws", 1) + "/api/v1/assistant/stream"):
        assert scrape(served.http)["websockets_open"] == before["websockets_open"] + 1
    until(lambda: scrape(served.http)["websockets_open"] == before["websockets_open"])
    assert scrape(served.http)[name] == before.get(name, 0) + 1
