from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallab.server.areas import Area, area, owner
from locallab.server.dialects.registry import DIALECTS


def area_of(path: str) -> Area:
    return area(owner(DIALECTS, path), path)


AREAS = {
    "/generate": "native",
    "/chat": "native",
    "/models/status/x": "native",
    "/system/info": "native",
    "/api/v1": "assistant",
    "/api/v1/assistant/generate": "assistant",
    "/v1/chat/completions": "dialect",
    "/v1": "dialect",
    "/api/chat": "dialect",
    "/api/v10": "dialect",
    "/generated": "dialect",
    "/completion": "dialect",
    "/healthy": "dialect",
    "/docs/swagger.js": "open",
    "/": "open",
    "/health/live": "open",
    "/openapi.json": "open",
    "/api/hello": "open",
    "/metrics": "uncounted",
    "/api/v1/events": "uncounted",
    "/api/v1/me": "uncounted",
    "/api/v1/render": "uncounted",
}


@pytest.mark.parametrize(("path", "expected"), AREAS.items())
def test_areas(path: str, expected: str) -> None:
    assert area_of(path) == expected


@given(st.text(alphabet="/abchealtdocs.vjsonpi1", max_size=20))
def test_only_what_is_free_is_open(tail: str) -> None:
    path = "/" + tail
    assert area_of("/v1" + path) != "open" != area_of("/api/v1" + path)
    assert area_of("/health" + path) == "open" != area_of("/healthy" + path)


OWNERS = {
    "/": "native",
    "/generate": "native",
    "/nothing": "native",
    "/models/status/x": "native",
    "/v1": "openai",
    "/v1/models/a/b": "openai",
    "/v1/responses/x": "responses",
    "/v1/responsesx": "openai",
    "/v1/messages/count_tokens": "anthropic",
    "/api/hello": "anthropic",
    "/api/chat": "ollama",
    "/api/v1/assistant/chat": "assistant",
    "/api/v10": "ollama",
    "/completion": "llamacpp",
    "/completions": "native",
}


@pytest.mark.parametrize(("path", "name"), OWNERS.items())
def test_the_longest_prefix_owns_a_path(path: str, name: str) -> None:
    assert owner(DIALECTS, path).name == name


def test_dialects_share_no_prefix_and_no_tag() -> None:
    prefixes = [prefix for dialect in DIALECTS for prefix in dialect.prefixes]
    tags = [tag for dialect in DIALECTS for tag in dialect.tags]
    assert len(set(prefixes)) == len(prefixes) and len(set(tags)) == len(tags)
