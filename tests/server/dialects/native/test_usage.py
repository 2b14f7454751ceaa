"""GET /api/v1/usage and the usage in /metrics: what requests took, by key and model."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.sync.client import connect

from locallab.keys import KeyStore
from locallab.server.usage import UsageFile, first_day
from tests.support.dialect_requests import ROUTES
from tests.support.fake_engine import FIM, say
from tests.support.http_server import Serve, Served
from tests.support.wait import until

BOS = 1
FIGURES = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens")


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "keys.json")


def headers(store: KeyStore, name: str, role: Any = "use") -> dict[str, str]:
    return {"x-api-key": store.create(name, "free", role)[1]}


def usage(served: Served, sent: dict[str, str] | None = None, **query: Any) -> list[dict[str, Any]]:
    answer = served.http.get("/api/v1/usage", headers=sent, params=query)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["usage"])


def figures(row: dict[str, Any]) -> tuple[int, ...]:
    return tuple(row[name] for name in FIGURES)


@pytest.mark.parametrize("path", ROUTES)
def test_every_answer_counts_for_its_key(serve: Serve, store: KeyStore, path: str) -> None:
    ann = headers(store, "ann")
    with serve(engine={"fim": FIM}) as served:
        served.engine.cached = 2
        assert served.http.post(path, json=ROUTES[path], headers=ann).status_code == 200
        [row] = usage(served, ann)
        [key] = store.read()
        [(prompt, _)] = served.engine.submitted
        assert (row["day"], row["key"], row["name"], row["model"]) == (first_day(1), key.id, "ann", "tiny:1b")
        tokens = re.sub(r"<\w+>", "x", prompt)  # a byte is one, and so is a marker
        assert figures(row)[:3] == (1, len(tokens), 2) and row["completion_tokens"] > 0


def test_a_key_sees_its_own_usage_and_an_admin_that_of_all(serve: Serve, store: KeyStore) -> None:
    ann, bob, root = headers(store, "ann"), headers(store, "bob"), headers(store, "root", "admin")
    with serve() as served:
        for sent in (ann, bob, bob):
            served.http.post("/generate", json={"prompt": "hi"}, headers=sent)
        assert [(row["name"], row["requests"]) for row in usage(served, ann)] == [("ann", 1)]
        assert [(row["name"], row["requests"]) for row in usage(served, bob)] == [("bob", 2)]
        assert [(row["name"], row["requests"]) for row in usage(served, root)] == [("ann", 1), ("bob", 2)]
        assert served.http.get("/api/v1/usage").status_code == 401


def test_without_keys_usage_is_nobodys_and_shown_to_all(serve: Serve) -> None:
    with serve() as served:
        served.http.post("/generate", json={"prompt": "hi"})
        [row] = usage(served)
        assert (row["key"], row["name"], row["requests"]) == (None, None, 1)


@pytest.mark.parametrize(("body", "times"), [({"n": 3}, 3), ({"best_of": 4}, 4), ({"prompt": ["hi", "hi"]}, 2)])
def test_each_prompt_counts_once_and_every_answer_counts(serve: Serve, body: dict[str, Any], times: int) -> None:
    with serve() as served:
        served.script(*say("four"))
        answer = served.http.post("/v1/completions", json={"prompt": "hi", **body})
        assert answer.status_code == 200
        [row] = usage(served)
        prompts = len(body["prompt"]) if "prompt" in body else 1
        assert figures(row)[:2] == (1, prompts * (BOS + 2)) and row["completion_tokens"] == times * 4


def test_a_refused_request_is_none(serve: Serve) -> None:
    with serve() as served:
        served.engine.full = True
        assert served.http.post("/generate", json={"prompt": "hi"}).status_code == 503
        assert usage(served) == []


def test_an_answer_that_a_client_leaves_counts_as_far_as_it_came(serve: Serve) -> None:
    with serve() as served:
        served.script(*say("abc"), threading.Event())  # more would come later
        with served.http.stream("POST", "/generate", json={"prompt": "hi", "stream": True}) as stream:
            lines = stream.iter_lines()
            while "c" not in json.loads(next(lines).removeprefix("data: ") or "{}").get("response", ""):
                pass
        until(lambda: usage(served) != [])
        [row] = usage(served)
        assert figures(row)[:2] == (1, BOS + 2) and row["completion_tokens"] == 3


def test_a_conversation_over_a_websocket_counts(serve: Serve) -> None:
    with serve() as served, connect(f"{served.url.replace('http', 'ws')}/api/v1/assistant/stream") as socket:
        socket.send(json.dumps({"prompt": "some words", "task": "chat"}))
        while json.loads(socket.recv(10))["type"] != "done":
            pass
        assert [row["requests"] for row in usage(served)] == [1]


def test_days(serve: Serve) -> None:
    with serve() as served:
        served.http.post("/generate", json={"prompt": "hi"})
        assert len(usage(served, days=1)) == 1
        for wrong in ("0", "-1", "x", "1.5", "²", "1" * 6, ""):
            refused = served.http.get("/api/v1/usage", params={"days": wrong})
            assert refused.status_code == 400 and refused.json()["detail"].startswith("days: must be a whole number from 1")


def test_usage_outlives_the_server(serve: Serve) -> None:
    for times in (1, 2):
        with serve() as served:
            served.http.post("/generate", json={"prompt": "hi"})
            assert [row["requests"] for row in usage(served)] == [times]
    assert UsageFile().path.exists()


def test_a_disk_that_fails_stops_nothing(serve: Serve) -> None:
    UsageFile().path.mkdir()
    with serve() as served:
        assert served.http.post("/generate", json={"prompt": "hi"}).status_code == 200
        assert [row["requests"] for row in usage(served)] == [1]


def test_metrics_have_the_usage_of_each_key_for_admins(serve: Serve, store: KeyStore) -> None:
    ann, root = headers(store, "ann"), headers(store, "root", "admin")
    with serve() as served:
        served.http.post("/generate", json={"prompt": "hi"}, headers=ann)
        text = served.http.get("/metrics", headers=root).text
        found = {
            sample.name: (sample.labels, sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name.startswith("locallab_key_") and sample.name.endswith("_total")
        }
        assert set(found) == {f"locallab_key_{name}_total" for name in FIGURES}
        assert found["locallab_key_requests_total"] == ({"key": "ann", "model": "tiny:1b"}, 1)
        assert found["locallab_key_prompt_tokens_total"][1] == BOS + 2
        others = served.http.get("/metrics", headers=ann).text
        assert "locallab_key_" not in others and "locallab_http_requests_total" in others
