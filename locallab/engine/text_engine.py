"""One loaded model that makes text, usable from any thread: submit, cancel, stats, close."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Literal

from locallab import hardware
from locallab.engine import llama, sampler
from locallab.engine.answer import Answer
from locallab.engine.cache import UNLIMITED
from locallab.engine.costs import StepCosts
from locallab.engine.engine import Engine, Works, device, free_memory, info_of
from locallab.engine.grammar.grammars import Grammars
from locallab.engine.host_cache import HostCache
from locallab.engine.limits import WALK_SECONDS, context_length, idle_cells
from locallab.engine.limits import limits as limits_of
from locallab.engine.post import Post, call_each
from locallab.engine.request import Constraint, Listener, SamplingParams
from locallab.engine.scheduler import Scheduler
from locallab.engine.sequence import Sequence
from locallab.engine.worker import Cancel, Submit, Worker
from locallab.errors import ContextLengthExceeded, InvalidField, ModelLoadError
from locallab.settings import EngineSettings

CALIBRATION_TOKENS = 64


class TextEngine(Engine):
    """An engine that answers prompts, many at once in one KV pool."""

    def __init__(self, path: Path, settings: EngineSettings, post: Post = call_each) -> None:
        """Load the model (seconds). Raises ModelLoadError."""
        self._ids = itertools.count()
        self._post = post
        super().__init__(path, settings)

    def prepare(self, constraint: Constraint) -> None:
        """Compile a constraint, so that `submit` need not: milliseconds, a quarter of a second for a model's first one.

        Raises InvalidField, with the constraint's own field, for what cannot be enforced in full; EngineClosed.
        """
        self._grammars.compile(constraint)

    def submit(self, prompt: Seq[int], params: SamplingParams, listener: Listener, *, urgent: bool = False) -> int:
        """Queue a request and return its id at once; `listener` gets its events through the engine's `post`.

        An `urgent` one goes ahead of others, within bounds. A constraint that is not prepared is compiled here.
        Raises InvalidField, ContextLengthExceeded (before any work), Overloaded, EngineClosed.
        """
        tokens = list(prompt)
        self.check(tokens, params)
        limit = self.info.context if params.max_tokens is None else min(self.info.context, len(tokens) + params.max_tokens)
        guide = self._grammars.guide(params.constraint) if params.constraint else None
        with self._lock:
            self._admit()
            answer = Answer(params, self._model, guide)
            sequence = Sequence(next(self._ids), tokens, len(tokens), limit, answer, listener, urgent)
            self._worker.commands.put(Submit(sequence))
        return sequence.id

    def check(self, tokens: Seq[int], params: SamplingParams) -> None:
        """Raise InvalidField and ContextLengthExceeded as `submit` does."""
        sampler.check(params, self.info.n_vocab)
        if not tokens:
            raise InvalidField("prompt", "must have at least one token")
        self._check_tokens("prompt", tokens)
        if len(tokens) >= self.info.context:
            raise ContextLengthExceeded(len(tokens), self.info.context)

    def cancel(self, request_id: int) -> None:
        """End a request within a step; one that has ended already stays as it is."""
        self._worker.commands.put(Cancel(request_id))

    def _load(self, path: Path, native: contextlib.ExitStack) -> Works:
        settings = self._settings
        model, on_gpu = self._open_model(path, native)
        if not model.has_decoder:
            raise ModelLoadError(path, "this model cannot generate text")
        self._grammars = Grammars(model)
        native.callback(self._grammars.close)
        limits = limits_of(model, settings, free_memory(model, settings, on_gpu), on_gpu)
        threads = settings.threads or hardware.threads()
        context = llama.Context(
            model,
            n_ctx=limits.cells,
            n_batch=limits.batch,
            n_sequences=limits.slots,
            threads=threads,
            kv_type=settings.kv_type,
        )
        native.callback(context.close)
        reuse: Literal["prefix", "whole"] = "prefix" if limits.rewind_limit == UNLIMITED else "whole"
        where = device(model, settings, threads, on_gpu)
        self.info = info_of(
            model,
            context=context_length(model, settings),
            kv_tokens=limits.cells,
            reuse=reuse,
            device=where,
            fim=model.fim,
            parallel=limits.parallel,
        )
        costs = _calibrate(context, model.n_vocab, min(CALIBRATION_TOKENS, limits.batch))
        if settings.cache_tokens is None:
            walk = WALK_SECONDS * model.n_layer * model.n_head / threads
            if on_gpu:  # a cell's bytes at the rate at which a step reads the weights
                walk = model.kv_bytes_per_token(settings.kv_type) * costs.decode(1) / model.size_bytes
            limits = dataclasses.replace(limits, cache_cells=idle_cells(limits, costs.per_token(), walk))
        host = HostCache(settings.cache_ram_mib << 20, limits.rewind_limit)
        return Worker(context, Scheduler(limits, host, costs), model.n_vocab, self._post, self._ended)


def _calibrate(context: llama.Context, n_vocab: int, chunk: int) -> StepCosts:
    """Measure a decode step and a prompt chunk of this length, to cut the first chunks for this machine; this also warms up."""
    costs = StepCosts()
    batch = llama.Batch(chunk)
    for count in (1, 1, chunk):
        batch.fill([i % n_vocab for i in range(count)], range(count), [0] * count, [0] * (count - 1) + [1])
        began = time.perf_counter()
        context.decode(batch)
        seconds = time.perf_counter() - began
        context.clear()
        n_answers = int(count == 1)
        costs.observe(n_answers, count - n_answers, seconds)
    return costs
