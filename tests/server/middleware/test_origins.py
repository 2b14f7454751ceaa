"""Web pages that may call, and those that may read the answers."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from locallab.errors import ConfigError
from locallab.server.middleware.origins import Origins
from tests.support.echo_model import PATH, ROUTES
from tests.support.http_server import Serve, Served

LOCAL = [
    "http://localhost",
    "https://localhost:3000",
    "http://127.0.0.1:5173",
    "http://[::1]:8080",
    "http://app.localhost",
    "HTTP://LOCALHOST:1",
    "app://obsidian.md",
    "tauri://localhost",
    "vscode-webview://1q2w3e4r5t6y7u8i9o0p",
    "vscode-file://vscode-app",
]
FOREIGN = [
    "https://evil.example",
    "null",
    "",
    "http://localhost.evil.example",
    "http://127.0.0.1.evil.example",
    "file://",
    "http://192.168.1.2",
]
FOREIGN += [
    "localhost",
    "http://evil.example#localhost",
    "http://localhost@evil.example",
    "chrome-extension://localhost",
    "http://",
    "app:",
    "app://",
    "xapp://localhost",
]

HEADERS = "authorization, x-api-key, x-stainless-os, anthropic-version, ngrok-skip-browser-warning, content-type"

schemes = st.sampled_from(["http", "https"])
names = st.lists(st.text("abcxyz0189", min_size=1, max_size=8), min_size=2, max_size=3).map(".".join)
ports = st.one_of(st.just(""), st.integers(1, 65535).map(lambda port: f":{port}"))


@pytest.mark.parametrize("origin", LOCAL)
def test_pages_of_this_machine(origin: str) -> None:
    assert Origins(None).allow(origin, "127.0.0.1:8000", key_required=False)


@pytest.mark.parametrize("origin", FOREIGN)
def test_pages_of_others(origin: str) -> None:
    assert not Origins(None).allow(origin, "127.0.0.1:8000", key_required=False)
    assert Origins(None).allow(origin, "127.0.0.1:8000", key_required=True)


@given(schemes, names, ports, names)
def test_pages_of_this_very_server(scheme: str, name: str, port: str, other: str) -> None:
    origins = Origins("https://else.where")
    assert origins.allow(f"{scheme}://{name}{port}", f"{name.upper()}{port}", key_required=False)
    same = name == other and port in ("", ":443" if scheme == "https" else ":80")
    assert origins.allow(f"{scheme}://{name}{port}", other, key_required=False) == same
    assert not origins.allow(f"{scheme}://{name}{port}", "", key_required=False)


@pytest.mark.parametrize(
    ("setting", "origin", "allowed"),
    [
        ("https://a.example", "https://a.example", True),
        ("https://a.example/", "https://A.example:443", True),
        ("https://a.example:443", "https://a.example", True),
        ("https://a.example", "http://a.example", False),
        ("https://a.example", "https://a.example:8443", False),
        ("https://a.example", "http://localhost", False),
        ("https://a.example, http://b.example:81", "http://b.example:81", True),
        ("https://*.example", "https://b.example", True),
        ("https://*.example", "https://example", False),
        ("https://*.example", "http://b.example", False),
        ("https://*.example", "https://b.example.evil", False),
        ("null", "null", True),
        ("*", "null", True),
        ("", "http://localhost", False),
        ("app://obsidian.md", "app://obsidian.md", True),
        ("app://obsidian.md", "app://other", False),
        ("vscode-webview://*", "vscode-webview://1q2w3e", True),
        ("vscode-webview://*", "app://1q2w3e", False),
        ("https://*", "https://any.example", True),
        ("https://*", "http://any.example", False),
    ],
)
def test_pages_by_setting(setting: str, origin: str, allowed: bool) -> None:
    for key_required in (False, True):
        assert Origins(setting).allow(origin, "127.0.0.1:8000", key_required) is allowed


@pytest.mark.parametrize("entry", ["example.com", "https://a.example/path", "https://", "localhost:3000", "https://a b"])
def test_invalid_origins_are_refused(entry: str) -> None:
    with pytest.raises(ConfigError, match=r"^cors_origins: .* is not an origin"):
        Origins(f"https://fine.example,{entry}")


@given(st.text(), st.text())
def test_any_origin_can_be_read(origin: str, host: str) -> None:
    assert Origins(None).allow(origin, host, key_required=False) in (True, False)


def post(served: Served, origin: str, path: str = "/generate", **headers: str) -> httpx.Response:
    """Post as a page can without a preflight."""
    return served.http.post(
        path, content=b'{"prompt": "hi"}', headers={"content-type": "text/plain", "origin": origin, **headers}
    )


def preflight(served: Served, origin: str, path: str = "/v1/chat/completions", **headers: str) -> httpx.Response:
    sent = {"origin": origin, "access-control-request-method": "POST", "access-control-request-headers": HEADERS}
    return served.http.options(path, headers=sent | headers)


def cors(response: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name.startswith("access-control-") or name == "vary"}


EXPOSED = (
    "X-RateLimit-Limit, X-RateLimit-Remaining, X-RateLimit-Reset, X-Request-ID, X-LocalLab-Notes, X-LocalLab-Cache, Retry-After"
)


def test_a_foreign_page_has_nothing_generated(serve: Serve) -> None:
    reason = "origin 'https://evil.example' is not allowed; add it with --cors-origins"
    with serve() as served:
        native, other = post(served, "https://evil.example"), post(served, "https://evil.example", "/v1/completions")
        assert (native.status_code, native.json()) == (403, {"detail": reason})
        assert other.status_code == 403 and other.json()["error"]["message"] == reason
        assert cors(native) == {"vary": "Origin"}
        assert served.http.request("DELETE", "/models/current", headers={"origin": "null"}).status_code == 403
        assert served.engine.submitted == []


def test_a_foreign_page_cannot_read_what_is_harmless_either(served: Served) -> None:
    response = served.http.get("/models/current", headers={"origin": "https://evil.example"})
    assert response.status_code == 200 and cors(response) == {"vary": "Origin"}


def test_a_page_of_this_machine(served: Served) -> None:
    response = post(served, "http://localhost:3000")
    assert response.status_code == 200
    expected = {
        "access-control-allow-origin": "http://localhost:3000",
        "access-control-expose-headers": EXPOSED,
        "vary": "Origin",
    }
    assert cors(response) == expected


def test_a_page_of_this_server(serve: Serve) -> None:
    with serve(cors_origins="https://app.example", allowed_hosts="lab.example") as served:
        assert post(served, "https://lab.example", host="lab.example").status_code == 200
        assert post(served, "https://app.example", host="lab.example").status_code == 200
        assert post(served, "https://other.example", host="lab.example").status_code == 403


def test_with_a_key_every_page_may_call(serve: Serve) -> None:
    with serve(api_key="k", rate_limit=True, native_rate="1/hour") as served:
        marks = {"access-control-allow-origin": "*", "access-control-expose-headers": EXPOSED}
        statuses = []
        for headers in ({}, {"authorization": "Bearer k"}, {"authorization": "Bearer k"}):
            response = post(served, "https://app.example", **headers)
            statuses.append(response.status_code)
            assert cors(response) == marks, "a page must be able to read why it was refused"
        assert statuses == [401, 200, 429]


def test_streams_are_marked(served: Served) -> None:
    body: dict[str, Any] = {"prompt": "hi", "stream": True}
    with served.http.stream("POST", "/generate", json=body, headers={"origin": "http://localhost"}) as response:
        assert cors(response)["access-control-allow-origin"] == "http://localhost"
        assert "data: [DONE]" in list(response.iter_lines())


def test_a_preflight_needs_no_key_and_is_not_counted(serve: Serve) -> None:
    with serve(api_key="k", rate_limit=True, dialect_rate="1/hour") as served:
        for _ in range(3):
            response = preflight(served, "https://app.example")
            assert (response.status_code, response.content) == (204, b"")
            assert cors(response) == {
                "access-control-allow-origin": "*",
                "access-control-allow-methods": "POST",
                "access-control-allow-headers": HEADERS,
                "access-control-max-age": "600",
                "access-control-expose-headers": EXPOSED,
            }
        assert served.http.get("/v1/models", headers={"x-api-key": "k"}).status_code == 200


def test_a_preflight_of_a_page_of_this_machine(served: Served) -> None:
    granted = cors(preflight(served, "http://localhost:3000"))
    assert (granted["access-control-allow-origin"], granted["vary"]) == ("http://localhost:3000", "Origin")
    assert "access-control-allow-private-network" not in granted
    granted = cors(preflight(served, "http://localhost:3000", **{"access-control-request-private-network": "true"}))
    assert granted["access-control-allow-private-network"] == "true"


def test_a_preflight_of_a_foreign_page(served: Served) -> None:
    response = preflight(served, "https://evil.example", "/generate", **{"access-control-request-private-network": "true"})
    assert response.status_code == 403 and cors(response) == {"vary": "Origin"}
    assert "--cors-origins" in response.json()["detail"]


def test_options_without_a_preflight(served: Served) -> None:
    response = served.http.options("/generate")
    assert response.status_code == 204 and response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    "settings", [{}, {"api_key": "k"}, {"cors_origins": "*"}, {"cors_origins": "https://a.example"}], ids=str
)
@pytest.mark.parametrize("origin", ["https://a.example", "http://localhost", "null"])
def test_never_with_credentials(serve: Serve, settings: dict[str, Any], origin: str) -> None:
    with serve(**settings) as served:
        for response in (post(served, origin), preflight(served, origin)):
            assert "access-control-allow-credentials" not in response.headers


@pytest.mark.parametrize(
    ("origin", "settings", "status"),
    [
        ("https://evil.example", {}, 403),
        ("http://localhost:3000", {}, 101),
        (None, {}, 101),
        ("https://app.example", {"cors_origins": "https://app.example"}, 101),
        ("https://app.example", {"api_key": "k"}, 401),
    ],
)
def test_websockets(serve: Serve, origin: str | None, settings: dict[str, Any], status: int) -> None:
    with serve(routes=ROUTES, **settings) as served:
        url = served.url.replace("http", "ws") + PATH
        header = None if origin is None else Origin(origin)
        if status == 101:
            with connect(url, origin=header) as socket:
                socket.send("hi")
                assert json.loads(socket.recv(10))["text"] == "hi"
            return
        with pytest.raises(InvalidStatus) as refused:
            connect(url, origin=header)
        assert refused.value.response.status_code == status


def test_without_an_origin_nothing_changes(served: Served) -> None:
    response = served.http.post("/generate", json={"prompt": "hi"})
    assert response.status_code == 200 and cors(response) == {}
