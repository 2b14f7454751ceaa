"""One loaded embedding model or reranker, usable from any thread."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from collections.abc import Sequence as Seq
from concurrent.futures import Future
from pathlib import Path

import numpy as np

from locallab import hardware
from locallab.engine import llama
from locallab.engine.caller import LOCAL, Caller
from locallab.engine.embedding.context import RANK, PooledContext, Rows, in_steps, pair_template, pooling_of, seam, width
from locallab.engine.embedding.limits import limits as limits_of
from locallab.engine.embedding.packing import EmbedJob, Packing
from locallab.engine.embedding.worker import Embed, EmbedWorker
from locallab.engine.engine import Engine, Works, device, free_memory, info_of
from locallab.errors import ContextLengthExceeded, InvalidField, ModelLoadError

SOFTMAX = ("qwen3", "qwen3vl")
"""Architectures whose classifier has the classes yes and no, in this order, with probabilities."""


class EmbeddingEngine(Engine):
    """An engine that computes rows of numbers: vectors, or relevances."""

    def embed(
        self, prompts: Seq[Seq[int]], caller: Caller = LOCAL, spent: Callable[[int], None] = lambda tokens: None
    ) -> Future[Rows]:
        """Queue a request; its future holds a row for each prompt: a vector of length 1, or a reranker's relevance from 0 to 1.
        Cancelling the future ends the request. `spent` is then called, in any thread, with the tokens that were computed.

        Raises InvalidField, ContextLengthExceeded (before any work), Overloaded, EngineClosed.
        """
        sequences = [list(prompt) for prompt in prompts]
        if not sequences:
            raise InvalidField("input", "must have at least one text")
        for tokens in sequences:
            if not tokens:
                raise InvalidField("input", "must have at least one token")
            self._check_tokens("input", tokens)
            if len(tokens) > self.info.context:
                raise ContextLengthExceeded(len(tokens), self.info.context)
        future: Future[Rows] = Future()
        with self._lock:
            overloaded = self._admit(caller)
            job = EmbedJob(sequences, future, caller)
            self._worker.commands.put(Embed(job, overloaded))
        future.add_done_callback(lambda _: self._ended(caller))
        future.add_done_callback(lambda _: spent(job.computed))
        return future

    @property
    def closing(self) -> list[int]:
        """The tokens that close a text."""
        return self.tokenize("", add_special=True, parse_special=False)[self.info.add_bos :]

    def pair(self, query: str, document: str, most: int) -> tuple[list[int], bool]:
        """Return the tokens of a question and a text for a reranker without a template: at most `most` of the text, and no more
        than the context has room for; the second value says whether that was less. Markup in them is text.

        Raises ContextLengthExceeded for a question that leaves no room.
        """
        head = self.tokenize(query, add_special=True, parse_special=False) + self._seam
        tail = self.tokenize(document, add_special=True, parse_special=False)[self.info.add_bos :]
        closing, whole = self.closing, len(tail) - len(self.closing)
        room = self.info.context - len(head) - len(closing)
        if room < 1:
            raise ContextLengthExceeded(len(head) + len(closing), self.info.context)
        kept = min(whole, most, room)
        return head + tail[:kept] + closing, kept < min(whole, most)

    def _load(self, path: Path, native: contextlib.ExitStack) -> Works:
        settings = self._settings
        model, on_gpu = self._open_model(path, native)
        limits = limits_of(model, settings, free_memory(model, settings, on_gpu), on_gpu)
        threads = settings.threads or hardware.threads()
        context = PooledContext(model, tokens=limits.cells, n_sequences=limits.sequences, threads=threads, settings=settings)
        native.callback(context.close)
        finish = _finish(model)
        context.compute([[0]])  # what cannot be computed is not to be found by the first request
        self._seam = seam(model)
        self.pair_template = pair_template(model)
        self.info = info_of(
            model,
            context=limits.context,
            kv_tokens=limits.cells if in_steps(model) else 0,
            reuse="none",
            device=device(model, settings, threads, on_gpu),
            kind="reranker" if pooling_of(model) == RANK else "embedding",
            dimensions=0 if pooling_of(model) == RANK else width(model),
        )
        return EmbedWorker(context, Packing(limits.batch, limits.sequences), finish)


def _finish(model: llama.Model) -> Callable[[Rows], Rows]:
    """Return the function from the model's rows to vectors or relevances. Raises ModelLoadError for several classes."""
    if pooling_of(model) != RANK:
        return _unit
    if model.meta("general.architecture") in SOFTMAX:
        return lambda rows: rows[:, :1]
    if width(model) != 1:
        raise ModelLoadError(model.path, f"this model tells {width(model)} classes apart; that is not served")
    return lambda rows: np.asarray(0.5 * (1 + np.tanh(0.5 * rows)), np.float32)  # the logistic function


def _unit(rows: Rows) -> Rows:
    """Return the rows scaled to length 1."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(lengths == 0, 1, lengths), np.float32)
