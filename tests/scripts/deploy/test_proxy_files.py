"""scripts/deploy/nginx.conf and Caddyfile, run by nginx and Caddy in front of a server. Only addresses are replaced in them,
and the path, as their first lines say."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from websockets.sync.client import connect

from locallab.server.dialects.assistant.websocket import PATH
from tests.support.browser import chromium, tab
from tests.support.deploy_programs import caddy, nginx
from tests.support.fake_engine import TEXT
from tests.support.http_server import Serve, Served, running_as_served, start_in
from tests.support.wait import free_port, until

USER = [{"role": "user", "content": "hi"}]
STREAM = {"messages": USER, "stream": True}
PATIENCE = 30
OPTIONS: dict[str, Any] = {"trusted_proxies": "127.0.0.1", "under": running_as_served}

Proxy = Callable[..., "contextlib.AbstractContextManager[str]"]


@pytest.fixture(scope="module", params=[nginx, caddy])
def proxy(request: pytest.FixtureRequest) -> Proxy:
    found: Proxy = request.param
    return found


@pytest.fixture(scope="module")
def behind(proxy: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, str]]:
    """A server, and the URL of the proxy before it."""
    folder = tmp_path_factory.mktemp("proxy")
    with start_in(folder)(**OPTIONS) as served, proxy(folder, urlsplit(served.url).netloc) as url:
        yield served, url


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat"])
def test_the_first_event_arrives_before_the_last_is_made(behind: tuple[Served, str], path: str) -> None:
    served, url = behind
    go = threading.Event()
    served.script(b"first", go, b"last")
    with httpx.stream("POST", url + path, json=STREAM, timeout=PATIENCE) as response:
        assert response.status_code == 200
        lines = response.iter_lines()
        assert any("first" in line for line in lines)  # it would wait for ever: `go` is not set
        go.set()
        assert any("last" in line for line in lines)


def test_a_client_that_leaves_frees_its_room(behind: tuple[Served, str]) -> None:
    served, url = behind
    served.script(b"first", threading.Event())
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=STREAM, timeout=PATIENCE) as response:
        assert any("first" in line for line in response.iter_lines())
    until(lambda: served.engine.stats().running == 0)


def test_a_chat_over_a_websocket(behind: tuple[Served, str]) -> None:
    served, url = behind
    go = threading.Event()
    served.script(b"first", go, b"last")
    with connect(f"{url.replace('http', 'ws')}{PATH}", origin=url, open_timeout=PATIENCE) as socket:  # type: ignore[arg-type]
        socket.send(json.dumps({"id": 1, "task": "chat", "prompt": "hi"}))
        assert json.loads(socket.recv(PATIENCE)) == {"type": "token", "id": 1, "text": "first"}
        go.set()
        assert json.loads(socket.recv(PATIENCE))["text"] == "last"


def test_the_address_of_the_client_arrives(
    proxy: Proxy, serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "locallab.access")
    with serve(**OPTIONS, rate_limit=True, native_rate="1/hour") as served, proxy(tmp_path, urlsplit(served.url).netloc) as url:
        for client in ("127.0.0.2", "127.0.0.3"):
            with httpx.Client(transport=httpx.HTTPTransport(local_address=client), base_url=url) as http:
                claimed = {"x-forwarded-for": "203.0.113.9"}
                assert [http.get("/models/current", headers=claimed).status_code for _ in range(2)] == [200, 429]
    logged = [record.getMessage().split()[0] for record in caplog.records if record.name == "locallab.access"]
    assert logged == ["127.0.0.2", "127.0.0.2", "127.0.0.3", "127.0.0.3"]


def test_large_bodies_pass_within_the_limit_of_the_server(behind: tuple[Served, str]) -> None:
    url = behind[1]
    body = {"messages": [{"role": "user", "content": "x" * (7 << 20)}]}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=PATIENCE)
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "context_length_exceeded"
    for _ in range(8):  # while the proxy still sends: it would lose the answer if the server hung up
        too_large = httpx.post(f"{url}/v1/messages", content=b" " * (9 << 20), timeout=PATIENCE)
        assert too_large.status_code == 413 and too_large.json()["type"] == "error"  # in the client's dialect


def test_a_server_that_is_down_and_comes_back(proxy: Proxy, serve: Serve, tmp_path: Path) -> None:
    port = free_port()
    with proxy(tmp_path, f"127.0.0.1:{port}") as url:
        for _ in range(2):
            assert httpx.get(f"{url}/health").status_code == 502
            with serve(**OPTIONS, port=port):
                assert httpx.get(f"{url}/health").json()["status"] == "healthy"


def test_below_a_path(proxy: Proxy, serve: Serve, tmp_path: Path) -> None:
    with serve(**OPTIONS, root_path="/llm") as served, proxy(tmp_path, urlsplit(served.url).netloc, "/llm") as url:
        answer = httpx.post(f"{url}/llm/v1/chat/completions", json={"messages": USER})
        assert answer.json()["choices"][0]["message"]["content"] == TEXT
        assert httpx.get(f"{url}/llm/openapi.json").json()["servers"] == [{"url": "/llm"}]
        moved = httpx.get(f"{url}/llm", headers={"accept": "text/html"}, follow_redirects=True)
        assert str(moved.url) == f"{url}/llm/" and "page/app.js" in moved.text
        assert "chat" not in httpx.get(f"{url}/v1/models").text  # the rest of the host is not ours


def test_the_page_and_the_documentation_below_a_path(proxy: Proxy, serve: Serve, tmp_path: Path) -> None:
    with (
        chromium() as browser,
        serve(**OPTIONS, root_path="/llm") as served,
        proxy(tmp_path, urlsplit(served.url).netloc, "/llm") as url,
        tab(browser, f"{url}/llm") as page,
    ):
        shown = page.open()
        shown.get_by_role("textbox").first.fill("hi")
        shown.keyboard.press("Enter")
        shown.get_by_text(TEXT).wait_for()
        shown.goto(f"{url}/llm/docs")
        shown.locator("#routes summary").first.wait_for()
        page.check()
        assert all(urlsplit(each).path.startswith("/llm/") for each in page.requests)
