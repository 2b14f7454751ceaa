"""Every line logged while a request is handled carries the request's id, and so does the answer."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from locallab import logs
from tests.support.echo_model import PATH, ROUTES
from tests.support.fake_engine import say
from tests.support.http_server import Serve
from tests.support.wait import until


@contextlib.contextmanager
def logged() -> Iterator[list[dict[str, Any]]]:
    """Fill the list with the log's entries on exit."""
    stream, entries = io.StringIO(), []
    with logs.configured("info", "json", stream):
        yield entries
    entries += [json.loads(line) for line in stream.getvalue().splitlines()]


def test_what_a_request_logs_carries_its_id(serve: Serve) -> None:
    def script(*_: Any) -> Any:
        logging.getLogger("locallab.test").warning("deep inside")
        raise ZeroDivisionError

    with logged() as entries, serve() as served:
        served.engine.script = script
        failed = served.http.post("/generate", json={"prompt": "hi"}, headers={"x-request-id": "mine"})
        assert (failed.status_code, failed.headers["x-request-id"]) == (500, "mine")
    about = {entry["logger"]: entry.get("request_id") for entry in entries if "locallab" in entry["logger"]}
    assert about["locallab.test"] == about["locallab.access"] == about["locallab.server.middleware.failsafe"] == "mine"


def test_requests_at_once_are_kept_apart(serve: Serve) -> None:
    def script(*_: Any) -> Any:
        logging.getLogger("locallab.test").warning("asked")
        return [b"a", gate, *say("bc")]

    gate = threading.Event()
    with logged() as entries, serve() as served, httpx.Client(base_url=served.url, timeout=30) as other:
        served.engine.script = script
        body = {"prompt": "hi", "stream": True}
        with (
            served.http.stream("POST", "/generate", json=body, headers={"x-request-id": "one"}) as first,
            other.stream("POST", "/generate", json=body, headers={"x-request-id": "two"}) as second,
        ):
            gate.set()
            first.read()
            second.read()
    assert [entry["request_id"] for entry in entries if entry["logger"] == "locallab.test"] == ["one", "two"]
    access = [entry["request_id"] for entry in entries if entry["logger"] == "locallab.access"]
    assert sorted(access) == ["one", "two"]


def test_the_black_box_has_the_requests_under_way(serve: Serve) -> None:
    gate = threading.Event()
    with serve() as served:
        box = served.pool.supervision.box
        served.script(b"a", gate, *say("bc"))
        body, headers = {"prompt": "hi", "stream": True}, {"x-request-id": "mine"}
        with served.http.stream("POST", "/generate", json=body, headers=headers) as answer:
            assert box.requests() == ["mine"]
            gate.set()
            answer.read()
        until(lambda: box.requests() == [])


def test_between_requests_there_is_none(serve: Serve) -> None:
    with logged() as entries, serve() as served:
        served.http.get("/health")
        logging.getLogger("locallab.test").warning("alone")
    [alone] = [entry for entry in entries if entry["logger"] == "locallab.test"]
    assert "request_id" not in alone


def test_refusals_have_one_too(serve: Serve) -> None:
    with serve(api_key="k", rate_limit=True, native_rate="1/hour") as served:
        for headers in ({"host": "evil.example"}, {}, {"x-api-key": "k"}, {"x-api-key": "k"}):
            response = served.http.get("/models/current", headers={**headers, "x-request-id": "mine"})
            assert response.headers.get_list("x-request-id") == ["mine"]


def test_a_websocket_has_one(serve: Serve) -> None:
    with logged() as entries, serve(routes=ROUTES) as served:
        url = served.url.replace("http", "ws") + PATH
        with connect(url, additional_headers={"x-request-id": "mine"}) as socket:
            assert socket.response is not None and socket.response.headers["x-request-id"] == "mine"
        with pytest.raises(InvalidStatus) as refused:
            connect(url, additional_headers={"x-request-id": "other", "origin": "https://evil.example"})
        assert refused.value.response.headers["x-request-id"] == "other"
        with pytest.raises(InvalidStatus):
            connect(url + "/nothing", additional_headers={"x-request-id": "third"})
    lines = [(entry["logger"], entry["request_id"], entry["message"]) for entry in entries if "request_id" in entry]
    ids = [(logger, identity) for logger, identity, _ in lines if logger in ("locallab.echo", "locallab.access")]
    assert ids.count(("locallab.echo", "mine")) == 2 and ids.count(("locallab.access", "mine")) == 1
    messages = {identity: message for logger, identity, message in lines if logger == "locallab.access"}
    assert f" WS {PATH} 101 " in messages["mine"] and f" WS {PATH} 403 " in messages["other"]
    assert f" WS {PATH}/nothing 403 " in messages["third"]
