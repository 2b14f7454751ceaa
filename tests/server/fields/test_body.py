"""Errors of wrong requests in the dialect of the route, spellings of paths, and the middleware."""

from __future__ import annotations

import asyncio
import io
import logging
import socket
from typing import Any

import pytest

from locallab import logs
from locallab.server import http_protocol
from locallab.server.middleware import Failsafe
from tests.support.http_server import Serve, Served, running_as_served

USER = [{"role": "user", "content": "hi"}]
POSTS = ["/generate", "/chat", "/models/load", "/v1/chat/completions", "/v1/completions"]

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "temperature as text": ({"temperature": "hot"}, "temperature"),
    "temperature below 0": ({"temperature": -0.1}, "temperature"),
    "temperature above 100": ({"temperature": 101}, "temperature"),
    "top_p 0": ({"top_p": 0}, "top_p"),
    "top_p above 1": ({"top_p": 1.1}, "top_p"),
    "top_k -2": ({"top_k": -2}, "top_k"),
    "top_k as float": ({"top_k": 1.5}, "top_k"),
    "min_p": ({"min_p": -1}, "min_p"),
    "typical_p": ({"typical_p": 0}, "typical_p"),
    "repetition_penalty": ({"repetition_penalty": 0}, "repetition_penalty"),
    "repeat_penalty": ({"repeat_penalty": -1}, "repeat_penalty"),
    "frequency_penalty": ({"frequency_penalty": 2.1}, "frequency_penalty"),
    "presence_penalty": ({"presence_penalty": -2.1}, "presence_penalty"),
    "penalty_window": ({"penalty_window": -2}, "penalty_window"),
    "repeat_last_n": ({"repeat_last_n": 2**31}, "repeat_last_n"),
    "logit_bias as list": ({"logit_bias": [1]}, "logit_bias"),
    "logit_bias of no text": ({"logit_bias": [["", 1]]}, "logit_bias"),
    "logit_bias true": ({"logit_bias": [["word", True]]}, "logit_bias"),
    "logit_bias of half a token": ({"logit_bias": [[1.5, 1]]}, "logit_bias"),
    "logit_bias of three": ({"logit_bias": [[1, 1, 1]]}, "logit_bias"),
    "logit_bias as text": ({"logit_bias": {"1": "x"}}, "logit_bias"),
    "logit_bias too large": ({"logit_bias": {"1": 101}}, "logit_bias"),
    "logit_bias of no token": ({"logit_bias": {"258": 1}}, "logit_bias"),
    "seed as text": ({"seed": "x"}, "seed"),
    "seed too long": ({"seed": 2**65}, "seed"),
    "stop as number": ({"stop": 1}, "stop"),
    "stop of numbers": ({"stop": ["a", 1]}, "stop[1]"),
    "stop_token_ids of no token": ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
    "stop_token_ids as text": ({"stop_token_ids": ["a"]}, "stop_token_ids[0]"),
    "max_tokens -2": ({"max_tokens": -2}, "max_tokens"),
    "max_tokens as text": ({"max_tokens": "5"}, "max_tokens"),
    "ignore_eos as number": ({"ignore_eos": 1}, "ignore_eos"),
    "stream as text": ({"stream": "yes"}, "stream"),
}

WRONG_OPENAI: dict[str, tuple[dict[str, Any], str]] = {
    "n 0": ({"n": 0}, "n"),
    "n 129": ({"n": 129}, "n"),
    "model as number": ({"model": 1}, "model"),
    "stream_options as text": ({"stream_options": "x"}, "stream_options"),
    "include_usage as text": ({"stream_options": {"include_usage": "x"}}, "stream_options.include_usage"),
}

WRONG_CHAT: dict[str, tuple[dict[str, Any], str]] = {
    "max_completion_tokens": ({"max_completion_tokens": -2}, "max_completion_tokens"),
    "messages": ({"messages": None}, "messages"),
    "role": ({"messages": [{"role": "robot"}]}, "messages[0].role"),
    "tools as text": ({"tools": "x"}, "tools"),
    "response_format as text": ({"response_format": "json"}, "response_format"),
}

WRONG_BODIES: dict[str, bytes] = {
    "nothing": b"",
    "blanks": b" \n",
    "no JSON": b"{",
    "text": b'"hi"',
    "list": b"[]",
    "null": b"null",
    "NaN": b'{"temperature": NaN}',
    "no UTF-8": b'{"prompt": "\xff"}',
    "nested": b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "huge number": b'{"temperature": 1e999}',
}


@pytest.mark.parametrize(("fields", "name"), WRONG.values(), ids=WRONG)
def test_native_names_the_field(served: Served, fields: dict[str, Any], name: str) -> None:
    for path in ("/generate", "/chat"):
        response = served.http.post(path, json={"prompt": "hi", "messages": USER, **fields})
        assert response.status_code == 400
        assert list(response.json()) == ["detail"] and response.json()["detail"].startswith(f"{name}: ")


@pytest.mark.parametrize(("fields", "name"), [*WRONG.values(), *WRONG_OPENAI.values()], ids=[*WRONG, *WRONG_OPENAI])
def test_openai_names_the_field(served: Served, fields: dict[str, Any], name: str) -> None:
    for path in ("/v1/chat/completions", "/v1/completions"):
        response = served.http.post(path, json={"prompt": "hi", "messages": USER, **fields})
        error = response.json()["error"]
        assert response.status_code == 400 and error["message"].startswith(f"{name}: ")
        assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", name, None)


@pytest.mark.parametrize(("fields", "name"), WRONG_CHAT.values(), ids=WRONG_CHAT)
def test_chat_names_the_field(served: Served, fields: dict[str, Any], name: str) -> None:
    response = served.http.post("/v1/chat/completions", json={"messages": USER, **fields})
    assert response.status_code == 400 and response.json()["error"]["param"] == name


@pytest.mark.parametrize("body", WRONG_BODIES.values(), ids=WRONG_BODIES)
@pytest.mark.parametrize("path", POSTS)
def test_wrong_bodies(served: Served, path: str, body: bytes) -> None:
    response = served.http.post(path, content=body)
    if body == b'{"temperature": 1e999}' and path == "/models/load":
        assert response.json() == {"detail": "model_id: is missing"}
    assert response.status_code == 400
    assert ("error" if path.startswith("/v1") else "detail") in response.json()


@pytest.mark.parametrize(
    ("path", "detail"),
    [
        ("/generate", "prompt: is missing"),
        ("/chat", "messages: is missing"),
        ("/models/load", "model_id: is missing"),
    ],
)
def test_missing_field(served: Served, path: str, detail: str) -> None:
    for body in ({}, {"prompt": None, "messages": None, "model_id": None}):
        response = served.http.post(path, json=body)
        assert (response.status_code, response.json()) == (400, {"detail": detail})


def test_reasons_are_readable(served: Served) -> None:
    def detail(**fields: Any) -> Any:
        return served.http.post("/generate", json={"prompt": "hi", **fields}).json()["detail"]

    assert detail(top_p=0) == "top_p: must be above 0 and at most 1, got 0"
    assert detail(top_k=-2) == "top_k: must be at least -1, got -2"
    assert detail(max_tokens="5") == "max_tokens: expected int, got str"
    assert detail(stop=5) == "stop: expected str | array, got int"
    assert served.http.post("/generate", content=b"[]").json()["detail"] == "the body is wrong: expected object, got array"
    assert served.http.post("/generate", content=b"").json()["detail"] == "the body is empty: send a JSON object"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nope", 404), ("GET", "/generate", 405), ("POST", "/models/current", 405), ("DELETE", "/", 405)],
)
def test_unknown_paths_native(served: Served, method: str, path: str, status: int) -> None:
    response = served.http.request(method, path)
    reason = "no such path" if status == 404 else "method not allowed"
    assert (response.status_code, response.json()) == (status, {"detail": f"{reason}: {method} {path}"})
    assert ("allow" in response.headers) == (status == 405)


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/v1/nope", 404), ("GET", "/v1", 404), ("GET", "/v1/chat/completions", 405)]
)
def test_unknown_paths_openai(served: Served, method: str, path: str, status: int) -> None:
    response = served.http.request(method, path)
    assert response.status_code == status and response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "path", ["/", "/v1/models", "/models", "/v1/models/tiny:1b", "/models/tiny%3A1b", "/v1/models?client_version=1"]
)
def test_get_and_head(served: Served, path: str) -> None:
    assert served.http.get(path).status_code == 200
    head = served.http.head(path)
    assert head.status_code == 200 and head.content == b""


def test_ids_with_slashes(served: Served) -> None:
    for path in ("/v1/models/org/model", "/models/org%2Fmodel"):
        response = served.http.get(path)
        assert response.status_code == 404 and "'org/model'" in response.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
def test_body_limit(serve: Serve, path: str) -> None:
    def chunks() -> Any:
        yield from [b" " * 2**18] * 8

    with serve(max_body_mib=1) as served:
        for content in (b" " * (2**20 + 1), chunks()):
            response = served.http.post(path, content=content)
            assert response.status_code == 413
            message = response.json()["error"]["message"] if path.startswith("/v1") else response.json()["detail"]
            assert message == "the request body is larger than 1 MiB"
        assert served.http.post("/generate", content=b'{"prompt": "hi"}' + b" " * (2**20 - 16)).status_code == 200


def test_declared_length_is_refused_unread(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "LINGER", 0.1)
    with (
        serve(max_body_mib=1, under=running_as_served) as served,
        socket.create_connection((served.http.base_url.host, served.http.base_url.port)) as sock,
    ):
        sock.sendall(b"POST /generate HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999999\r\n\r\n")
        answer = b""
        while more := sock.recv(65536):  # until the server hangs up
            answer += more
    assert answer.startswith(b"HTTP/1.1 413") and answer.endswith(b'{"detail":"the request body is larger than 1 MiB"}')


@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
def test_unexpected_exception(served: Served, path: str, caplog: pytest.LogCaptureFixture) -> None:
    def script(*_: Any) -> Any:
        raise ZeroDivisionError("a secret")

    served.engine.script = script
    response = served.http.post(path, json={"prompt": "hi"})
    assert response.status_code == 500 and "secret" not in response.text and "Traceback" not in response.text
    message = "internal error; the server's log has the details"
    if path.startswith("/v1"):
        assert response.json() == {"error": {"message": message, "type": "server_error", "param": None, "code": None}}
    else:
        assert response.json() == {"detail": message}
    [record] = [record for record in caplog.records if record.exc_info]
    assert record.getMessage() == f"POST {path} failed"


def test_exception_after_the_first_byte_ends_the_connection() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        raise ZeroDivisionError

    async def send(message: Any) -> None:
        sent.append(message)

    sent: list[Any] = []
    with pytest.raises(ZeroDivisionError):
        asyncio.run(Failsafe(app)({"type": "http"}, send, send))
    assert len(sent) == 1


def test_access_log(serve: Serve) -> None:
    stream = io.StringIO()
    with logs.configured("info", "text", stream), serve() as served:
        response = served.http.post("/v1//completions/", json={"prompt": "hi"}, headers={"x-request-id": "mine-1"})
        assert response.headers["x-request-id"] == "mine-1"
        ids = {served.http.get("/nope").headers["x-request-id"] for _ in range(2)}
        assert len(ids) == 2
    lines = [line for line in stream.getvalue().splitlines() if "locallab.access" in line]
    assert len(lines) == 3
    assert " locallab.access [mine-1]: 127.0.0.1 POST /v1//completions/ 200 " in lines[0] and lines[0].endswith(" ms")
    assert "]: 127.0.0.1 GET /nope 404 " in lines[1] and {line.split("[")[1].split("]")[0] for line in lines[1:]} == ids


@pytest.mark.parametrize("sent", ["", "x" * 129, "a\tb", "é"], ids=["empty", "long", "control", "not ASCII"])
def test_request_id_that_is_not_taken(served: Served, sent: str) -> None:
    response = served.http.get("/health", headers=[(b"x-request-id", sent.encode())])
    assert len(response.headers["x-request-id"]) == 16 and response.headers["x-request-id"] != sent


def test_access_log_can_be_off(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "locallab.access"), serve(access_log=False) as served:
        assert "x-request-id" in served.http.get("/health").headers
    assert not [record for record in caplog.records if record.name == "locallab.access"]


def test_client_that_leaves_in_the_middle_of_its_request(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_connection((served.http.base_url.host, served.http.base_url.port)) as sock:
        sock.sendall(b"POST /generate HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
    assert served.http.get("/health").status_code == 200
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": ["a"] * 2049}),
        ("/v1/chat/completions", {"messages": USER * 32_769}),
        ("/v1/chat/completions", {"messages": USER, "stop": ["a"] * 1025}),
        ("/v1/responses", {"input": USER * 32_769}),
        ("/api/chat", {"messages": USER * 32_769}),
        ("/v1/embeddings", {"input": ["a"] * 32_769}),
        ("/v1/rerank", {"query": "a", "documents": ["a"] * 16_385}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_list_that_is_too_long(served: Served, path: str, body: dict[str, Any]) -> None:
    field = max(body, key=lambda name: len(body[name]))
    answer = served.http.post(path, json={"max_tokens": 1, **body})
    assert answer.status_code == 400
    assert f"{field}: must have at most {len(body[field]) - 1} items, has {len(body[field])}" in answer.text


def test_token_ids_are_no_list_of_texts(served: Served) -> None:
    answer = served.http.post("/v1/completions", json={"prompt": [65] * 3000, "max_tokens": 1})
    assert "maximum context length is 512 tokens. However, your request has 3000 tokens" in answer.text
