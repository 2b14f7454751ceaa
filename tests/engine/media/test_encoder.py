from __future__ import annotations

import queue
import threading
from collections.abc import Callable

import numpy as np

from locallab.engine.media.encoder import Encoded, Encoder
from locallab.engine.media.runs import Embeddings, Run, ids
from locallab.engine.request import SamplingParams
from locallab.engine.sequence import Sequence
from locallab.errors import EngineFailure
from tests.support.fake_llama import FakeModel
from tests.support.wait import PATIENCE


class Projector:
    """Encodes a run to its key's first byte, when it may."""

    def __init__(self) -> None:
        self.keys: list[bytes] = []
        self.may = threading.Event()
        self.may.set()
        self.error: Exception | None = None

    def encode(self, run: Run) -> Embeddings:
        assert self.may.wait(PATIENCE)
        self.keys.append(run.key)
        if self.error is not None:
            raise self.error
        return np.full((run.count, 4), run.key[0], np.float32)


def sequence(*keys: bytes, id: int = 0) -> Sequence:
    from locallab.engine.answer import Answer

    runs, tokens = [], [1]
    for key in keys:
        runs.append(Run(len(tokens), 4, 4, key, "images[0]", source=object()))
        tokens += [*ids(key, 4), 2]
    answer = Answer(SamplingParams(), FakeModel())  # type: ignore[arg-type]
    return Sequence(id, tokens, len(tokens), 100, answer, lambda _: None, runs=tuple(runs))


class Bench:
    def __init__(self, capacity: int = 1 << 20) -> None:
        self.projector = Projector()
        self.reports: queue.SimpleQueue[Encoded] = queue.SimpleQueue()
        self.encoder = Encoder(self.projector, capacity, self.reports.put)

    def until(self, done: Callable[[], bool], *sequences: Sequence) -> list[Sequence]:
        while True:
            self.encoder.serve(sequences)
            if done():
                return []
            if failed := self.encoder.take(self.reports.get(timeout=PATIENCE), sequences):
                return failed


def test_runs_are_encoded_in_turn_and_equal_ones_once() -> None:
    bench = Bench()
    first, second = sequence(b"a", b"b"), sequence(b"a", b"c", id=1)
    bench.until(lambda: not (first.unencoded or second.unencoded), first, second)
    assert bench.projector.keys == [b"a", b"b", b"c"]
    assert all(run.source is None and run.embeddings is not None for run in (*first.runs, *second.runs))
    assert first.runs[0].embeddings is second.runs[0].embeddings
    bench.encoder.close()


def test_what_has_been_encoded_is_kept_up_to_the_capacity() -> None:
    bench = Bench(capacity=2 * 64)
    for key in (b"a", b"b", b"a", b"c", b"a", b"b"):
        of = sequence(key)
        bench.until(lambda of=of: not of.unencoded, of)
    assert bench.projector.keys == [b"a", b"b", b"c", b"b"]
    bench.encoder.close()


def test_nobody_waits_for_the_pictures_of_who_has_left() -> None:
    bench = Bench()
    gone, stays = sequence(b"a", b"b"), sequence(b"c", id=1)
    bench.projector.may.clear()
    bench.encoder.serve([gone, stays])
    bench.projector.may.set()
    bench.until(lambda: not stays.unencoded, stays)
    assert bench.projector.keys == [b"a", b"c"]
    bench.encoder.close()


def test_what_is_computed_already_is_not_encoded() -> None:
    bench = Bench()
    of = sequence(b"a", b"b")
    of.computed = of.runs[0].end
    bench.until(lambda: not of.unencoded, of)
    assert bench.projector.keys == [b"b"]
    bench.encoder.close()


def test_an_error_ends_those_who_need_the_picture() -> None:
    for error in (EngineFailure("images[0] cannot be encoded"), RuntimeError("unexpected")):
        bench = Bench()
        bench.projector.error = error
        needs, does_not = sequence(b"a"), sequence(b"b", id=1)
        bench.encoder.serve([needs])
        encoded = bench.reports.get(timeout=PATIENCE)
        assert isinstance(encoded.error, EngineFailure) and str(error) in str(encoded.error)
        assert bench.encoder.take(encoded, [needs, does_not]) == [needs]
        bench.encoder.close()
