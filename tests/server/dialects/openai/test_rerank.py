"""/v1/rerank over a real socket, on small real models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import tiny_embedding_gguf
from tests.support.tiny_embedding_gguf import CLS, SEP, token
from tests.support.tiny_server import Tiny, tiny_server

DOCUMENTS = ["a new dog", {"text": "the old cat"}, "sun moon", "hello"]
TEXTS = ["a new dog", "the old cat", "sun moon", "hello"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiny]:
    with tiny_server(tmp_path_factory.mktemp("models")) as served:
        yield served


def expected(tiny: Tiny) -> list[float]:
    weights = tiny_embedding_gguf.weights(tiny.paths["rank"])
    known = [[CLS, token("old"), token("cat"), token("?"), SEP, *(_token(w) for w in text.split()), SEP] for text in TEXTS]
    return [tiny_embedding_gguf.bert_score(weights, pair) for pair in known]


def _token(word: str) -> int:
    return token(word) if word in tiny_embedding_gguf.WORDS else tiny_embedding_gguf.UNK


def test_the_best_documents_come_first(tiny: Tiny) -> None:
    answer = tiny.post("/v1/rerank", model="rank", query="old cat?", documents=DOCUMENTS)
    found = {each["index"]: each["relevance_score"] for each in answer["results"]}
    assert [found[i] for i in range(4)] == pytest.approx(expected(tiny), abs=2e-3)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert answer["data"] == answer["results"] and answer["model"] == "rank"
    assert all(set(each) == {"index", "relevance_score"} for each in answer["results"])
    assert answer["usage"]["total_tokens"] == sum(6 + len(text.split()) for text in TEXTS)


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_only_the_best_with_their_texts(tiny: Tiny, path: str) -> None:
    answer = tiny.post(path, model="rank", query="old cat?", documents=DOCUMENTS, top_n=2, return_documents=True)
    best = sorted(range(4), key=lambda index: -expected(tiny)[index])[:2]
    assert [each["index"] for each in answer["results"]] == best
    assert [each["document"] for each in answer["results"]] == [{"text": TEXTS[index]} for index in best]
    assert len(tiny.post(path, model="rank", query="a", documents=["b"], top_n=9)["results"]) == 1


def test_through_the_models_own_template(tiny: Tiny) -> None:
    """Texts of users stay text: neither markup nor a placeholder."""
    weights = tiny_embedding_gguf.weights(tiny.paths["yes-or-no"])
    q, d, a = (259, 260, 261)

    def written(text: str) -> list[int]:
        return [byte + 3 for byte in text.encode()]

    documents = ["x y", "x<A>{query}"]
    answer = tiny.post("/v1/rerank", model="yes-or-no", query="is <D> it {document}?", documents=documents)
    found = {each["index"]: each["relevance_score"] for each in answer["results"]}
    for index, document in enumerate(documents):
        text = [q, *written("is <D> it {document}?\n".replace(" ", "▁")), d, *written(document.replace(" ", "▁")), a]
        assert found[index] == pytest.approx(tiny_embedding_gguf.qwen3_score(weights, text), abs=2e-3)


def test_an_unknown_model_means_one_that_ranks(tiny: Tiny) -> None:
    tiny.post("/v1/rerank", model="rank", query="a", documents=["b"])
    answer = tiny.post("/v1/rerank", model="rerank-v3.5", query="a", documents=["b"])
    assert answer["model"] == "rerank-v3.5"


WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "no query": ({"query": None}, "query", "is missing"),
    "no documents": ({"documents": []}, "documents", "at least one"),
    "a number": ({"documents": ["a", 1]}, "documents", "expected"),
    "no text": ({"documents": [{"title": "a"}]}, "documents", "text"),
    "top_n": ({"top_n": 0}, "top_n", "at least 1"),
    "documents and texts": ({"texts": ["b"]}, "texts", "cannot be combined with documents"),
    "no tokens": ({"max_tokens_per_doc": 0}, "max_tokens_per_doc", "at least 1"),
    "a long question": ({"query": "hello " * 100}, "query", "leaves no room for a document"),
    "a long question for a template": ({"query": "x" * 1100, "model": "yes-or-no"}, "query", "maximum context length is 1024"),
    "a model that makes vectors": ({"model": "embed"}, "model", "'embed' makes embeddings, and ranks nothing; load"),
    "a model that writes": ({"model": "chat"}, "model", "'chat' writes text, and ranks nothing; load or name a model"),
}


@pytest.mark.parametrize(("body", "field", "reason"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named(tiny: Tiny, body: dict[str, Any], field: str, reason: str) -> None:
    error = tiny.refused("/v1/rerank", **{"model": "rank", "query": "a", "documents": ["b"], **body})["error"]
    assert (error["param"] or "").startswith(field) and reason in error["message"], error


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/reranking", "/v1/reranking"])
def test_in_the_shape_of_text_embeddings_inference(tiny: Tiny, path: str) -> None:
    known = {"/rerank": "/v1/rerank", "/reranking": "/v1/reranking"}.get(path, path)
    ranked = tiny.post(known, model="rank", query="old cat?", documents=TEXTS)["results"]
    answer = tiny.http.post(path, json={"model": "rank", "query": "old cat?", "texts": TEXTS}).json()
    assert answer == [{"index": each["index"], "score": each["relevance_score"]} for each in ranked]
    best = tiny.post(known, model="rank", query="old cat?", texts=TEXTS, top_n=1, return_text=True)
    assert best == [{**answer[0], "text": TEXTS[answer[0]["index"]]}]


@pytest.mark.parametrize(("model", "context"), [("rank", 64), ("yes-or-no", 1024)])
def test_a_long_document_is_cut_and_the_others_keep_their_scores(tiny: Tiny, model: str, context: int) -> None:
    def ranked(*documents: str, **more: Any) -> tuple[dict[int, float], str | None, int]:
        body = {"model": model, "query": "old cat?", "documents": documents, **more}
        response = tiny.http.post("/v1/rerank", json=body)
        assert response.status_code == 200, response.text
        scores = {each["index"]: each["relevance_score"] for each in response.json()["results"]}
        return scores, response.headers.get("x-locallab-notes"), response.json()["usage"]["total_tokens"]

    long = "red dog sun moon grüße " * 100
    alone, no_note, few = ranked("red dog", "blue")
    found, note, many = ranked("red dog", "blue", long)
    assert no_note is None and note == f"documents: 1 of 3 were cut to fit the context of {context} tokens"
    assert found[0] == pytest.approx(alone[0], abs=1e-4) and found[1] == pytest.approx(alone[1], abs=1e-4)
    assert context - 3 <= many - few <= context, "it is cut no more than necessary"
    cut, note, tokens = ranked("red dog", "blue", long, max_tokens_per_doc=2)
    assert note is None and tokens < many - 40 and set(cut) == {0, 1, 2}


def test_a_document_is_cut_at_its_end(tiny: Tiny) -> None:
    """What remains is its beginning, and what closes a pair is still there."""
    words = [token("sun"), token("moon")] * 40
    head = [CLS, token("old"), token("cat"), SEP]
    kept = words[: tiny_embedding_gguf.CONTEXT - len(head) - 1]
    weights = tiny_embedding_gguf.weights(tiny.paths["rank"])
    [one] = tiny.post("/v1/rerank", model="rank", query="old cat", documents=["sun moon " * 40])["results"]
    assert one["relevance_score"] == pytest.approx(tiny_embedding_gguf.bert_score(weights, [*head, *kept, SEP]), abs=2e-3)
    [two] = tiny.post("/v1/rerank", model="rank", query="old cat", documents=["sun moon red"], max_tokens_per_doc=2)["results"]
    assert two["relevance_score"] == pytest.approx(tiny_embedding_gguf.bert_score(weights, [*head, *words[:2], SEP]), abs=2e-3)


def test_many_documents(tiny: Tiny) -> None:
    """More than one batch, and more characters than the event loop tokenizes."""
    documents = ["hello cat dog sun moon " * 5, "red"] * 100
    answer = tiny.post("/v1/rerank", model="rank", query="old cat?", documents=documents)
    scores = [each["relevance_score"] for each in sorted(answer["results"], key=lambda each: each["index"])]
    assert len({round(score, 2) for score in scores[::2]}) == 1 and len({round(score, 2) for score in scores[1::2]}) == 1
