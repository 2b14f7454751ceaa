"""The replay of clients as a route."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from locallab.keys import KeyStore
from locallab.replay import EXCHANGES, Exchange
from locallab.replay.exchange import Reply, Unmet
from locallab.server.dialects.native import replay
from tests.support.fake_engine import FIM
from tests.support.http_server import Serve, Served
from tests.support.wait import until

ENGINE = {"context": 8192, "fim": FIM}


def replayed(http: httpx.Client, client: str, **headers: str) -> list[dict[str, Any]]:
    response = http.post("/api/v1/replay", json={"client": client}, headers=headers)
    assert response.status_code == 200 and response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.splitlines()]


def test_every_client_is_replayed_with_what_it_sends(serve: Serve, tmp_path: Path) -> None:
    _, key = KeyStore(tmp_path / "keys.json").create("ann", "pro", "use")
    with serve(engine=ENGINE) as served:
        found = replayed(served.http, "Cursor", authorization=f"Bearer {key}")
        usage = served.http.get("/api/v1/usage", headers={"x-api-key": key}).json()["usage"]
        wrong = replayed(served.http, "openai-python", **{"x-api-key": key})[-1]
    assert [each["doing"] for each in found] == [each.doing for each in EXCHANGES if each.client == "Cursor"]
    assert all(each["http_status"] and each["answer"] for each in found)
    assert found[0]["method"] == "POST" and found[0]["path"].endswith("/chat/completions")
    assert all(each["body"]["model"] == "tiny:1b" for each in found)
    assert {row["name"] for row in usage} == {"ann"}, "it counts for the key that asks"
    assert (wrong["doing"], wrong["status"], wrong["http_status"]) == ("sends a wrong key", "ok", 401)
    assert key not in json.dumps(found)


def test_a_long_text_is_described(serve: Serve) -> None:
    with serve(engine=ENGINE) as served:
        found = {each["doing"]: each for each in replayed(served.http, "Roo")}
    assert found["streams a prompt beyond the context"]["body"]["messages"][0]["content"] == "(8,256 words)"
    assert found["streams a prompt beyond the context"]["status"] == "ok"


def test_all_at_once(served: Served) -> None:
    found = served.http.post("/api/v1/replay", json={"client": "Cursor", "stream": False}).json()["outcomes"]
    assert (
        len(found) == 2 and {"doing", "status", "reason", "method", "path", "body", "http_status", "answer"} == found[0].keys()
    )


def test_another_model_than_the_first_one(serve: Serve) -> None:
    body = {"client": "Cursor", "model": "other:2b", "stream": False}
    with serve() as served:
        found = served.http.post("/api/v1/replay", json=body).json()["outcomes"]
    assert found and all(each["body"]["model"] == "other:2b" for each in found)


def test_a_client_that_nobody_knows(served: Served) -> None:
    refused = served.http.post("/api/v1/replay", json={"client": "Netscape"})
    assert refused.status_code == 400 and "client: must be one of openai-python, " in refused.json()["detail"]


def refuse(reply: Reply) -> None:
    raise Unmet("it is not as it should be")


def test_a_reason_comes_with_an_outcome(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "EXCHANGES", [Exchange(client="X", doing="asks", path="/health", method="GET", check=refuse)])
    [outcome] = replayed(served.http, "X")
    assert (outcome["status"], outcome["reason"], outcome["http_status"]) == ("fail", "it is not as it should be", 200)


def test_one_at_a_time_and_a_client_that_leaves_ends_its_own(serve: Serve) -> None:
    with serve(engine=ENGINE) as served:
        gate = threading.Event()

        served.script(gate, b"hi")
        with served.http.stream("POST", "/api/v1/replay", json={"client": "Cursor"}):
            until(lambda: len(served.engine.submitted) == 1)
            with httpx.Client(base_url=served.url) as other, other.stream("POST", "/api/v1/replay", json={"client": "Cursor"}):
                assert len(served.engine.submitted) == 1
        until(lambda: len(served.engine.cancelled) == 1)


def test_the_event_loop_is_free_meanwhile(serve: Serve) -> None:
    async def both(url: str) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=30) as http:
            going = asyncio.ensure_future(http.post("/api/v1/replay", json={"client": "Claude Code"}))
            while not going.done():
                assert (await asyncio.wait_for(http.get("/health/live"), 10)).status_code == 200
            assert (await going).status_code == 200

    with serve(engine=ENGINE) as served:
        asyncio.run(both(served.url))
