"""/openapi.json is valid, complete and correct: bodies are validated and answers formatted as described."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import msgspec
import pytest
from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR
from starlette.routing import WebSocketRoute

from locallab.server.app import create_app
from locallab.server.docs.openapi import document, method
from locallab.server.endpoint import Endpoint
from locallab.server.page.routes import PageFile
from locallab.settings import ServerSettings
from tests.support.http_server import Serve, Served
from tests.support.openapi_check import Described
from tests.support.pages import ROOT, anchors

USER = [{"role": "user", "content": "hi"}]


@pytest.fixture
def described(served: Served) -> Described:
    return Described(served.http.get("/openapi.json").json())


def test_it_is_openapi(described: Described) -> None:
    OPENAPI_31_VALIDATOR.validate(described.api)
    for schema in described.api["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_every_reference_leads_somewhere(described: Described) -> None:
    references = [value for name, value in walk(described.api) if name == "$ref"]
    assert len(references) > 50
    for reference in references:
        described.follow(reference)


def test_every_route_is_described_and_nothing_else(served: Served, described: Described) -> None:
    routes = create_app(served.pool, ServerSettings(rate_limit=False)).routes
    assert {type(route) for route in routes} - {WebSocketRoute} and all(
        isinstance(route, (Endpoint, WebSocketRoute, PageFile)) for route in routes
    )
    real = {(method(route), route.path_format) for route in routes if isinstance(route, Endpoint)}
    documented = {(name.upper(), path) for path, methods in described.api["paths"].items() for name in methods}
    assert real == documented
    for route in routes:
        if isinstance(route, WebSocketRoute):
            assert f"`WS {route.path}`" in described.api["info"]["description"]


def test_every_operation_says_what_it_is(described: Described) -> None:
    ids = []
    for verb, path, operation in described.operations():
        ids.append(operation["operationId"])
        assert operation["summary"].endswith("."), path
        assert operation["tags"][0] in {tag["name"] for tag in described.api["tags"]}, path
        content = operation["responses"]["200"]["content"]
        assert any(kind["schema"] != {"type": "object"} for kind in content.values()) or path == "/openapi.json", path
        if verb == "post":
            assert {"400", "413", "401", "500"} <= set(operation["responses"]), path
    assert len(ids) == len(set(ids))


def test_every_group_is_documented_in_a_section_of_a_page(described: Described) -> None:
    for tag in described.api["tags"]:
        page, _, section = tag["description"].rpartition("Documented in `")[2].removesuffix("`.").partition("#")
        assert (ROOT / page).is_file() and section in anchors(page), tag["name"]


def test_every_field_of_a_body_is_explained(described: Described) -> None:
    missing = [
        f"{path}: {name}"
        for _, path, operation in described.operations()
        if "requestBody" in operation
        for name, field in described.body(operation)["properties"].items()
        if not field.get("description")
    ]
    assert missing == []


def test_it_says_where_a_key_is_needed(serve: Serve) -> None:
    with serve(api_key="secret") as served:
        described = Described(served.http.get("/openapi.json").json())
        for verb, path, operation in described.operations():
            with served.http.stream(verb, re.sub(r"{\w+}", "x", path)) as response:  # one has no end
                pass
            assert (response.status_code == 401) == ("security" in operation) == ("401" in operation["responses"]), path


def test_it_says_where_requests_are_counted(serve: Serve) -> None:
    with serve(rate_limit=True, native_rate="999/minute", dialect_rate="999/minute") as served:
        described = Described(served.http.get("/openapi.json").json())
        counted = {path: "429" in operation["responses"] for _, path, operation in described.operations()}
        for verb, path, operation in described.operations():
            with served.http.stream(verb, re.sub(r"{\w+}", "x", path)) as response:
                pass
            assert ("x-ratelimit-limit" in response.headers) == counted[path], path
            assert ("X-RateLimit-Limit" in operation["responses"]["200"]["headers"]) == counted[path], path
        assert not any(counted[path] for path in ("/health", "/metrics", "/docs")) and counted["/generate"]


def test_ranges_and_defaults_are_described(described: Described) -> None:
    fields = described.body(described.operation("post", "/generate"))["properties"]
    number = next(branch for branch in fields["temperature"]["anyOf"] if branch["type"] == "number")
    assert number == {"type": "number", "minimum": 0, "maximum": 100}
    top_p = next(branch for branch in fields["top_p"]["anyOf"] if branch["type"] == "number")
    assert top_p == {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
    assert {"type": "null"} in fields["temperature"]["anyOf"] and fields["temperature"]["default"] == 0.8
    assert described.body(described.operation("post", "/generate"))["required"] == ["prompt"]


def test_examples_are_true(described: Described) -> None:
    examples = [(schema, example) for schema, example in described.examples()]
    assert len(examples) > 8
    for schema, example in examples:
        described.check(example, schema)


BODIES: dict[str, Any] = {
    "/lora-adapters": [],
    "/generate": {"prompt": "hi"},
    "/generate/batch": {"prompts": ["hi", "ho"]},
    "/chat": {"messages": USER},
    "/models/load": {"model_id": "tiny:1b"},
    "/models/unload": {"model_id": "other:2b"},
    "/v1/chat/completions": {"messages": USER},
    "/v1/chat/completions/input_tokens": {"messages": USER},
    "/v1/completions": {"prompt": "hi"},
    "/v1/fim/completions": {"prompt": "hi"},
    "/infill": {"input_prefix": "hi", "input_suffix": ""},
    "/completion": {"prompt": "hi"},
    "/v1/audio/transcriptions": {"file": "UklGRg=="},
    "/v1/responses": {"input": "hi"},
    "/v1/responses/{response_id}/cancel": {},
    "/v1/responses/input_tokens": {"input": "hi"},
    **{path: {"input": "hi"} for path in ("/v1/embeddings", "/embedding")},
    **{path: {"query": "hi", "documents": ["hi"]} for path in ("/v1/rerank", "/v2/rerank", "/v1/reranking")},
    **{path: {"text_1": "hi", "text_2": "hi"} for path in ("/score", "/v1/score")},
    "/api/embed": {"model": "tiny:1b", "input": "hi"},
    "/api/embeddings": {"model": "tiny:1b", "prompt": "hi"},
    "/tokenize": {"content": "hi"},
    "/detokenize": {"tokens": [104]},
    "/apply-template": {"messages": USER},
    "/v1/messages": {"model": "any", "messages": USER, "max_tokens": 8},
    "/v1/messages/count_tokens": {"model": "any", "messages": USER},
    "/api/generate": {"model": "tiny:1b", "prompt": "hi", "stream": False},
    "/api/chat": {"model": "tiny:1b", "messages": USER, "stream": False},
    "/api/show": {"model": "tiny:1b"},
    "/api/v1/render": {"text": "hi"},
    "/api/delete": {"model": "tiny:1b"},
    "/api/pull": {"model": "tiny:1b", "stream": False},
    "/api/v1/replay": {"client": "Cursor", "stream": False},
    **{
        f"/api/v1/assistant/{task}": {"prompt": "x = 1", "task": task}
        for task in ("generate", "refactor", "debug", "audit", "document", "chat")
    },
}


OTHER_MODELS = {
    *("/v1/embeddings", "/embedding", "/api/embed", "/api/embeddings", "/v1/rerank", "/v2/rerank", "/v1/reranking"),
    *("/score", "/v1/score", "/v1/audio/transcriptions"),
    *("/infill", "/v1/fim/completions", "/v1/responses/{response_id}/cancel"),
}
"""Routes for models that embed, rank, fill in or hear; other models answer 400. So does what no response here can be."""


ENDLESS = {"/api/v1/events"}
"""Streams whose messages are checked where they are tested."""


def test_real_answers_are_as_described(served: Served, described: Described) -> None:
    names = {"id": "tiny:1b"}
    for verb, path, operation in described.operations():
        assert verb != "post" or path in BODIES, f"give {path} a body to be tried with"
        if path in ENDLESS:
            continue
        response = served.http.request(verb, path.format(**names), json=BODIES.get(path))
        expected = 409 if path == "/api/delete" else 400 if path in OTHER_MODELS else 200  # the file is the user's own
        assert response.status_code == expected, (path, response.text)
        described.check_response(operation, response)
        if path not in OTHER_MODELS:
            told = "X-LocalLab-Cache" in operation["responses"]["200"]["headers"]
            assert told == ("x-locallab-cache" in response.headers), path
        if path == "/v1/responses":
            names["response_id"] = response.json()["id"]


def test_real_errors_are_as_described(served: Served, described: Described) -> None:
    for path, body in (("/generate", {}), ("/v1/completions", {"prompt": "x" * 600}), ("/models/load", {"model_id": "tiny"})):
        response = served.http.post(path, json=body)
        assert response.status_code in (400, 404)
        described.check_response(described.operation("post", path), response)


def test_a_server_without_a_model_answers_as_described(serve: Serve) -> None:
    with serve(load=None) as served:
        described = Described(served.http.get("/openapi.json").json())
        for path in ("/", "/health", "/health/ready", "/system/info", "/models/current", "/v1/models"):
            described.check_response(described.operation("get", path), served.http.get(path))
        described.check_response(described.operation("post", "/chat"), served.http.post("/chat", json={"messages": USER}))


def test_other_methods_are_refused_with_those_that_are_allowed(served: Served, described: Described) -> None:
    for path, methods in described.api["paths"].items():
        response = served.http.patch(re.sub(r"{\w+}", "x", path))
        assert response.status_code == 405, path
        allowed = {verb.upper() for verb in methods} | ({"HEAD"} if "get" in methods else set())
        assert set(response.headers["allow"].split(", ")) == allowed, path


def test_a_client_can_tell_a_stream(served: Served, described: Described) -> None:
    response = served.http.post("/generate", json={"prompt": "hi", "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert "text/event-stream" in described.operation("post", "/generate")["responses"]["200"]["content"]


def test_bounds_of_a_body_do_not_touch_an_answer() -> None:
    class Body(msgspec.Struct):
        n: int | None = None

    class Answer(msgspec.Struct):
        n: int

    async def handler(request: object) -> None:
        """Do it."""

    schemas = document([Endpoint("/x", handler, tag="native", method="POST", body=Body, answer=Answer)])["components"][
        "schemas"
    ]
    assert schemas["Body"]["properties"]["n"]["anyOf"][0] == {"type": "integer", "minimum": 1, "maximum": 128}
    assert schemas["Answer"]["properties"]["n"] == {"type": "integer"}


def walk(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every (key, value) at any depth."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inside in entries:
        yield str(name), inside
        yield from walk(inside)


def test_it_names_no_machine(described: Described) -> None:
    assert not re.search(r"localhost|127\.0\.0\.1", str(described.api["paths"]))
