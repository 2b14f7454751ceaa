"""What keys with the role `use` may not do, in every dialect: load, unload and fetch models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

from locallab.keys import KeyStore
from locallab.server.app import create_app
from locallab.server.endpoint import Endpoint
from locallab.settings import ServerSettings
from tests.support.dialect_requests import ROUTES, USER
from tests.support.fake_engine import FIM
from tests.support.http_server import Serve, Served

REASON = "needs an API key with the role admin, and this one has the role use; `locallab keys create --name NAME --role admin`"


@pytest.fixture
def use(tmp_path: Path) -> dict[str, str]:
    return {"x-api-key": KeyStore(tmp_path / "keys.json").create("ann", "free")[1]}


@pytest.fixture
def admin(tmp_path: Path) -> dict[str, str]:
    return {"x-api-key": KeyStore(tmp_path / "keys.json").create("root", "free", "admin")[1]}


ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "load": ("/models/load", {"model_id": "other:2b"}),
    "load, spelled otherwise": ("//v1/models/load/", {"model_id": "other:2b"}),
    "unload": ("/models/unload", {"model_id": "tiny:1b"}),
    "unload whatever is loaded": ("/models/unload", {}),
    "scales of adapters": ("/lora-adapters", []),
    "pull": ("/api/pull", {"model": "tiny:1b"}),
    "pull, spelled otherwise": ("/v1/api/pull", {"model": "tiny:1b", "stream": False}),
    "load by a chat without messages": ("/api/chat", {"model": "other:2b"}),
    "load by a prompt that is empty": ("/api/generate", {"model": "other:2b", "prompt": ""}),
    "unload by a chat without messages": ("/api/chat", {"model": "tiny:1b", "keep_alive": 0}),
    "unload by a prompt that is empty": ("/api/generate", {"model": "tiny:1b", "keep_alive": "0s"}),
}


def message(body: Any) -> str:
    return str(body["detail"] if "detail" in body else body["error"])


@pytest.mark.parametrize(("path", "body"), ASKED.values(), ids=ASKED)
def test_what_asks_for_an_admin(
    serve: Serve, use: dict[str, str], admin: dict[str, str], path: str, body: dict[str, Any]
) -> None:
    with serve() as served:
        refused = served.http.post(path, json=body, headers=use)
        assert (refused.status_code, REASON in message(refused.json())) == (403, True)
        assert served.pool.status("tiny:1b") == "ready" and served.pool.status("other:2b") == "unloaded"
        assert served.http.post(path, json=body, headers=admin).status_code == 200


def test_deleting_asks_for_an_admin(serve: Serve, use: dict[str, str], admin: dict[str, str]) -> None:
    with serve() as served:
        body = {"model": "tiny:1b"}
        refused = served.http.request("DELETE", "/api/delete", json=body, headers=use)
        assert (refused.status_code, REASON in message(refused.json())) == (403, True)
        assert served.http.request("DELETE", "/api/delete", json=body, headers=admin).status_code == 409  # a file of one's own


@pytest.mark.parametrize("path", ROUTES)
def test_keys_of_both_roles_may_ask_every_model(serve: Serve, use: dict[str, str], admin: dict[str, str], path: str) -> None:
    with serve(engine={"fim": FIM}) as served:
        for headers in (use, admin):
            assert served.http.post(path, json=ROUTES[path], headers=headers).status_code == 200


def test_a_loaded_model_may_be_asked_for_again(serve: Serve, use: dict[str, str]) -> None:
    with serve() as served:
        asked = served.http.post("/api/chat", json={"model": "tiny:1b"}, headers=use)
        assert (asked.status_code, asked.json()["done_reason"]) == (200, "load")


def test_without_keys_everyone_is_an_admin(serve: Serve) -> None:
    with serve() as served:
        assert served.http.post("/models/unload", json={}).status_code == 200


def test_keys_are_not_asked_for_with_no_auth(serve: Serve, use: dict[str, str]) -> None:
    with serve(auth=False) as served:
        for headers in ({}, use, {"x-api-key": "wrong"}):
            assert served.http.post("/models/load", json={"model_id": "tiny:1b"}, headers=headers).status_code == 200


def test_the_single_key_is_an_admin(serve: Serve) -> None:
    with serve(api_key="sesame") as served:
        asked = served.http.post("/models/load", json={"model_id": "tiny:1b"}, headers={"x-api-key": "sesame"})
        assert asked.status_code == 200


def test_a_request_loads_what_is_on_disk(serve: Serve, use: dict[str, str]) -> None:
    with serve() as served:
        asked = served.http.post("/v1/chat/completions", json={"model": "other:2b", **USER}, headers=use)
        assert asked.status_code == 200 and served.pool.status("other:2b") == "ready"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat", "/v1/messages", "/api/v1/assistant/chat"])
def test_a_request_fetches_nothing(serve: Serve, tmp_path: Path, use: dict[str, str], admin: dict[str, str], path: str) -> None:
    body = {"model": "other:2b", "max_tokens": 9, "prompt": "hi", **USER}
    with serve() as served:
        (tmp_path / "other-2b.gguf").unlink()
        refused = served.http.post(path, json=body, headers=use)
        assert refused.status_code == 403 and "fetching the model 'other:2b' needs an API key" in refused.text
        assert served.http.post(path, json=body, headers=admin).status_code not in (200, 403)  # there is nothing to fetch


def test_a_websocket_fetches_nothing(serve: Serve, tmp_path: Path, use: dict[str, str]) -> None:
    with serve() as served:
        (tmp_path / "other-2b.gguf").unlink()
        with connect(f"{served.url.replace('http', 'ws')}/api/v1/assistant/stream", additional_headers=use) as socket:
            socket.send(json.dumps({"prompt": "hi", "task": "chat", "model": "other:2b"}))
            answer = json.loads(socket.recv(10))
    assert answer["type"] == "error" and "fetching the model 'other:2b' needs an API key" in answer["detail"]


def test_keep_alive_of_a_use_key_unloads_nothing(serve: Serve, use: dict[str, str], admin: dict[str, str]) -> None:
    body = {"model": "tiny:1b", "stream": False, "keep_alive": 0, **USER}
    with serve() as served:
        asked = served.http.post("/api/chat", json=body, headers=use)
        assert asked.status_code == 200 and "unloads nothing" in asked.headers["x-locallab-notes"]
        assert served.pool.status("tiny:1b") == "ready"


def test_the_description_says_which_routes_ask_for_an_admin(served: Served) -> None:
    app = create_app(served.pool, ServerSettings())
    asking = {route.path for route in app.routes if isinstance(route, Endpoint) and route.contract.admin}
    assert asking == {"/models/load", "/models/unload", "/api/pull", "/api/delete", "/lora-adapters"}
    described = served.http.get("/openapi.json").json()["paths"]
    assert {path for path, methods in described.items() if "role admin" in str(methods)} == {
        *asking,
        "/api/v1/usage",
        "/api/v1/events",
    }
