"""Keys in headers, queries and subprotocols, on real sockets, and their absence from the log."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus, urlencode

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from locallab import logs
from locallab.errors import Unauthorized
from locallab.keys import KeyStore
from locallab.server.errors import refuse
from locallab.server.middleware.auth import Credentials, from_headers
from tests.support.echo_model import PATH, ROUTES
from tests.support.http_server import Serve, Served

MISSING = "an API key is required: send it as Authorization: Bearer KEY, or in the header x-api-key or api-key"
WRONG = "the API key is not valid"
CLOSED = ["/generate", "/chat", "/models/current", "/api/v1/models/current", "/system/info", "/metrics", "/v1/models", "/nope"]


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "keys.json")


@pytest.fixture
def key(store: KeyStore) -> str:
    return store.create("alice", "free")[1]


def websocket(served: Served, query: str = "", **options: Any) -> ClientConnection:
    return connect(served.url.replace("http", "ws") + PATH + query, **options)


def echo(socket: ClientConnection) -> Any:
    socket.send("hello")
    return json.loads(socket.recv(10))


def test_a_key_is_required_in_the_dialect_of_the_path(serve: Serve, key: str) -> None:
    with serve() as served:
        for headers, message in (
            ({}, MISSING),
            ({"authorization": "Bearer no"}, WRONG),
            ({"x-api-key": "ll-" + "a" * 43}, WRONG),
        ):
            native = served.http.post("/generate", json={"prompt": "hi"}, headers=headers)
            assert (native.status_code, native.json()) == (401, {"detail": message})
            other = served.http.post("/v1/completions", json={"prompt": "hi"}, headers=headers)
            error = {"message": message, "type": "invalid_request_error", "param": None, "code": "invalid_api_key"}
            assert (other.status_code, other.json()) == (401, {"error": error})
            assert native.headers["www-authenticate"] == other.headers["www-authenticate"] == "Bearer"
        assert served.engine.submitted == []


SENT = {
    "bearer": [("Authorization", "Bearer {key}")],
    "bearer in small letters": [("authorization", "bearer  {key}")],
    "x-api-key": [("X-Api-Key", "{key}")],
    "api-key": [("api-key", "{key}")],
    "an empty one beside it": [("Authorization", "Bearer"), ("x-api-key", ""), ("api-key", "{key}")],
    "another beside it": [("Authorization", "Bearer none"), ("x-api-key", "{key}")],
    "another scheme beside it": [("Authorization", "Basic dTpw"), ("x-api-key", "{key}")],
}


@pytest.mark.parametrize("sent", SENT.values(), ids=SENT)
def test_headers_that_carry_a_key(serve: Serve, key: str, sent: list[tuple[str, str]]) -> None:
    headers = [(name, value.format(key=key)) for name, value in sent]
    with serve() as served:
        assert served.http.post("/generate", json={"prompt": "hi"}, headers=headers).status_code == 200
        assert served.http.get("/v1/models", headers=headers).status_code == 200


NOT_SENT = {
    "empty": [("Authorization", ""), ("x-api-key", ""), ("api-key", "")],
    "bearer of nothing": [("Authorization", "Bearer")],
    "basic": [("Authorization", "Basic {key}")],
    "no scheme": [("Authorization", "{key}")],
    "another header": [("x-key", "{key}")],
}


@pytest.mark.parametrize("sent", NOT_SENT.values(), ids=NOT_SENT)
def test_headers_that_carry_none(serve: Serve, key: str, sent: list[tuple[str, str]]) -> None:
    with serve() as served:
        response = served.http.get("/v1/models", headers=[(name, value.format(key=key)) for name, value in sent])
    assert (response.status_code, response.json()["error"]["message"]) == (401, MISSING)


def test_a_query_is_no_place_for_a_key_over_http(serve: Serve, key: str) -> None:
    with serve() as served:
        assert served.http.get("/v1/models", params={"api_key": key}).status_code == 401


def test_the_openai_client(serve: Serve, key: str) -> None:
    with serve() as served:
        client = served.openai
        with pytest.raises(openai.AuthenticationError) as refused:
            client.models.list()
        assert refused.value.code == "invalid_api_key"
        assert client.with_options(api_key=key).models.list().data[0].id == "tiny:1b"


def test_what_needs_no_key(serve: Serve, key: str) -> None:
    with serve() as served:
        for path in ("/", "/health", "/health/ready", "/health/live", "//health/"):
            assert served.http.get(path).status_code == served.http.head(path).status_code == 200
        for path in ("/docs", "/openapi.json"):
            assert served.http.get(path).status_code != 401
        for path in CLOSED:
            assert served.http.get(path).status_code == 401
            assert served.http.options(path).status_code != 401


def test_keys_are_made_and_revoked_while_the_server_runs(serve: Serve, store: KeyStore) -> None:
    with serve() as served:

        def status(secret: str) -> int:
            return served.http.get("/v1/models", headers={"x-api-key": secret}).status_code

        assert served.http.get("/v1/models").status_code == status("whatever") == 200
        _, first = store.create("a", "free")
        _, second = store.create("b", "pro")
        assert served.http.get("/v1/models").status_code == 401
        assert [status(first), status(second), status("none")] == [200, 200, 401]
        store.revoke("a")
        assert [status(first), status(second)] == [401, 200]
        store.revoke("b")
        assert [status(first), status(second)] == [401, 401]


def test_one_key_by_setting_and_keys_by_file(serve: Serve, key: str) -> None:
    with serve(api_key="sesame") as served:
        for secret, status in ((key, 200), ("sesame", 200), ("sesam", 401)):
            assert served.http.get("/v1/models", headers={"api-key": secret}).status_code == status


def test_beyond_this_machine_a_key_is_required_even_if_there_is_none(serve: Serve) -> None:
    with serve(public=True) as served:
        assert served.http.get("/v1/models").status_code == 401
        assert served.http.get("/health").status_code == 200


def test_no_auth_asks_for_nothing(serve: Serve, key: str) -> None:
    with serve(public=True, auth=False, api_key="x") as served:
        assert served.http.get("/v1/models").status_code == 200
        assert served.http.get("/v1/models", headers={"x-api-key": "wrong"}).status_code == 200


@pytest.mark.parametrize("way", ["bearer", "x-api-key", "query", "subprotocol", "subprotocol alone"])
def test_websockets_that_carry_a_key(serve: Serve, key: str, way: str) -> None:
    options: dict[str, dict[str, Any]] = {
        "bearer": {"additional_headers": {"Authorization": f"Bearer {key}"}},
        "x-api-key": {"additional_headers": {"x-api-key": key}},
        "query": {"query": f"?a=1&api_key={quote_plus(key)}&b=2"},
        "subprotocol": {"subprotocols": [Subprotocol("locallab"), Subprotocol(f"locallab.key.{key}")]},
        "subprotocol alone": {"subprotocols": [Subprotocol(f"locallab.key.{key}")]},
    }
    with serve(routes=ROUTES) as served, websocket(served, **options[way]) as socket:
        answer = echo(socket)
        assert (answer["text"], answer["key"]) == ("hello", "alice")
        assert answer["query"] == ("a=1&b=2" if way == "query" else "")
        assert socket.subprotocol == ("locallab" if way == "subprotocol" else None)


@pytest.mark.parametrize("query", ["", "?api_key=", "?api_key=wrong", "?key={key}", "?API_KEY={key}"])
def test_websockets_are_refused_before_they_open(serve: Serve, key: str, query: str) -> None:
    with serve(routes=ROUTES) as served, pytest.raises(InvalidStatus) as refused:
        websocket(served, query.format(key=key))
    response = refused.value.response
    assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
    assert response.body and json.loads(response.body) == {"detail": WRONG if query == "?api_key=wrong" else MISSING}


def test_websockets_need_no_key_where_none_is_required(serve: Serve) -> None:
    with serve(routes=ROUTES) as served, websocket(served, "?api_key=none", subprotocols=[Subprotocol("locallab")]) as socket:
        assert echo(socket)["key"] is None
        assert socket.subprotocol == "locallab"


def test_spellings_of_a_websockets_path(serve: Serve) -> None:
    with serve(routes=ROUTES) as served, connect(served.url.replace("http", "ws") + f"/{PATH}/") as socket:
        assert echo(socket)["text"] == "hello"


def test_a_websocket_ends_when_its_key_is_revoked(serve: Serve, store: KeyStore, key: str) -> None:
    store.create("other", "free")
    with serve(routes=ROUTES) as served, websocket(served, f"?api_key={key}") as socket:
        assert echo(socket)["text"] == "hello"
        store.revoke("alice")
        with pytest.raises(ConnectionClosed):
            echo(socket)


def test_an_open_websocket_ends_when_the_first_key_is_made(serve: Serve, store: KeyStore) -> None:
    with serve(routes=ROUTES) as served, websocket(served) as socket:
        assert echo(socket)["text"] == "hello"
        store.create("first", "free")
        with pytest.raises(ConnectionClosed):
            echo(socket)


def test_without_the_extension_a_websocket_is_closed_unopened() -> None:
    async def send(message: Any) -> None:
        sent.append(message)

    sent: list[Any] = []
    scope = {"type": "websocket", "path": "/x", "headers": []}
    asyncio.run(refuse(scope, send, send, Unauthorized(WRONG)))  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close", "code": 1008, "reason": WRONG}]


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_key_reaches_the_log_even_when_debugging(serve: Serve, key: str, form: str) -> None:
    stream = io.StringIO()
    others = [secrets.token_hex(16) for _ in range(3)]
    with logs.configured("debug", form, stream), serve(routes=ROUTES) as served:
        with websocket(served, f"?api_key={key}&x={others[0][:4]}") as socket:
            echo(socket)
        with websocket(served, additional_headers={"Authorization": f"Bearer {key}"}) as socket:
            echo(socket)
        with pytest.raises(InvalidStatus):
            websocket(served, f"?api_key={others[0]}")
        with pytest.raises(InvalidStatus):
            websocket(served, subprotocols=[Subprotocol("locallab"), Subprotocol(f"locallab.key.{others[1]}")])
        for name in ("authorization", "x-api-key"):
            served.http.get("/v1/models", headers={name: f"Bearer {others[2]}" if name == "authorization" else others[2]})
    text = stream.getvalue()
    assert "locallab.access" in text and "uvicorn" in text
    for secret in (key, *others):
        assert secret not in text and base64.b64encode(secret.encode()).decode() not in text


def test_the_query_is_taken_out_of_the_servers_own_scope() -> None:
    """uvicorn logs the query from there, even under a program with logging of its own."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["state"]["presented"])

    seen: list[Any] = []
    queries = {b"api_key=a%2Bb&c=d": b"c=d", b"c=%61&api%5Fkey=a+b&api_key=": b"c=%61", b"": b"", b"x=api_key": b"x=api_key"}
    for query, left in queries.items():
        scope: Any = {"type": "websocket", "headers": [], "query_string": query, "subprotocols": ["a", "locallab.key.k"]}
        asyncio.run(Credentials(app)(scope, None, None))  # type: ignore[arg-type]
        assert (scope["query_string"], scope["subprotocols"]) == (left, ["a"])
    assert seen == [["a+b", "k"], ["a b", "k"], ["k"], ["k"]]


@given(st.text(min_size=1), st.lists(st.tuples(st.text(min_size=1), st.text())))
def test_every_key_in_a_query_is_found_and_nothing_else_is_lost(key: str, others: list[tuple[str, str]]) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        """Do nothing."""

    rest = [(name, value) for name, value in others if name != "api_key"]
    scope: Any = {"type": "websocket", "headers": [], "query_string": urlencode([*rest, ("api_key", key)]).encode()}
    asyncio.run(Credentials(app)(scope, None, None))  # type: ignore[arg-type]
    assert scope["state"]["presented"] == [key]
    assert scope["query_string"] == urlencode(rest).encode()


@given(st.lists(st.tuples(st.sampled_from([b"authorization", b"x-api-key", b"api-key", b"host"]), st.binary())))
def test_any_header_can_be_read(headers: list[tuple[bytes, bytes]]) -> None:
    found = from_headers(headers)
    assert len(found) <= len(headers) and all(found)


def test_keys_do_not_travel_in_answers(serve: Serve, key: str) -> None:
    with serve() as served:
        response = served.http.get("/v1/models", headers={"x-api-key": key[:-1]})
        assert key[:-1] not in response.text + str(httpx.Headers(response.headers))


def test_wrong_keys_of_an_address_are_limited_and_valid_ones_are_not(serve: Serve, key: str) -> None:
    def status(secret: str, address: str = "1.2.3.4", path: str = "/v1/models") -> int:
        return served.http.get(path, headers={"x-api-key": secret, "x-forwarded-for": address}).status_code

    with serve(trusted_proxies="127.0.0.1") as served:
        assert [status(f"wrong {number}") for number in range(25)] == [401] * 20 + [429] * 5
        assert status(key) == status("wrong", path="/health") == 200
        assert status("wrong", "1.2.3.5") == 401
        headers = {"x-api-key": "wrong", "x-forwarded-for": "1.2.3.4"}
        assert served.http.get("/v1/models", headers={"x-forwarded-for": "1.2.3.4"}).status_code == 401  # a missing key
        for path, error in (("/generate", "detail"), ("/v1/messages", "error"), ("/v1/completions", "error")):
            refused = served.http.post(path, json={}, headers=headers)
            assert refused.status_code == 429 and 0 < int(refused.headers["retry-after"]) <= 60
            assert "rate limit exceeded: wrong API keys, 20 per 1 minute; try again in" in str(refused.json()[error])


def test_wrong_keys_of_websockets_count_too(serve: Serve, key: str) -> None:
    with serve(routes=ROUTES) as served:
        for _ in range(20):
            served.http.get("/v1/models", headers={"x-api-key": "wrong"})
        with pytest.raises(InvalidStatus) as refused:
            websocket(served, "?api_key=wrong")
        assert refused.value.response.status_code == 429
        with websocket(served, f"?api_key={key}") as socket:
            assert echo(socket)["key"] == "alice"


def test_wrong_keys_where_none_is_required_are_no_attempts(serve: Serve) -> None:
    with serve() as served:
        assert {served.http.get("/v1/models", headers={"x-api-key": "any"}).status_code for _ in range(25)} == {200}


def test_while_the_file_cannot_be_read_known_keys_pass_and_others_are_503(serve: Serve, store: KeyStore, key: str) -> None:
    with serve() as served:

        def asked(secret: str | None) -> httpx.Response:
            return served.http.get("/v1/models", headers={"x-api-key": secret} if secret else {})

        assert asked(key).status_code == 200
        store.path.write_text("{")
        unknown = asked("ll-" + "a" * 43)
        assert (unknown.status_code, unknown.headers["retry-after"]) == (503, "2")
        assert "not all keys can be read" in unknown.json()["error"]["message"]
        assert (asked(key).status_code, asked(None).status_code) == (200, 401)


def test_a_file_that_comes_and_cannot_be_read_opens_nothing(serve: Serve, store: KeyStore) -> None:
    with serve() as served:
        assert served.http.get("/v1/models").status_code == 200
        store.path.mkdir()
        assert served.http.get("/v1/models").status_code == 401
        assert served.http.get("/v1/models", headers={"x-api-key": "any"}).status_code == 503
