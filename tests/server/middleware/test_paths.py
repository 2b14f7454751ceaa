"""Spellings of paths: with and without /v1, with slashes too many, and those that try to get around the limits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallab.errors import ConfigError
from locallab.keys import Keyring, KeyStore
from locallab.models.registry import Registry
from locallab.models.store import Store
from locallab.pool import Pool
from locallab.server.areas import area, owner
from locallab.server.dialects.dialect import Services
from locallab.server.dialects.registry import DIALECTS
from locallab.server.middleware import Traffic
from locallab.server.middleware.paths import Table, root_of
from locallab.server.usage import UsageFile, UsageLog
from locallab.settings import ServerSettings
from tests.support.fake_engine import TEXT
from tests.support.http_server import Serve, Served, start_in

USER = [{"role": "user", "content": "hi"}]

SPELLINGS = {
    "/v1/chat/completions": [
        "/chat/completions",
        "//v1/chat/completions",
        "/v1//chat/completions/",
        "/v1/chat/completions/",
        "/v1/v1/chat/completions",
    ],
    "/v1/completions": ["/completions", "/completions/", "//completions"],
    "/v1/models": ["/models", "/models/", "/v1/models/", "/v1//models"],
    "/v1/models/a/b:c": ["/models/a/b:c", "/v1/models/a/b:c/", "/v1/models//a//b:c"],
    "/v1/messages": ["/messages", "/v1/v1/messages"],
    "/v1/messages/count_tokens": ["/messages/count_tokens"],
    "/v1/responses/x": ["/responses/x"],
    "/v1/embeddings": ["/embeddings"],
    "/api/chat": ["/v1/api/chat", "/v1/api/chat/"],
    "/api/v1/assistant/chat": ["/v1/api/v1/assistant/chat"],
    "/models/current": ["/models/current/", "//models//current"],
    "/models/load/x": [],
    "/chat": ["/chat/", "//chat", "/v1/chat"],
    "/generate": ["/generate/", "/v1/generate"],
    "/completion": ["/v1/completion"],
    "/v1/nothing": ["/v1/nothing/"],
    "/": ["", "//"],
}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    folder: Path = tmp_path_factory.mktemp("paths")
    settings = ServerSettings()
    keyring = Keyring(settings, KeyStore(folder / "keys.json"))
    services = Services(
        pool=Pool(Registry(), Store(folder)),
        settings=settings,
        keyring=keyring,
        traffic=Traffic(),
        usage=UsageLog(UsageFile(folder / "usage.db"), 1),
    )
    return Table([route for dialect in DIALECTS for route in dialect.routes(services)], DIALECTS)


@pytest.mark.parametrize(("path", "spelling"), [(path, s) for path, many in SPELLINGS.items() for s in (path, *many)])
def test_spellings(table: Table, path: str, spelling: str) -> None:
    assert table.find(spelling)[0] == path


@given(path=st.sampled_from(["/generate", "/chat", "/models/current", "/models/status/x"]), tail=st.text(max_size=3))
def test_a_spelling_that_reaches_a_native_route_is_limited_as_native(table: Table, path: str, tail: str) -> None:
    _, route = table.find(path + tail)
    if route is not None and not route.startswith("/v1/"):
        assert area(owner(DIALECTS, route), route) == "native"


@pytest.mark.parametrize("path", [*SPELLINGS["/v1/chat/completions"], "/v1/chat/completions?beta=true"])
def test_spellings_are_served(served: Served, path: str) -> None:
    response = served.http.post(f"{served.url}{path}", json={"messages": USER})
    assert response.json()["choices"][0]["message"]["content"] == TEXT


ESCAPES = ["/generate\n", "//generate", "/generate/", "/v1/generate", "/v1/v1/generate", "/gener\u0061te", "/generate?x=1"]


@pytest.mark.parametrize("escape", ESCAPES)
def test_no_spelling_passes_the_rate_limit(serve: Serve, escape: str) -> None:
    with serve(rate_limit=True, native_rate="1/hour") as served:
        target = quote(escape, safe="/?=") if "a" in escape else escape
        answers = [served.http.post(f"{served.url}{target}", json={"prompt": "hi"}) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 429]


@pytest.mark.parametrize("other", ["/Generate", "/generate/x", "/generate;x", "/generate%00", "/generate\t"])
def test_what_looks_like_a_route_is_none(serve: Serve, other: str) -> None:
    with serve(rate_limit=True, native_rate="1/hour") as served:
        request = served.http.build_request("POST", served.url, json={"prompt": "hi"})
        request.url = request.url.copy_with(raw_path=other.replace("\t", "%09").encode())
        assert served.http.send(request).status_code in (404, 429)
        assert served.http.send(request).status_code in (404, 429)


def test_options_of_a_route_names_its_methods(served: Served) -> None:
    answer = served.http.options("/generate")
    assert (answer.status_code, answer.headers["allow"], answer.content) == (204, "POST", b"")
    assert served.http.options("/nowhere").status_code == 404
    assert served.http.head("/v1/models").status_code == 200 and served.http.head("/generate").status_code == 405


@pytest.mark.parametrize("root", ["", "/", "/llm", "/llm/", "/a/b", "/api/llm"])
def test_a_root_path_is_where_no_route_is(table: Table, root: str):
    assert root_of(root, table) == root.rstrip("/")


@pytest.mark.parametrize("root", ["llm", "//llm", "/a//b", "/a b", "/..", "/./a", "/é", "/a?b", "http://x/llm"])
def test_what_is_no_path_is_refused_as_root_path(table: Table, root: str):
    with pytest.raises(ConfigError, match=r"root_path: .* is not a path such as /llm"):
        root_of(root, table)


@pytest.mark.parametrize("root", ["/v1", "/api", "/api/v1", "/models/x", "/embeddings", "/health/", "/chat"])
def test_a_root_path_hides_no_route(table: Table, root: str):
    with pytest.raises(ConfigError, match="is where routes of the server are"):
        root_of(root, table)


@pytest.fixture(scope="module")
def rooted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with start_in(tmp_path_factory.mktemp("rooted"))(root_path="/llm/") as served:
        yield served


@pytest.mark.parametrize("root", ["", "/llm"])
def test_routes_of_every_kind_answer_with_the_root_path_and_without(rooted: Served, root: str):
    for path in ("/v1/models", "/models", "/api/tags", "/health", "/docs", "/openapi.json", "/"):
        assert rooted.http.get(root + path).status_code == 200
    answer = rooted.http.post(f"{root}/chat/completions", json={"messages": USER})
    assert answer.json()["choices"][0]["message"]["content"] == TEXT


@pytest.mark.parametrize("path", ["/llmv1/models", "/llm/llm/health", "/LLM/health", "/x/llm/health"])
def test_nothing_else_is_taken_for_the_root_path(rooted: Served, path: str):
    assert rooted.http.get(path).status_code == 404


def test_a_root_path_escapes_no_key(serve: Serve):
    with serve(api_key="k", root_path="/llm") as served:
        assert served.http.get("/llm/v1/models").status_code == 401
        assert served.http.get("/llm/v1/models", headers={"x-api-key": "k"}).status_code == 200
        assert served.http.get("/llm/health").status_code == 200


def test_the_openapi_document_has_the_root_path(rooted: Served, served: Served):
    assert rooted.http.get("/llm/openapi.json").json()["servers"] == [{"url": "/llm"}]
    assert served.http.get("/openapi.json").json()["servers"] == [{"url": "/"}]


def test_a_browser_gets_the_page_at_a_path_that_ends_in_a_slash(rooted: Served):
    browser = {"accept": "text/html"}
    moved = rooted.http.get("/llm", headers=browser)
    assert moved.status_code == 307 and moved.headers["location"] == "/llm/"
    page = rooted.http.get("/llm/", headers=browser)
    assert 'src="page/app.js"' in page.text and rooted.http.get("/llm/page/app.js").status_code == 200
    assert rooted.http.get("/llm", headers={"accept": "application/json"}).json()["service"] == "locallab"
