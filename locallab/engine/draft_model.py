"""A second, small model whose likeliest continuation is the draft. Used by the engine's thread alone."""

from __future__ import annotations

import contextlib
import logging
import time

import llama_cpp
import numpy as np

from locallab import hardware
from locallab.engine import llama
from locallab.engine.batch import Batch
from locallab.engine.context import NO_ROOM, Context
from locallab.engine.follower import Follower, Stream
from locallab.engine.limits import Limits
from locallab.engine.sequence import Sequence
from locallab.engine.speculative import LONGEST
from locallab.engine.step_plan import Chunk, StepPlan
from locallab.errors import EngineFailure, ModelLoadError
from locallab.memory_model import draft_cache
from locallab.settings import EngineSettings

PADDING = 128
"""Tokens by which two vocabularies that are the same may differ in length: files are padded to whole blocks."""

CALIBRATION_TOKENS = 64

FAILURES = 3
"""Failures after which the draft model is taken for broken."""

logger = logging.getLogger(__name__)


class Drafter:
    """Carries out what is planned for the draft model, on the streams that `follower` gives sequences."""

    def __init__(self, context: Context, follower: Follower, n_vocab: int) -> None:
        """Token ids below `n_vocab` are in both vocabularies."""
        self._context = context
        self._follower = follower
        self._n_vocab = n_vocab
        self._batch = Batch(follower.batch)
        self._failures = 0

    def carry_out(self, plan: StepPlan) -> list[list[Chunk]]:
        """Read and guess; return the batches of the plan with the drafts, or without where that fails: answers need none."""
        wanted = {chunk.sequence: chunk.guess for batch in plan.batches for chunk in batch if chunk.guess}
        try:
            if plan.read is not None:
                self._read(plan.read.sequence, plan.read.count)
            drafts = self._guess(list(wanted), max(wanted.values())) if wanted else {}
        except Exception as error:
            self._start_over(error)
            return [[Chunk.of(c.sequence, 1) if c.guess else c] for batch in plan.batches for c in batch]
        return [[c.with_draft(drafts[c.sequence]) if c.guess else c for c in batch] for batch in plan.batches]

    def learn(self, sequence: Sequence, right: int, length: int) -> None:
        """Learn that of a draft of `length` tokens the first `right` were right."""
        self._follower.guessed(sequence, right, length)

    def _start_over(self, error: Exception) -> None:
        """Empty the KV cache, whose content is unknown; do nothing any more if that has not helped before."""
        self._failures += 1
        logger.error("the draft model failed", exc_info=error)
        self._context.clear()
        self._follower.forget()
        if self._failures > FAILURES:
            logger.error("the draft model drafts no more")
            self._follower.end()

    def _read(self, sequence: Sequence, count: int) -> None:
        """Compute the next `count` known tokens of a sequence."""
        stream, began = self._stream(sequence), time.perf_counter()
        tokens = sequence.tokens[stream.same : stream.same + count]
        self._compute([(stream.index, stream.same, tokens)])
        self._follower.computed(stream, tokens, known=True)
        self._follower.costs.observe_read(len(tokens), time.perf_counter() - began)

    def _guess(self, sequences: list[Sequence], length: int) -> dict[Sequence, list[int]]:
        """Return for each sequence the `length` tokens that the draft model finds likeliest."""
        began = time.perf_counter()
        streams = sorted(((self._stream(each), each) for each in sequences), key=lambda pair: pair[0].index)
        drafts: dict[Sequence, list[int]] = {each: [] for each in sequences}
        for at in range(length):
            pieces = []
            for stream, sequence in streams:
                draft = drafts[sequence]
                tokens = [draft[-1]] if draft else sequence.tokens[stream.same :]
                start = len(sequence.tokens) + at - 1 if draft else stream.same
                pieces.append((stream.index, start, tokens))
            for (_, sequence), token in zip(streams, self._compute(pieces), strict=True):
                drafts[sequence].append(token)
        for stream, sequence in streams:
            self._follower.computed(stream, sequence.tokens[stream.same :], known=True)
            self._follower.computed(stream, drafts[sequence][:-1], known=False)
        self._follower.costs.observe_guess(len(sequences), length, time.perf_counter() - began)
        return drafts

    def _stream(self, sequence: Sequence) -> Stream:
        """Return the stream of a sequence, without what is not the sequence's."""
        stream = self._follower.stream(sequence)
        assert stream is not None, "only what has a stream is planned"
        if len(stream.held) > stream.same:
            self._context.remove(stream.index, stream.same)
            del stream.held[stream.same :]
        return stream

    def _compute(self, pieces: list[tuple[int, int, list[int]]]) -> list[int]:
        """Compute pieces, each a stream, a position and the tokens there; return the likeliest token behind each."""
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        outputs: list[int] = []
        for index, start, piece in pieces:
            tokens += [token if token < self._n_vocab else 0 for token in piece]
            positions += range(start, start + len(piece))
            slots += [index] * len(piece)
            outputs += [0] * (len(piece) - 1) + [1]
        self._batch.fill(tokens, positions, slots, outputs)
        if self._context.decode(self._batch) == NO_ROOM:
            raise EngineFailure("llama.cpp finds no KV room for the draft model")
        rows = self._context.logits()[: len(pieces), : self._n_vocab]
        return [int(token) for token in np.argmax(rows, axis=1)]


def open_drafter(
    model: llama.Model,
    target: llama.Model,
    limits: Limits,
    settings: EngineSettings,
    context: int,
    native: contextlib.ExitStack,
) -> tuple[Drafter, Follower]:
    """Return the drafter of a loaded pair, and what it has of the sequences; `native` will free its context.

    `limits` are those of the target, `context` the most tokens of a request. Raises ModelLoadError.
    """
    cache, batch = draft_cache(limits.cells, context, limits.parallel)
    native_context = Context(
        model,
        n_ctx=cache.cells,
        n_batch=batch,
        n_sequences=cache.sequences,
        n_outputs=cache.outputs,
        threads=settings.threads or hardware.threads(),
        kv_type=settings.kv_types[0],
        kv_type_v=settings.kv_types[1],
        unified=False,
    )
    native.callback(native_context.close)
    rewinds = LONGEST if model.sliding_window else None
    follower = Follower(cache.streams, cache.cells // cache.streams, batch, rewinds)
    _calibrate(native_context, follower, model.n_vocab)
    return Drafter(native_context, follower, min(model.n_vocab, target.n_vocab)), follower


def check_pair(model: llama.Model, target: llama.Model) -> None:
    """Raise ModelLoadError if `model` cannot draft for `target`."""

    def refuse(reason: str) -> ModelLoadError:
        return ModelLoadError(model.path, f"it cannot draft for {target.path.name}: {reason}")

    if target.keeps_state:
        raise refuse(f"{target.path.name} keeps a running state, which a wrong draft cannot be taken out of again")
    if not model.has_decoder:
        raise refuse("it cannot generate text")
    if model.keeps_state:
        raise refuse("it keeps a running state, which cannot be rewound; name a model with attention alone")
    if abs(model.n_vocab - target.n_vocab) > PADDING:
        raise refuse(f"its vocabulary has {model.n_vocab:,} tokens, not {target.n_vocab:,}; name a model of the same family")
    if (model.add_bos, model.bos, model.eos) != (target.add_bos, target.bos, target.eos):
        raise refuse("texts begin or end with other tokens; name a model of the same family")
    for token in range(min(model.n_vocab, target.n_vocab)):
        ours, theirs = (llama_cpp.llama_vocab_get_text(each.vocabulary, token) for each in (model, target))
        if ours != theirs:
            ours, theirs = ours.decode("utf-8", "replace"), theirs.decode("utf-8", "replace")
            raise refuse(f"token {token} is {ours!r}, not {theirs!r}; name a model of the same family")


def _calibrate(context: Context, follower: Follower, n_vocab: int) -> None:
    """Measure a guess and the reading of a piece, so that the first drafts are chosen for this machine; this also warms up. The
    least of three figures counts: one that is too large would not be measured again."""
    count = min(CALIBRATION_TOKENS, follower.batch)
    batch = Batch(count)
    seconds: dict[int, list[float]] = {1: [], count: []}
    for n in (1, count) * 3:
        context.clear()
        batch.fill([i % n_vocab for i in range(n)], range(n), [0] * n, [0] * (n - 1) + [1])
        began = time.perf_counter()
        context.decode(batch)
        seconds[n].append(time.perf_counter() - began)
    follower.costs.observe_guess(1, 1, min(seconds[1]))
    follower.costs.observe_read(count, min(seconds[count]))
    context.clear()
