"""What vLLM's server has besides OpenAI's API."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from locallab.version import __version__
from tests.support import tiny_embedding_gguf
from tests.support.http_server import Serve, Served
from tests.support.openapi_check import Described
from tests.support.tiny_embedding_gguf import CLS, SEP, token
from tests.support.tiny_server import Tiny, tiny_server

TEXTS = ["red dog", "blue cat", "sun"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiny]:
    with tiny_server(tmp_path_factory.mktemp("models")) as served:
        yield served


def scores(answer: Any) -> list[float]:
    assert [(each["index"], each["object"]) for each in answer["data"]] == [(i, "score") for i in range(len(answer["data"]))]
    return [each["score"] for each in answer["data"]]


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
def test_one_question_to_many_texts(tiny: Tiny, path: str) -> None:
    ranked = tiny.post("/v1/rerank", model="rank", query="old dog", documents=TEXTS)
    expected = [each["relevance_score"] for each in sorted(ranked["results"], key=lambda each: each["index"])]
    answer = tiny.post(path, model="rank", text_1="old dog", text_2=TEXTS)
    assert scores(answer) == pytest.approx(expected, abs=1e-4)
    assert (answer["object"], answer["model"]) == ("list", "rank")
    total = ranked["usage"]["total_tokens"]
    assert answer["usage"] == {"prompt_tokens": total, "total_tokens": total, "completion_tokens": 0}


@pytest.mark.parametrize("names", [("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2")])
def test_pairs_under_each_name(tiny: Tiny, names: tuple[str, str]) -> None:
    one, two = names
    each = [scores(tiny.post("/score", model="rank", **{one: a, two: b}))[0] for a, b in zip(TEXTS, TEXTS[::-1], strict=True)]
    assert scores(tiny.post("/score", model="rank", **{one: TEXTS, two: TEXTS[::-1]})) == pytest.approx(each, abs=1e-4)


def test_a_model_that_makes_embeddings_tells_the_cosine(tiny: Tiny) -> None:
    weights = tiny_embedding_gguf.weights(tiny.paths["embed"])

    def vector(text: str) -> np.ndarray:
        return tiny_embedding_gguf.bert_vector(weights, [CLS, *map(token, text.split()), SEP])

    answer = tiny.post("/score", model="embed", text_1="old dog", text_2=[*TEXTS, "old dog"])
    expected = [float(vector("old dog") @ vector(text)) for text in [*TEXTS, "old dog"]]
    assert scores(answer) == pytest.approx(expected, abs=5e-3) and expected[-1] == pytest.approx(1)


def test_a_long_text_is_cut(tiny: Tiny) -> None:
    response = tiny.http.post("/score", json={"model": "rank", "text_1": "a", "text_2": ["b", "red dog " * 60]})
    assert response.headers["x-locallab-notes"] == "documents: 1 of 2 were cut to fit the context of 64 tokens"
    assert len(scores(response.json())) == 2


WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "nothing": ({}, "text_1", "is missing"),
    "one side": ({"text_1": "a"}, "text_2", "is missing"),
    "sides of two names": ({"text_1": "a", "documents": "b"}, "text_2", "is missing"),
    "an empty side": ({"text_1": "a", "text_2": []}, "text_2", "at least one text"),
    "other lengths": ({"queries": ["a", "b"], "items": ["a", "b", "c"]}, "queries", "as many as items, which has 3; has 2"),
    "a number": ({"text_1": 1, "text_2": "a"}, "text_1", "expected"),
    "a long question": ({"text_1": "red dog " * 60, "text_2": "a"}, "text_1", "leaves no room"),
    "a model that writes": ({"text_1": "a", "text_2": "b", "model": "chat"}, "model", "'chat' writes text, and ranks nothing"),
}


@pytest.mark.parametrize(("body", "field", "reason"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named(tiny: Tiny, body: dict[str, Any], field: str, reason: str) -> None:
    error = tiny.refused("/score", **{"model": "rank", **body})["error"]
    assert error["param"] == field and reason in error["message"], error


def test_the_version(served: Served) -> None:
    assert served.http.get("/version").json() == {"version": __version__}


def test_the_tokenizer(thinking: Served) -> None:
    info = thinking.http.get("/tokenizer_info").json()
    assert info["bos_token"] == "<s>" and info["eos_token"] == "</s>" and info["add_bos_token"] is True
    assert info["chat_template"] == thinking.engine.info.chat_template and info["model_max_length"] == 4096
    described = Described(thinking.http.get("/openapi.json").json())
    for path in ("/tokenizer_info", "/version"):
        described.check_response(described.operation("get", path), thinking.http.get(path))


def test_the_tokenizers_control_tokens(tiny: Tiny) -> None:
    added = tiny.http.get("/tokenizer_info").json()["added_tokens_decoder"]
    assert added["1"] == {"content": "<s>", "special": True}


def test_no_tokenizer_without_a_model(serve: Serve) -> None:
    with serve(load=None) as served:
        assert served.http.get("/tokenizer_info").status_code == 503
