"""One loaded model, usable from any thread: submit, cancel, stats, close."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import queue
import threading
import time
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal, Protocol

from locallab import hardware
from locallab.engine import llama, sampler
from locallab.engine.answer import Answer
from locallab.engine.cache import UNLIMITED
from locallab.engine.costs import StepCosts
from locallab.engine.grammar.grammars import Grammars
from locallab.engine.host_cache import HostCache
from locallab.engine.limits import WALK_SECONDS, context_length, idle_cells, kv_room
from locallab.engine.limits import limits as limits_of
from locallab.engine.post import Post, call_each
from locallab.engine.request import Constraint, EngineStats, FimTokens, Kind, Listener, SamplingParams
from locallab.engine.scheduler import Scheduler
from locallab.engine.sequence import Sequence
from locallab.engine.totals import Totals
from locallab.engine.worker import Cancel, Close, Submit, Worker
from locallab.errors import ContextLengthExceeded, EngineClosed, InvalidField, ModelLoadError, Overloaded
from locallab.settings import EngineSettings

CALIBRATION_TOKENS = 64


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """Facts about a loaded model. The prefix cache may `reuse` any prefix, only whole finished sequences (recurrent, hybrid and
    sliding-window models), or nothing where no text is made. `fim` is None for a model without fill-in-the-middle tokens.
    `dimensions` are those of an embedding model's vectors; `parallel` requests are computed at once. Sizes in bytes, lengths in
    tokens."""

    path: Path
    description: str
    architecture: str
    size_bytes: int
    n_params: int
    n_ctx_train: int
    context: int
    kv_tokens: int
    n_vocab: int
    chat_template: str | None
    bos: str
    eos: str
    add_bos: bool
    reuse: Literal["prefix", "whole", "none"]
    device: str
    fim: FimTokens | None = None
    control_tokens: Mapping[str, int] = dataclasses.field(default_factory=dict)
    kind: Kind = "text"
    dimensions: int = 0
    parallel: int = 1


class Works(Protocol):
    """A worker in a thread of the engine's own."""

    commands: queue.SimpleQueue[Any]
    totals: Totals

    def run(self) -> None: ...
    def stats(self) -> EngineStats: ...


class Engine:
    """One model, its KV pool and the thread that computes. Every method may be called from any thread."""

    def __init__(self, path: Path, settings: EngineSettings, post: Post = call_each) -> None:
        """Load the model (seconds). Raises ModelLoadError."""
        self._settings = settings
        self._ids = itertools.count()
        self._lock = threading.Lock()
        self._native_lock = threading.Lock()
        self._open = 0
        self._closed = False
        self._loaded: Future[None] = Future()
        self._thread = threading.Thread(target=self._work, args=(path, post), name=f"engine {path.name}", daemon=True)
        self._thread.start()
        if self._loaded.exception():
            self._thread.join()
        self._loaded.result()

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Return the token ids of `text`: `add_special` adds what the model wants around it, `parse_special` reads markup as
        tokens."""
        with self._native_lock:
            if self._closed:
                raise EngineClosed()
            return self._model.tokenize(text, add_special=add_special, parse_special=parse_special)

    def pieces(self, tokens: Seq[int]) -> list[bytes]:
        """Return the text of each token, markup included. Raises InvalidField."""
        with self._native_lock:
            if self._closed:
                raise EngineClosed()
            self._check_tokens("tokens", tokens)
            return [self._model.piece(token) or self._model.markup(token) for token in tokens]

    def detokenize(self, tokens: Seq[int]) -> str:
        """Return the text of `tokens`, markup included; invalid UTF-8 becomes U+FFFD. Raises InvalidField."""
        return b"".join(self.pieces(tokens)).decode("utf-8", "replace")

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

    def stats(self) -> EngineStats:
        return self._worker.stats()

    @property
    def totals(self) -> Totals:
        """Counts since the load; they remain when the engine is closed."""
        return self._worker.totals

    def close(self, grace: float = 0.0) -> None:
        """Refuse new requests, let running ones finish for `grace` seconds, cancel the rest, and free all native memory."""
        with self._lock:
            self._closed = True
            self._worker.commands.put(Close(time.monotonic() + grace))
        self._thread.join()

    def _admit(self) -> None:
        """Count a request in; call it with the lock held. Raises Overloaded, EngineClosed."""
        if self._closed:
            raise EngineClosed()
        waiting = self._open - self._settings.parallel
        if waiting >= self._settings.queue:
            raise Overloaded(waiting, retry_after=1 + waiting // self._settings.parallel)
        self._open += 1

    def _check_tokens(self, field: str, tokens: Seq[int]) -> None:
        if tokens and (min(tokens) < 0 or max(tokens) >= self.info.n_vocab):
            raise InvalidField(field, f"token ids must be from 0 to {self.info.n_vocab - 1}")

    def _ended(self) -> None:
        with self._lock:
            self._open -= 1

    def _work(self, path: Path, post: Post) -> None:
        """Run the engine's thread: everything native is made, used and freed in it."""
        try:
            with contextlib.ExitStack() as native:
                worker = self._load(path, post, native)
                native.callback(self._shut)
                self._loaded.set_result(None)
                worker.run()
        except BaseException as error:
            if self._loaded.done():
                raise
            self._loaded.set_exception(error)

    def _shut(self) -> None:
        """Admit nobody any more and wait for who is tokenizing: before anything native is freed, whatever ended the thread."""
        with self._lock:
            self._closed = True
        with self._native_lock:
            pass

    def _open_model(self, path: Path, native: contextlib.ExitStack) -> tuple[llama.Model, bool]:
        """Return the model, which `native` will free, and whether it is on a GPU. Raises ModelLoadError, also for weights that
        are larger than the free memory: the system would grind to a halt."""
        on_gpu = self._settings.gpu_layers != 0 and llama.supports_gpu()
        size = path.stat().st_size if path.exists() else 0
        if not on_gpu and size > (free := hardware.available_memory()):
            reason = f"its weights need {size / 2**30:.1f} GiB of memory, {free / 2**30:.1f} GiB are free"
            raise ModelLoadError(path, reason)
        model = self._model = llama.Model(path, self._settings.gpu_layers)
        native.callback(model.close)
        return model, on_gpu

    def _load(self, path: Path, post: Post, native: contextlib.ExitStack) -> Works:
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
        self._worker: Works = Worker(context, Scheduler(limits, host, costs), model.n_vocab, post, self._ended)
        return self._worker


def free_memory(model: llama.Model, settings: EngineSettings, on_gpu: bool) -> int:
    """Return the bytes that the model's KV pool may take, now that its weights are loaded."""
    gpus = [gpu["free_bytes"] for gpu in hardware.gpus()] if on_gpu else []
    return kv_room(hardware.available_memory(), gpus, settings.gpu_layers, model.n_layer)


def device(model: llama.Model, settings: EngineSettings, threads: int, on_gpu: bool) -> str:
    """Describe the device that computes."""
    if not on_gpu:
        return f"CPU ({threads} threads)"
    layers = model.n_layer + 1
    offloaded = layers if settings.gpu_layers < 0 else min(layers, settings.gpu_layers)
    name = next((str(gpu["name"]) for gpu in hardware.gpus()), "GPU")
    return f"{name} ({offloaded}/{layers} layers)"


def info_of(model: llama.Model, **facts: Any) -> ModelInfo:
    """Return what the model says of itself with the `facts` that depend on how it was loaded."""
    return ModelInfo(
        path=model.path,
        description=model.description,
        architecture=model.meta("general.architecture") or "unknown",
        size_bytes=model.size_bytes,
        n_params=model.n_params,
        n_ctx_train=model.n_ctx_train,
        n_vocab=model.n_vocab,
        chat_template=model.chat_template,
        bos=model.bos,
        eos=model.eos,
        add_bos=model.add_bos,
        control_tokens=model.control_tokens(),
        **facts,
    )


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
