"""Vectors and scores of the real llama.cpp, compared with the same networks in numpy."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import psutil
import pytest

from locallab import hardware
from locallab.engine import Caller, EmbeddingEngine, TextEngine
from locallab.engine.embedding.packing import Rows
from locallab.errors import (
    ContextLengthExceeded,
    EngineClosed,
    EngineDied,
    EngineFailure,
    InvalidField,
    ModelLoadError,
    Overloaded,
)
from locallab.memory_model import STEP
from locallab.settings import EngineSettings
from tests.support import tiny_embedding_gguf
from tests.support.tiny_embedding_gguf import CLS, SEP, UNK, Pooling, token
from tests.support.wait import PATIENCE, until

TEXTS = ["hello world", "the old cat, a new dog?", "sun moons rivering red blue stoner", "", "hello", "a b c " * 15]
CLOSE = 0.9999
"""Cosine from which on two vectors count as the same: ggml's GELU and attention round to 16 bits."""


@contextlib.contextmanager
def embedding(path: Path, **settings: object) -> Iterator[EmbeddingEngine]:
    engine = EmbeddingEngine(path, EngineSettings(**{"threads": 1, "gpu_layers": 0, **settings}))  # type: ignore[arg-type]
    try:
        yield engine
    finally:
        engine.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def bert(folder: Path) -> Path:
    return tiny_embedding_gguf.bert(folder / "bert.gguf")


@pytest.fixture(scope="module")
def decoder(folder: Path) -> Path:
    return tiny_embedding_gguf.qwen3(folder / "qwen3.gguf")


def tokens(engine: TextEngine, text: str) -> list[int]:
    return engine.tokenize(text, add_special=True, parse_special=True)


def test_a_view_has_what_is_computed_next_and_what_waits(bert: Path) -> None:
    with embedding(bert, parallel=2) as engine:
        assert engine.view().result(PATIENCE).requests == ()
        worker: Any = engine._worker
        compute, held, begun = worker._context.compute, threading.Event(), threading.Event()

        def slow(sequences: Sequence[Sequence[int]]) -> Rows:
            begun.set()
            assert held.wait(PATIENCE)
            return compute(sequences)  # type: ignore[no-any-return]

        worker._context.compute = slow
        ann = Caller(id="key:ann", name="ann")
        futures = [engine.embed([[CLS, SEP]])]
        assert begun.wait(PATIENCE)
        futures += [engine.embed([[CLS, SEP, SEP]] * count, ann) for count in (1, 1, 3)]
        asked = engine.view()
        held.set()
        view = asked.result(PATIENCE)
        assert (view.running, view.waiting, view.kv) == (2, 1, None)
        assert [each.state for each in view.requests] == ["prefill", "prefill", "waiting"]
        assert {each.caller.name for each in view.requests} == {"ann"} and view.requests[-1].prompt_tokens in (3, 9)
        for future in futures:
            future.result(PATIENCE)
        view = engine.view().result(PATIENCE)
        assert (view.running, view.waiting, view.requests, view.prompt_tokens) == (0, 0, (), 2 + 5 * 3)


def rows(engine: EmbeddingEngine, prompts: Sequence[Sequence[int]]) -> Rows:
    return engine.embed(prompts).result(PATIENCE)


@pytest.mark.parametrize("pooling", [Pooling.MEAN, Pooling.CLS, None], ids=["mean", "first token", "not said: mean"])
def test_an_encoder_computes_what_numpy_does(tmp_path: Path, pooling: gguf.PoolingType | None) -> None:
    path = tiny_embedding_gguf.bert(tmp_path / "bert.gguf", pooling)
    weights = tiny_embedding_gguf.weights(path)
    with embedding(path) as engine:
        prompts = [tokens(engine, text) for text in TEXTS]
        for prompt, row in zip(prompts, rows(engine, prompts), strict=True):
            assert row @ tiny_embedding_gguf.bert_vector(weights, prompt, pooling or Pooling.MEAN) > CLOSE
            assert np.linalg.norm(row) == pytest.approx(1, abs=1e-5)


def test_a_decoder_computes_what_numpy_does(decoder: Path) -> None:
    """Also where a text is computed in several steps, and where there is nothing before its last token."""
    weights = tiny_embedding_gguf.weights(decoder)
    with embedding(decoder) as engine:
        prompts = [tokens(engine, text) for text in [*TEXTS, "x" * (STEP + 200), "y" * (STEP - 1), "z" * STEP]]
        assert min(map(len, prompts)) == 1 and max(map(len, prompts)) > STEP
        for prompt, row in zip(prompts, rows(engine, prompts), strict=True):
            assert row @ tiny_embedding_gguf.qwen3_vector(weights, prompt) > CLOSE


def test_an_encoder_that_does_not_say_so_is_found_out(tmp_path: Path) -> None:
    """Else it would be computed in steps, of which none sees the others."""
    path = tiny_embedding_gguf.bert(tmp_path / "bert.gguf", Pooling.LAST, causal=None)
    with embedding(path) as engine:
        prompts = [tokens(engine, text) for text in TEXTS]
        for prompt, row in zip(prompts, rows(engine, prompts), strict=True):
            assert row @ tiny_embedding_gguf.bert_vector(tiny_embedding_gguf.weights(path), prompt, Pooling.LAST) > CLOSE


def test_half_a_translator_computes_what_numpy_does(tmp_path: Path) -> None:
    path = tiny_embedding_gguf.t5encoder(tmp_path / "t5.gguf")
    weights = tiny_embedding_gguf.weights(path)
    with embedding(path) as engine:
        prompts = [tokens(engine, text) for text in ("hello", "abc-def-ghi" * 5, "x")]
        for prompt, row in zip(prompts, rows(engine, prompts), strict=True):
            assert row @ tiny_embedding_gguf.t5_vector(weights, prompt) > CLOSE


def test_words_become_their_pieces(bert: Path) -> None:
    with embedding(bert) as engine:
        worlds = [token("world"), token("##s")]
        assert tokens(engine, "Hello WORLDS, zebra?") == [CLS, token("hello"), *worlds, token(","), UNK, token("?"), SEP]
        assert engine.detokenize(worlds).strip() == "worlds"


@pytest.mark.parametrize("name", ["bert", "decoder"])
def test_a_batch_computes_what_single_requests_do(name: str, request: pytest.FixtureRequest) -> None:
    with embedding(request.getfixturevalue(name)) as engine:
        prompts = [tokens(engine, text) for text in TEXTS * 30]
        together = rows(engine, prompts)
        alone = np.concatenate([rows(engine, [prompt]) for prompt in prompts[: len(TEXTS)]])
        assert np.abs(together - np.tile(alone, (30, 1))).max() < 1e-3
        assert np.abs(alone @ alone.T)[~np.eye(len(TEXTS), dtype=bool)].max() < 0.99, "all texts look the same"
        assert engine.stats().prompt_tokens == sum(map(len, prompts)) + sum(map(len, prompts[: len(TEXTS)]))


def test_an_encoder_ranks_as_numpy_does(folder: Path) -> None:
    path = tiny_embedding_gguf.bert(folder / "ranker.gguf", Pooling.RANK)
    weights = tiny_embedding_gguf.weights(path)
    with embedding(path) as engine:
        assert (engine.info.kind, engine.info.dimensions) == ("reranker", 0)
        pairs = [engine.pair("old cat?", text, 64)[0] for text in ("a new dog", "the old cat", "")]
        assert pairs[0] == [CLS, *map(token, ("old", "cat", "?")), SEP, *map(token, ("a", "new", "dog")), SEP]
        found = rows(engine, pairs)
        assert found.shape == (3, 1)
        assert found[:, 0] == pytest.approx([tiny_embedding_gguf.bert_score(weights, pair) for pair in pairs], abs=2e-3)
        assert engine.pair("[SEP]", "a", 64)[0].count(SEP) == 2, "what a client wrote came to count as markup"


def test_a_pair_may_be_parted_by_two_tokens(folder: Path) -> None:
    path = tiny_embedding_gguf.bert(folder / "parted.gguf", Pooling.RANK, pieces=False)
    bos, eos = tiny_embedding_gguf.BOS, tiny_embedding_gguf.EOS
    with embedding(path) as engine:
        a, b = (ord(letter) + 3 for letter in "ab")
        assert engine.pair("a", "b</s>", 64)[0] == [bos, a, eos, eos, b, *(ord(letter) + 3 for letter in "</s>"), eos]
        assert engine.pair("a", "bbb", 2) == ([bos, a, eos, eos, b, b, eos], False)
        long, cut = engine.pair("a", "b" * 99, 98)
        assert cut and len(long) == tiny_embedding_gguf.CONTEXT and long[:5] == [bos, a, eos, eos, b] and long[-1] == eos
        pair, _ = engine.pair("ab", "ba", 64)
        assert rows(engine, [pair])[0, 0] == pytest.approx(
            tiny_embedding_gguf.bert_score(tiny_embedding_gguf.weights(path), pair), abs=2e-3
        )


def test_a_decoder_ranks_as_numpy_does(folder: Path) -> None:
    path = tiny_embedding_gguf.qwen3(folder / "yes-or-no.gguf", Pooling.RANK)
    weights = tiny_embedding_gguf.weights(path)
    with embedding(path) as engine:
        assert engine.info.kind == "reranker" and engine.pair_template == tiny_embedding_gguf.RERANK
        pairs = [engine.tokenize(f"<Q>{q}<D>x", add_special=False, parse_special=True) for q in ("a", "bc", "d" * 600)]
        assert rows(engine, pairs)[:, 0] == pytest.approx(
            [tiny_embedding_gguf.qwen3_score(weights, p) for p in pairs], abs=2e-3
        )


def test_a_classifier_of_several_classes_is_refused(tmp_path: Path) -> None:
    path = tiny_embedding_gguf.bert(tmp_path / "classes.gguf", Pooling.RANK, classes=3)
    with pytest.raises(ModelLoadError, match="tells 3 classes apart"):
        EmbeddingEngine(path, EngineSettings(threads=1, gpu_layers=0))
    assert not any(path.name in thread.name for thread in threading.enumerate())


def test_a_cache_that_llama_cpp_refuses(decoder: Path) -> None:
    """Heads of 16 numbers cannot be stored in blocks of 32."""
    with pytest.raises(ModelLoadError, match="block size 32"):
        EmbeddingEngine(decoder, EngineSettings(kv_type="q4_0", threads=1, gpu_layers=0))


def test_what_llama_cpp_refuses_is_no_vector(bert: Path) -> None:
    with embedding(bert) as engine:
        context = engine._worker._context  # type: ignore[attr-defined]
        with pytest.raises(EngineFailure, match="llama_decode failed with code -1"):
            context.compute([[99_999]])
        with pytest.raises(EngineFailure, match="no embedding of sequence 3"):
            context._row(3)
        assert len(rows(engine, [[CLS]])) == 1


def test_it_says_what_it_is(bert: Path, decoder: Path) -> None:
    with embedding(bert) as first, embedding(decoder) as second:
        about = first.info
        assert (about.kind, about.dimensions, about.context, about.reuse) == (
            "embedding",
            32,
            tiny_embedding_gguf.CONTEXT,
            "none",
        )
        assert (about.architecture, about.kv_tokens, about.add_bos, about.bos) == ("bert", 0, True, "[CLS]")
        assert (second.info.context, second.info.kv_tokens) == (tiny_embedding_gguf.DECODER_CONTEXT,) * 2


@pytest.mark.parametrize(
    ("prompts", "reason"),
    [([], "at least one text"), ([[CLS], []], "at least one token"), ([[CLS, 25]], "from 0 to 24"), ([[-1]], "from 0 to 24")],
    ids=["no text", "an empty one", "an unknown token", "a negative one"],
)
def test_what_cannot_be_computed_is_refused(bert: Path, prompts: list[list[int]], reason: str) -> None:
    with embedding(bert) as engine, pytest.raises(InvalidField, match=reason) as caught:
        engine.embed(prompts)
    assert caught.value.field == "input"


def test_a_text_may_be_as_long_as_the_context(bert: Path) -> None:
    weights = tiny_embedding_gguf.weights(bert)
    whole = [CLS, *[token("cat"), token("dog")] * (tiny_embedding_gguf.CONTEXT // 2 - 1), SEP]
    with embedding(bert) as engine:
        assert rows(engine, [whole])[0] @ tiny_embedding_gguf.bert_vector(weights, whole) > CLOSE
        with pytest.raises(ContextLengthExceeded) as caught:
            engine.embed([[CLS], [*whole, SEP]])
        assert (caught.value.n_prompt_tokens, caught.value.n_ctx) == (
            tiny_embedding_gguf.CONTEXT + 1,
            tiny_embedding_gguf.CONTEXT,
        )


def test_the_context_is_what_was_asked_for_but_no_more_than_was_trained(bert: Path, decoder: Path) -> None:
    """Beyond that an encoder has no positions: llama.cpp would read past its table of them."""
    for path, configured, effective in ((bert, 32, 32), (bert, 100_000, tiny_embedding_gguf.CONTEXT), (decoder, 700, 700)):
        with embedding(path, context=configured) as engine:
            assert engine.info.context == effective
            assert rows(engine, [[3] * effective]).shape == (1, 32)


def test_the_context_fits_into_memory(decoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A default context is halved until it fits; a configured one is refused."""
    monkeypatch.setattr(hardware, "available_memory", lambda: 700_000)
    with embedding(decoder) as engine:
        assert engine.info.context == tiny_embedding_gguf.DECODER_CONTEXT // 2
    monkeypatch.setattr(hardware, "available_memory", lambda: 200_000)
    with pytest.raises(ModelLoadError, match=r"a context of 1024 tokens needs .* set a smaller context"):
        EmbeddingEngine(decoder, EngineSettings(context=2048, threads=1, gpu_layers=0))


class Held:
    """Holds an engine's computation until `go` is set."""

    def __init__(self, engine: EmbeddingEngine, then: Callable[[Rows], Any] = lambda found: found) -> None:
        context = engine._worker._context  # type: ignore[attr-defined]
        self._compute, self._then = context.compute, then
        self.computing = threading.Event()
        self.go = threading.Event()
        self.sizes: list[int] = []
        context.compute = self

    def __call__(self, sequences: Sequence[Sequence[int]]) -> Any:
        self.sizes.append(len(sequences))
        self.computing.set()
        assert self.go.wait(PATIENCE), "held and forgotten"
        return self._then(self._compute(sequences))


def test_requests_that_wait_are_computed_together(bert: Path) -> None:
    with embedding(bert) as engine:
        held = Held(engine)
        futures = [engine.embed([[CLS, token("cat")]])]
        assert held.computing.wait(PATIENCE)
        futures += [engine.embed([[CLS, token(word)], [CLS]]) for word in ("dog", "sun", "moon")]
        held.go.set()
        found = [future.result(PATIENCE) for future in futures]
        assert held.sizes == [1, 6]
        assert [len(each) for each in found] == [1, 2, 2, 2]
        assert np.abs(found[1][1] - found[2][1]).max() < 1e-3 < np.abs(found[1][0] - found[2][0]).max()


def test_a_cancelled_request_is_not_computed(bert: Path) -> None:
    with embedding(bert, parallel=1, queue=1) as engine:
        held = Held(engine)
        spent: list[int] = []
        running = engine.embed([[CLS]] * 2, spent=spent.append)
        assert held.computing.wait(PATIENCE)
        waiting = engine.embed([[CLS]] * 5, spent=spent.append)
        assert waiting.cancel() and running.cancel()
        last = engine.embed([[CLS]])
        held.go.set()
        assert last.result(PATIENCE).shape == (1, 32)
        assert held.sizes == [1, 1]
        assert spent == [0, 1]  # the one that waited, and the first half of the other
        with pytest.raises(CancelledError):
            running.result()


def test_a_full_queue_refuses(bert: Path) -> None:
    with embedding(bert, parallel=1, queue=1) as engine:
        held = Held(engine)
        both = [engine.embed([[CLS]]), engine.embed([[CLS]])]
        with pytest.raises(Overloaded) as caught:
            engine.embed([[CLS]])
        assert caught.value.retry_after == 2
        held.go.set()
        assert [len(future.result(PATIENCE)) for future in both] == [1, 1]
        assert len(rows(engine, [[CLS]])) == 1


def nothing(found: Rows) -> Rows:
    raise EngineFailure("llama_decode failed with code -3")


def broken(found: Rows) -> Rows:
    raise ZeroDivisionError


FAILURES: dict[str, tuple[Callable[[Rows], Rows], str]] = {
    "llama.cpp fails": (nothing, "code -3"),
    "something else does": (broken, "internal error"),
    "no numbers come": (lambda found: found * np.nan, "no numbers"),
}


@pytest.mark.parametrize(("fails", "reason"), FAILURES.values(), ids=FAILURES)
def test_a_failure_ends_what_was_in_the_batch_and_nothing_else(
    bert: Path, fails: Callable[[Rows], Rows], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with embedding(bert, parallel=2) as engine:
        held = Held(engine, fails)
        bad = engine.embed([[CLS]] * 3)
        assert held.computing.wait(PATIENCE)
        good = engine.embed([[CLS]])
        held._then = lambda found: fails(found) if len(held.sizes) == 1 else found
        held.go.set()
        with pytest.raises(EngineFailure, match=reason):
            bad.result(PATIENCE)
        assert good.result(PATIENCE).shape == (1, 32)
        assert "computing 2 embeddings failed" in caplog.text
        assert len(rows(engine, [[CLS]])) == 1


def test_closing_ends_what_waits(bert: Path) -> None:
    with embedding(bert, parallel=1) as engine, ThreadPoolExecutor() as pool:
        held = Held(engine)
        running = engine.embed([[CLS]] * 3)
        assert held.computing.wait(PATIENCE)
        closing = pool.submit(engine.close)
        until(lambda: engine._worker.commands.qsize() == 1)
        held.go.set()
        closing.result(PATIENCE)
        with pytest.raises(EngineClosed):
            running.result(PATIENCE)
        with pytest.raises(EngineClosed):
            engine.embed([[CLS]])
        assert held.sizes == [1]


def test_a_grace_lets_requests_finish(bert: Path) -> None:
    with embedding(bert, parallel=1) as engine, ThreadPoolExecutor() as pool:
        held = Held(engine)
        running = engine.embed([[CLS]] * 3)
        assert held.computing.wait(PATIENCE)
        closing = pool.submit(engine.close, PATIENCE)
        held.go.set()
        closing.result(PATIENCE)
        assert running.result(PATIENCE).shape == (3, 32)


def test_closing_leaves_nothing_behind(folder: Path, bert: Path, decoder: Path) -> None:
    for path in (bert, decoder):
        with embedding(path) as engine:
            rows(engine, [[CLS] * 20] * 20)
            assert any(mapped.path == str(path) for mapped in psutil.Process().memory_maps())
        assert not any(mapped.path == str(path) for mapped in psutil.Process().memory_maps())
        assert not any(path.name in thread.name for thread in threading.enumerate())


def test_many_threads_get_their_own(decoder: Path) -> None:
    with embedding(decoder) as engine:
        prompts = [tokens(engine, f"text {number}" * (number % 7 + 1)) for number in range(60)]
        expected = rows(engine, prompts)
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda prompt: rows(engine, [prompt])[0], prompts))
        assert np.abs(np.stack(found) - expected).max() < 2e-3


def test_a_good_load_is_worth_no_warning(bert: Path, decoder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), embedding(bert) as first, embedding(decoder) as second:
        rows(first, [[CLS]])
        rows(second, [[CLS, CLS]])
    assert max(record.levelno for record in caplog.records) < logging.WARNING


def test_a_failure_for_one_job_leaves_the_others_of_the_batch(bert: Path) -> None:
    with embedding(bert, parallel=4) as engine:
        alone = rows(engine, [[CLS, UNK]])
        held = Held(engine)
        first = engine.embed([[CLS]])
        assert held.computing.wait(PATIENCE)
        compute = engine._worker._context.compute

        def picky(sequences: Sequence[Sequence[int]]) -> Rows:
            if [SEP] in sequences:
                raise EngineFailure("llama_encode failed with code -1")
            return compute(sequences)

        engine._worker._context.compute = picky
        fine, bad, too = engine.embed([[CLS, UNK]]), engine.embed([[SEP], [CLS]]), engine.embed([[CLS]])
        held.go.set()
        with pytest.raises(EngineFailure, match="code -1"):
            bad.result(PATIENCE)
        assert np.abs(fine.result(PATIENCE) - alone).max() < 1e-3
        assert len(too.result(PATIENCE)) == len(first.result(PATIENCE)) == 1


def test_an_engine_that_computes_nothing_any_more_ends_and_so_does_what_waits(bert: Path) -> None:
    deaths: list[EngineDied] = []
    with embedding(bert, parallel=1, queue=50) as engine:
        held = Held(engine, nothing)
        engine.on_death(deaths.append)
        jobs = [engine.embed([[CLS]]) for _ in range(8)]
        held.go.set()
        errors = [job.exception(PATIENCE) for job in jobs]
        engine._thread.join(PATIENCE)
        assert [isinstance(error, EngineDied) for error in errors] == [False] * 4 + [True] * 4
        assert len(deaths) == 1
        with pytest.raises(EngineClosed):
            engine.embed([[CLS]])
