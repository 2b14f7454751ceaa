"""The list of models in Anthropic's shape, for requests that name a version of its API."""

from __future__ import annotations

from collections.abc import Iterator

import anthropic
import pytest

from tests.support.http_server import Serve, Served

VERSION = {"anthropic-version": "2023-06-01"}


@pytest.fixture
def two(serve: Serve) -> Iterator[Served]:
    with serve(on_demand="keep") as served:
        yield served


def test_the_version_tells_which_list_is_wanted(two: Served) -> None:
    assert two.http.get("/v1/models").json()["object"] == "list"
    body = two.http.get("/v1/models", headers=VERSION).json()
    ids = [model["id"] for model in body["data"]]
    assert "tiny:1b" in ids and len(ids) > 1
    assert (body["has_more"], body["first_id"], body["last_id"]) == (False, ids[0], ids[-1])
    assert all(
        set(model) == {"type", "id", "display_name", "created_at", "capabilities"} and model["type"] == "model"
        for model in body["data"]
    )
    assert two.http.get("/models", headers=VERSION).json() == body


def test_the_client_of_anthropic_reads_it(two: Served) -> None:
    with anthropic.Anthropic(base_url=two.url, api_key="any", max_retries=0) as client:
        listed = [model.id for model in client.models.list()]
        assert [model.id for model in client.models.list(limit=1)] == listed
        shown = client.models.retrieve("tiny:1b")
        assert (shown.type, shown.id, shown.created_at.year > 2020) == ("model", "tiny:1b", True)
        with pytest.raises(anthropic.NotFoundError, match="unknown model 'nothing'"):
            client.models.retrieve("nothing")


def test_pages(two: Served) -> None:
    def page(**query: str) -> tuple[list[str], bool]:
        body = two.http.get("/v1/models", headers=VERSION, params=query).json()
        return [model["id"] for model in body["data"]], body["has_more"]

    ids, _ = page()
    assert page(limit="1") == (ids[:1], True)
    assert page(after_id=ids[0]) == (ids[1:], False)
    assert page(after_id=ids[-1]) == ([], False)
    assert page(before_id=ids[-1], limit="1") == (ids[-2:-1], len(ids) > 2)
    assert page(before_id=ids[0]) == ([], False)


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "after_id=nothing", "before_id=nothing"])
def test_a_wrong_page_is_named(two: Served, query: str) -> None:
    answer = two.http.get(f"/v1/models?{query}", headers=VERSION)
    assert answer.status_code == 400 and query.partition("=")[0] in answer.json()["error"]["message"]
