"""/v1/embeddings, /api/embed and /api/embeddings over a real socket, on small real models."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import ollama
import openai
import pytest
from websockets.sync.client import connect

from locallab.engine import EmbeddingEngine
from locallab.keys import KeyStore
from locallab.models import FileSource, ModelSpec
from locallab.server.inference.embedding import PAUSE
from tests.support import tiny_embedding_gguf
from tests.support.tiny_embedding_gguf import CLS, SEP, token
from tests.support.tiny_server import Tiny, tiny_server
from tests.support.wait import PATIENCE, until

USER = [{"role": "user", "content": "hi"}]
CLOSE = 0.999
"""Cosine above which two vectors count as equal: in long texts, the 16-bit rounding of attention adds up."""

HELLO = [CLS, token("hello"), SEP]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiny]:
    with tiny_server(tmp_path_factory.mktemp("models")) as served:
        yield served


@pytest.fixture
def client(tiny: Tiny) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{tiny.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def vectors(answer: Any) -> np.ndarray:
    assert [each["index"] for each in answer["data"]] == list(range(len(answer["data"])))
    return np.array([each["embedding"] for each in answer["data"]])


def reference(tiny: Tiny, *texts: list[int]) -> np.ndarray:
    weights = tiny_embedding_gguf.weights(tiny.paths["embed"])
    return np.stack([tiny_embedding_gguf.bert_vector(weights, text) for text in texts])


def same(found: np.ndarray, expected: np.ndarray) -> bool:
    return found.shape == expected.shape and bool(np.all(np.sum(found * expected, axis=1) > CLOSE))


def test_the_vector_of_a_text(tiny: Tiny) -> None:
    answer = tiny.post("/v1/embeddings", model="embed", input="hello")
    assert same(vectors(answer), reference(tiny, HELLO))
    assert (answer["object"], answer["model"], answer["data"][0]["object"]) == ("list", "embed", "embedding")
    assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 3}


def test_the_vectors_of_many(tiny: Tiny) -> None:
    """More than are written in one go, and more than one batch of the engine."""
    words = list(tiny_embedding_gguf.WORDS) * 20
    answer = tiny.post("/v1/embeddings", model="embed", input=words)
    assert len(words) > 2 * PAUSE
    assert same(vectors(answer), reference(tiny, *([CLS, token(word), SEP] for word in words)))
    assert answer["usage"]["prompt_tokens"] == 3 * len(words)


@pytest.mark.parametrize("given", [HELLO, [HELLO, [CLS, token("cat")]]], ids=["one text", "several"])
def test_token_ids_are_taken_as_they_are(tiny: Tiny, given: Any) -> None:
    answer = tiny.post("/v1/embeddings", model="embed", input=given)
    assert same(vectors(answer), reference(tiny, *(given if isinstance(given[0], list) else [given])))


def test_texts_among_token_ids(tiny: Tiny) -> None:
    mixed = [CLS, "hello", SEP]
    answer = tiny.post("/v1/embeddings", model="embed", input=[mixed, "hello", {"prompt_string": mixed}, HELLO])
    assert same(vectors(answer), reference(tiny, *[HELLO] * 4))
    assert same(vectors(tiny.post("/v1/embeddings", model="embed", input=mixed)), reference(tiny, HELLO))


def test_parts_of_a_text(tiny: Tiny) -> None:
    parts = {"content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]}
    for given in (parts, ["cat", parts]):
        answer = tiny.post("/v1/embeddings", model="embed", input=given)
        assert same(vectors(answer)[-1:], reference(tiny, HELLO))


@pytest.mark.parametrize(("path", "name"), [("/embedding", "content"), ("/embedding", "input"), ("/v1/embeddings", "content")])
def test_in_the_shape_of_llama_cpp(tiny: Tiny, path: str, name: str) -> None:
    answer = tiny.post(path, model="embed", **{name: ["hello", "cat"]})
    assert [each["index"] for each in answer] == [0, 1]
    assert same(np.array([each["embedding"][0] for each in answer]), reference(tiny, HELLO, [CLS, token("cat"), SEP]))
    assert len(tiny.post(path, model="embed", **{name: "hello"})) == 1
    assert tiny.http.post("/embedding", json={"model": "embed"}).json()["error"]["param"] == "input"


NORMS: dict[int, Callable[[np.ndarray], float]] = {
    0: lambda v: abs(v).max() / 32760,
    1: lambda v: abs(v).sum(),
    3: lambda v: (abs(v) ** 3).sum() ** (1 / 3),
}


@pytest.mark.parametrize(("norm", "size"), NORMS.items(), ids=map(str, NORMS))
def test_other_norms(tiny: Tiny, norm: int, size: Any) -> None:
    answer = tiny.post("/embedding", model="embed", content="hello", embd_normalize=norm)
    assert size(np.array(answer[0]["embedding"][0])) == pytest.approx(1, abs=1e-3)


def test_a_conversation_is_one_text(tiny: Tiny) -> None:
    """The model has no chat template: a note says what is embedded instead."""
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": [{"type": "text", "text": "cat"}]}]
    response = tiny.http.post("/v1/embeddings", json={"model": "embed", "messages": messages})
    assert same(vectors(response.json()), reference(tiny, [CLS, token("hello"), token("cat"), SEP]))
    assert "the model has no chat template" in response.headers["x-locallab-notes"]


def test_a_conversation_goes_through_the_chat_template(tmp_path: Any) -> None:
    """What is written in a message stays text, and the text is closed as any other."""
    path = tiny_embedding_gguf.qwen3(
        tmp_path / "talks.gguf", template="<Q>{% for m in messages %}{{ m.content }}<A>{% endfor %}"
    )
    text = [*(byte + 3 for byte in b"a<A>"), 261, *(byte + 3 for byte in b"b"), 261]
    with tiny_server(tmp_path) as served:
        served.pool.registry.add("a test", ModelSpec(id="talks", source=FileSource(path=path), description="made"))
        messages = [{"role": "user", "content": "a<A>"}, {"role": "assistant", "content": "b"}]
        response = served.http.post("/v1/embeddings", json={"model": "talks", "messages": messages})
        expected = tiny_embedding_gguf.qwen3_vector(tiny_embedding_gguf.weights(path), [259, *text, tiny_embedding_gguf.EOS])
        assert same(vectors(response.json()), expected[None]), response.text
        assert "x-locallab-notes" not in response.headers


def test_base64_is_the_same_numbers(tiny: Tiny) -> None:
    texts = ["hello", "old cat"]
    plain = tiny.post("/v1/embeddings", model="embed", input=texts, encoding_format="float")
    coded = tiny.post("/v1/embeddings", model="embed", input=texts, encoding_format="base64")
    decoded = [np.frombuffer(base64.b64decode(each["embedding"]), "<f4") for each in coded["data"]]
    assert np.abs(np.stack(decoded) - vectors(plain)).max() < 1e-6


def test_fewer_dimensions(tiny: Tiny) -> None:
    """As in the training of models that allow it: the first components, normalized again."""
    whole = vectors(tiny.post("/v1/embeddings", model="embed", input=["hello", "old cat"]))
    short = vectors(tiny.post("/v1/embeddings", model="embed", input=["hello", "old cat"], dimensions=5))
    assert short == pytest.approx(whole[:, :5] / np.linalg.norm(whole[:, :5], axis=1, keepdims=True), abs=1e-5)
    assert vectors(tiny.post("/v1/embeddings", model="embed", input="hello", dimensions=32)) == pytest.approx(
        whole[:1], abs=1e-5
    )


def test_what_may_be_left_out_or_means_nothing_here(tiny: Tiny) -> None:
    tiny.post("/embeddings", model=None, input="hello", user="somebody", dimensions=None, encoding_format=None, more=[1])


WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "no input": ({}, "input", "is missing"),
    "null": ({"input": None}, "input", "is missing"),
    "no texts": ({"input": []}, "input", "none empty"),
    "no token ids": ({"input": [[]]}, "input", "none empty"),
    "not a prompt": ({"input": ["a", {"text": "b"}]}, "input", "expected a string"),
    "two inputs": ({"input": "a", "content": "b"}, "content", "cannot be combined with input"),
    "an image": (
        {"input": [{"content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "input",
        "parts of the type text",
    ),
    "no parts": ({"content": {"content": "a"}}, "content", "expected a string"),
    "no conversation": ({"messages": []}, "messages", "is empty"),
    "no norm": ({"input": "a", "embd_normalize": -1}, "embd_normalize", "at least 0"),
    "no number": ({"input": [True]}, "input", "expected a string"),
    "another model's token ids": ({"input": [2, 100_257]}, "input", "from 0 to 24"),
    "a huge token id": ({"input": [2**70]}, "input", "from 0 to 24"),
    "no dimensions": ({"input": "a", "dimensions": 0}, "dimensions", "at least 1"),
    "more than there are": ({"input": "a", "dimensions": 33}, "dimensions", "at most 32"),
    "unknown format": ({"input": "a", "encoding_format": "int8"}, "encoding_format", "int8"),
    "a model that writes": ({"input": "a", "model": "chat"}, "model", "'chat' writes text, and makes no embeddings; load"),
    "a model that ranks": ({"input": "a", "model": "rank"}, "model", "'rank' ranks documents, and makes no embeddings"),
}


@pytest.mark.parametrize(("body", "field", "reason"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named(tiny: Tiny, body: dict[str, Any], field: str, reason: str) -> None:
    error = tiny.refused("/v1/embeddings", **{"model": "embed", **body})["error"]
    assert error["param"] == field and reason in error["message"], error
    assert error["type"] == "invalid_request_error"


def test_a_text_that_is_too_long(tiny: Tiny) -> None:
    error = tiny.refused("/v1/embeddings", model="embed", input=["a", "hello " * 100])["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "input")
    assert (error["n_prompt_tokens"], error["n_ctx"]) == (102, tiny_embedding_gguf.CONTEXT)


def test_an_unknown_model(tiny: Tiny, tmp_path: Any) -> None:
    """It is the embedding model, though another is the current one, unless names are strict."""
    answer = tiny.post("/v1/embeddings", model="text-embedding-3-small", input="hello")
    assert answer["model"] == "text-embedding-3-small" and same(vectors(answer), reference(tiny, HELLO))
    with tiny_server(tmp_path, load="embed", strict_models=True) as strict:
        assert strict.http.post("/v1/embeddings", json={"model": "ada", "input": "a"}).status_code == 404


def test_where_no_model_makes_vectors(tmp_path: Any) -> None:
    with tiny_server(tmp_path) as served:
        error = served.refused("/v1/embeddings", input="hello")["error"]
        assert error["message"].endswith("'chat' writes text, and makes no embeddings; load or name a model that does")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": USER}),
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/messages", {"messages": USER, "max_tokens": 5}),
        ("/api/chat", {"messages": USER}),
        ("/chat", {"messages": USER, "model_id": "embed"}),
        ("/api/v1/assistant/chat", {"prompt": "hi"}),
        ("/apply-template", {"messages": USER}),
    ],
)
def test_a_model_that_makes_vectors_does_not_chat(tiny: Tiny, path: str, body: dict[str, Any]) -> None:
    answer = tiny.refused(path, **{"model": "embed", **body})
    assert "'embed' makes embeddings, and no text; load or name a model that does" in json.dumps(answer)


def test_nor_on_a_websocket(tiny: Tiny) -> None:
    with connect(f"{tiny.url.replace('http', 'ws')}/api/v1/assistant/stream") as socket:
        socket.send(json.dumps({"prompt": "hi", "task": "chat", "model": "embed"}))
        answer = json.loads(socket.recv(PATIENCE))
        assert answer["type"] == "error" and "'embed' makes embeddings" in answer["detail"]


def test_the_openai_client(tiny: Tiny, client: openai.OpenAI) -> None:
    """It requests base64 by itself, and returns numbers."""
    answer = client.embeddings.create(model="embed", input=["hello", "cat"], dimensions=openai.omit)
    assert same(np.array([each.embedding for each in answer.data]), reference(tiny, HELLO, [CLS, token("cat"), SEP]))
    assert answer.usage.prompt_tokens == 6
    floats = client.embeddings.create(model="embed", input=HELLO, encoding_format="float", dimensions=4)
    assert len(floats.data[0].embedding) == 4
    with pytest.raises(openai.BadRequestError, match="at most 32"):
        client.embeddings.create(model="embed", input="a", dimensions=64)


def test_a_decoder_makes_vectors_too(tiny: Tiny, client: openai.OpenAI) -> None:
    """The texts take several steps; one has more characters than the event loop tokenizes."""
    long = ["x" * 900, *("y" * 700 for _ in range(30))]
    answer = client.embeddings.create(model="decoder", input=long)
    weights = tiny_embedding_gguf.weights(tiny.paths["decoder"])
    for text, each in zip(long[:2], answer.data, strict=False):
        tokens = [*(byte + 3 for byte in text.encode()), tiny_embedding_gguf.EOS]
        assert np.array(each.embedding) @ tiny_embedding_gguf.qwen3_vector(weights, tokens) > CLOSE
    assert answer.usage.prompt_tokens == sum(len(text) + 1 for text in long)


def test_both_kinds_answer_at_once(tiny: Tiny, client: openai.OpenAI) -> None:
    """All requests name their model and overlap, and neither model is unloaded for the other."""
    expected = reference(tiny, HELLO)
    loads = tiny.pool.stats().loads

    def ask(number: int) -> None:
        if number % 2:
            found = client.embeddings.create(model="embed", input=["hello"] * (number + 1))
            assert same(np.array([each.embedding for each in found.data]), np.repeat(expected, number + 1, 0))
        else:
            answer = client.chat.completions.create(model="chat", messages=USER, max_tokens=20)  # type: ignore[arg-type]
            assert answer.model == "chat" and answer.usage is not None and answer.usage.completion_tokens <= 20

    tiny.post("/v1/embeddings", model="embed", input="a")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(24)))
    assert tiny.pool.stats().loads - loads <= 1


def test_a_client_that_leaves_ends_its_request(tiny: Tiny) -> None:
    tiny.post("/v1/embeddings", model="embed", input="a")
    loaded = tiny.pool.get("embed")
    assert loaded is not None and isinstance(loaded.engine, EmbeddingEngine)
    context = loaded.engine._worker._context  # type: ignore[attr-defined]
    compute, computing, go = context.compute, threading.Event(), threading.Event()
    sizes: list[int] = []

    def held(sequences: Any) -> Any:
        sizes.append(len(sequences))
        computing.set()
        assert go.wait(PATIENCE)
        return compute(sequences)

    context.compute = held
    try:
        with pytest.raises(httpx.ReadTimeout):
            tiny.http.post("/v1/embeddings", json={"model": "embed", "input": ["a"] * 1000}, timeout=0.2)
        assert computing.wait(PATIENCE)
        until(lambda: loaded.engine._open.total == 0)
    finally:
        go.set()
        context.compute = compute
    assert len(vectors(tiny.post("/v1/embeddings", model="embed", input="a"))) == 1
    assert sizes[:1] == [64] and sum(sizes) < 1000


def test_a_model_that_makes_vectors_says_so(tiny: Tiny) -> None:
    tiny.post("/v1/embeddings", model="embed", input="a")
    status = tiny.http.get("/models/status/embed").json()
    assert (status["kind"], status["dimensions"], status["context"]) == ("embedding", 32, tiny_embedding_gguf.CONTEXT)
    card = tiny.http.get("/v1/models/embed").json()
    assert card["context_length"] == tiny_embedding_gguf.CONTEXT
    assert "dimensions" not in tiny.http.get("/models/status/chat").json()
    assert 'locallab_prompt_tokens_total{model="embed"}' in tiny.http.get("/metrics").text


def test_ollamas_client(tiny: Tiny) -> None:
    with contextlib.closing(ollama.Client(tiny.url)) as client:
        answer = client.embed("embed", ["hello", "cat"], dimensions=32, keep_alive="5m")
        assert same(np.array(answer.embeddings), reference(tiny, HELLO, [CLS, token("cat"), SEP]))
        assert answer.prompt_eval_count == 6 and (answer.total_duration or 0) > 0
        assert same(np.array([client.embeddings("embed", "hello").embedding]), reference(tiny, HELLO))
        with pytest.raises(ollama.ResponseError, match="makes no embeddings"):
            client.embed("chat", "hello")


def test_ollama_embeds(tiny: Tiny) -> None:
    answer = tiny.post("/api/embed", model="embed:latest", input=["hello", "cat"])
    assert same(np.array(answer["embeddings"]), reference(tiny, HELLO, [CLS, token("cat"), SEP]))
    assert (answer["model"], answer["prompt_eval_count"]) == ("embed:latest", 6)
    assert answer["total_duration"] > answer["load_duration"] > 0
    one = tiny.post("/api/embed", model="embed", input="hello", dimensions=3, options={"num_ctx": 8}, keep_alive="5m")
    assert np.linalg.norm(one["embeddings"][0]) == pytest.approx(1, abs=1e-5) and len(one["embeddings"][0]) == 3
    assert same(np.array([tiny.post("/api/embeddings", model="embed", prompt="hello")["embedding"]]), reference(tiny, HELLO))


def test_ollama_cuts_what_is_too_long(tiny: Tiny) -> None:
    """It keeps the closing token, unless `truncate` is off."""
    words = [token("hello")] * (tiny_embedding_gguf.CONTEXT - 2)
    answer = tiny.post("/api/embed", model="embed", input=["hello " * 100, "hello " * len(words)])
    assert same(np.array(answer["embeddings"]), reference(tiny, *[[CLS, *words, SEP]] * 2))
    assert tiny.post("/api/embeddings", model="embed", prompt="hello " * 100)["embedding"]
    decoder = tiny.post("/api/embed", model="decoder", input="x" * 2000)
    cut = [*[ord("x") + 3] * (tiny_embedding_gguf.DECODER_CONTEXT - 1), tiny_embedding_gguf.EOS]
    vector = tiny_embedding_gguf.qwen3_vector(tiny_embedding_gguf.weights(tiny.paths["decoder"]), cut)
    assert np.array(decoder["embeddings"][0]) @ vector > CLOSE
    assert "102 tokens" in tiny.refused("/api/embed", model="embed", input="hello " * 100, truncate=False)["error"]


def test_ollama_may_only_load_or_unload(tmp_path: Any) -> None:
    with tiny_server(tmp_path) as served:
        assert served.post("/api/embed", model="embed")["embeddings"] == []
        assert served.post("/api/embeddings", model="embed", prompt="")["embedding"] == []
        assert served.pool.status("embed") == "ready"
        assert len(served.post("/api/embed", model="embed", input="hello", keep_alive=0)["embeddings"]) == 1
        until(lambda: served.pool.status("embed") == "unloaded")
        assert served.pool.status("chat") == "ready"


def test_ollama_is_told_what_is_wrong(tiny: Tiny) -> None:
    assert "makes no embeddings" in tiny.refused("/api/embed", model="chat", input="a")["error"]
    assert "at most 32" in tiny.refused("/api/embed", model="embed", input="a", dimensions=40)["error"]
    assert "keep_alive" in tiny.refused("/api/embed", model="embed", input="a", keep_alive="soon")["error"]


def test_vectors_and_scores_are_usage(tmp_path: Any) -> None:
    with tiny_server(tmp_path) as served:
        served.post("/v1/embeddings", model="embed", input=["hello", "cat"])
        served.post("/api/embed", model="embed", input="hello")
        counted = served.http.get("/api/v1/usage").json()["usage"]
    figures = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens")
    assert [tuple(row[name] for name in figures) for row in counted] == [(2, 9, 0, 0)]


def test_a_key_with_the_role_use_loads_no_model_by_an_empty_list(tmp_path: Any) -> None:
    with tiny_server(tmp_path) as served:
        secret = KeyStore(tmp_path / "keys.json").create("ann", "free")[1]
        for path, body in (("/api/embed", {"input": []}), ("/api/embeddings", {"prompt": ""})):
            refused = served.http.post(path, json={"model": "embed", **body}, headers={"x-api-key": secret})
            assert (refused.status_code, refused.json()["error"][:15]) == (403, "loading a model")
        assert served.pool.status("embed") == "unloaded"
