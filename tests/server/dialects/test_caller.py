"""Whose request the engine computes, in every dialect: the key's, else the address's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from websockets.sync.client import connect

from locallab.engine import Caller
from locallab.keys import KeyStore
from tests.support.dialect_requests import ROUTES
from tests.support.fake_engine import FIM
from tests.support.http_server import Serve


@pytest.mark.parametrize("path", ROUTES)
def test_every_answer_is_computed_for_its_caller(serve: Serve, tmp_path: Path, path: str) -> None:
    key, secret = KeyStore(tmp_path / "keys.json").create("alice", "pro")
    with serve(engine={"fim": FIM}) as served:
        sent = served.http.post(path, json=ROUTES[path], headers={"x-api-key": secret})
        assert sent.status_code == 200, sent.text
        assert [(each.id, each.weight) for each in served.engine.callers] == [(f"key:{key.id}", 2)]


def test_a_conversation_over_a_websocket_has_its_caller_too(serve: Serve, tmp_path: Path) -> None:
    key, secret = KeyStore(tmp_path / "keys.json").create("bob", "free")
    with serve() as served, connect(f"{served.url.replace('http', 'ws')}/api/v1/assistant/stream?api_key={secret}") as socket:
        socket.send(json.dumps({"prompt": "some words", "task": "chat"}))
        while json.loads(socket.recv(10))["type"] != "done":
            pass
        assert [(each.id, each.weight) for each in served.engine.callers] == [(f"key:{key.id}", 1)]


def test_without_a_key_callers_are_told_apart_by_the_address_that_a_trusted_proxy_reports(serve: Serve) -> None:
    with serve(trusted_proxies="127.0.0.1") as served:
        for address in ("1.2.3.4", "1.2.3.5"):
            served.http.post("/generate", json={"prompt": "hi"}, headers={"x-forwarded-for": address})
        assert served.engine.callers == [Caller(id="address:1.2.3.4"), Caller(id="address:1.2.3.5")]


def test_each_of_several_answers_counts(serve: Serve) -> None:
    with serve() as served:
        for body in ({"n": 3}, {"best_of": 4}):
            served.http.post("/v1/completions", json={"prompt": "hi", **body}).raise_for_status()
        assert served.engine.callers == [Caller(id="address:127.0.0.1")] * 7
