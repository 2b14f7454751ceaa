"""One loaded model, usable from any thread: what engines of text and of embeddings have in common."""

from __future__ import annotations

import abc
import atexit
import contextlib
import dataclasses
import logging
import queue
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal, Protocol

from locallab import hardware
from locallab.engine import llama
from locallab.engine.adapters import AdapterInfo
from locallab.engine.caller import Caller, Places
from locallab.engine.commands import Close, Look
from locallab.engine.limits import kv_room
from locallab.engine.llama import Memory
from locallab.engine.placement import Placement, set_numa
from locallab.engine.request import EngineStats, FimTokens, Kind
from locallab.engine.tokenizer import Tokenizer
from locallab.engine.totals import Totals
from locallab.engine.view import EngineView, view_of
from locallab.errors import EngineClosed, EngineDied, EngineFailure, InvalidField, ModelLoadError, Overloaded
from locallab.media.attachment import Attachment
from locallab.placement_settings import overrides
from locallab.settings import EngineSettings, Layout

logger = logging.getLogger(__name__)

TEXT_ONLY = frozenset({"text"})

CHECKED = 65_536
"""Token ids checked in one go: in between, other threads get the GIL."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """Facts about a loaded model. `memory` is what it keeps of earlier tokens, `kv_layout` where that lies. The prefix cache
    may `reuse` any prefix, those of which it has a snapshot (a window or a running state cannot be cut), or nothing where no
    text is made. `fim` is None for a model without fill-in-the-middle tokens.
    `dimensions` are those of an embedding model's vectors; `parallel` requests are computed at once. `sampling` has
    what SamplingParams are for this model unless a request says otherwise. `modalities` are what a prompt may hold: "text",
    "image", "audio". `adapters` are those that it was loaded with, in the order of their ids. Sizes in bytes, lengths in
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
    reuse: Literal["prefix", "snapshots", "none"]
    device: str
    fim: FimTokens | None = None
    control_tokens: Mapping[str, int] = dataclasses.field(default_factory=dict)
    kind: Kind = "text"
    dimensions: int = 0
    parallel: int = 1
    memory: Memory = "attention"
    kv_layout: Layout = "unified"
    sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    modalities: frozenset[str] = TEXT_ONLY
    named_templates: Mapping[str, str] = dataclasses.field(default_factory=dict)
    adapters: tuple[AdapterInfo, ...] = ()


class Works(Protocol):
    """A worker in a thread of the engine's own."""

    commands: queue.SimpleQueue[Any]
    totals: Totals

    def run(self) -> None: ...
    def abandon(self, error: EngineFailure) -> None: ...
    def stats(self) -> EngineStats: ...


class Engine(abc.ABC):
    """One model and the thread that computes. Every method may be called from any thread."""

    info: ModelInfo
    _model: llama.Model
    _tokenizer: Tokenizer
    _worker: Works

    def __init__(self, path: Path, settings: EngineSettings) -> None:
        """Load the model (seconds). Raises ModelLoadError."""
        self._settings = settings
        self._lock = threading.Lock()
        self._open = Places()
        self._closed = False
        self._death: Future[EngineDied] = Future()
        self._loaded: Future[None] = Future()
        self._thread = threading.Thread(target=self._work, args=(path,), name=f"engine {path.name}", daemon=True)
        self._thread.start()
        if self._loaded.exception():
            self._thread.join()
        self._loaded.result()
        _loaded.add(self)

    def tokenize(
        self,
        text: str,
        *,
        add_special: bool,
        parse_special: bool,
        fits: bool = False,
        stopped: Callable[[], bool] = lambda: False,
        media: Seq[Attachment] = (),
    ) -> list[int]:
        """Return the token ids of `text`: `add_special` adds what the model wants around it, `parse_special` reads markup as
        tokens. Blocks for as long as the text asks for; other threads' texts do not wait for it.

        With `fits`, raises ContextLengthExceeded for what is longer than the context, most often before any work. Raises
        Abandoned once `stopped` says so, EngineClosed, and RequestError for a word that is too long for the vocabulary.
        `media` are those of the markers in the text, in their order: InvalidField where the model takes none.
        """
        if media:
            raise InvalidField(media[0].field, "this model takes only text")
        context = self.info.context if fits else None
        return self._tokenizer.tokenize(
            text, add_special=add_special, parse_special=parse_special, context=context, stopped=stopped
        )

    def pieces(self, tokens: Seq[int]) -> list[bytes]:
        """Return the text of each token, markup included. Raises InvalidField and EngineClosed."""
        self._check_tokens("tokens", tokens)
        return self._tokenizer.pieces(tokens)

    def detokenize(self, tokens: Seq[int]) -> str:
        """Return the text of `tokens`, markup included; invalid UTF-8 becomes U+FFFD. Raises as `pieces`."""
        self._check_tokens("tokens", tokens)
        return self._tokenizer.detokenize(tokens)

    def stats(self) -> EngineStats:
        return self._worker.stats()

    def view(self) -> Future[EngineView]:
        """Ask what the engine does now. Its own thread answers between two steps; once it has ended, nobody does."""
        answer: Future[EngineView] = Future()
        self._worker.commands.put(Look(answer, view_of))
        return answer

    @property
    def totals(self) -> Totals:
        """Counts since the load; they remain when the engine is closed."""
        return self._worker.totals

    def close(self, grace: float = 0.0) -> None:
        """Refuse new requests, let running ones finish for `grace` seconds, cancel the rest, and free all native memory."""
        self._tokenizer.refuse()
        with self._lock:
            self._closed = True
            self._worker.commands.put(Close(time.monotonic() + grace))
        self._thread.join()

    def on_death(self, callback: Callable[[EngineDied], None]) -> None:
        """Call `callback` if the engine ends by an error rather than by `close`: in its thread, when its memory is free and all
        requests have had their last event; at once if it has ended."""
        self._death.add_done_callback(lambda death: callback(death.result()))

    def _admit(self, caller: Caller) -> Overloaded | None:
        """Count a request in; call it with the lock held. Return the error for one that must leave the queue if it is full.
        Raises Overloaded where the caller has no less in it than others, EngineClosed."""
        if self._closed:
            raise EngineClosed()
        waiting = self._open.total - self._settings.parallel
        overloaded = None
        if waiting >= self._settings.queue:
            overloaded = Overloaded(waiting, retry_after=1 + waiting // self._settings.parallel)
            if not self._open.has_less(caller):
                raise overloaded
        self._open.enter(caller)
        return overloaded

    def _check_tokens(self, field: str, tokens: Seq[int]) -> None:
        for start in range(0, len(tokens), CHECKED):
            some = tokens[start : start + CHECKED]
            if min(some) >= 0 and max(some) < self.info.n_vocab:
                continue
            raise InvalidField(field, f"token ids must be from 0 to {self.info.n_vocab - 1}")

    def _ended(self, caller: Caller) -> None:
        with self._lock:
            self._open.leave(caller)

    def _work(self, path: Path) -> None:
        """Run the engine's thread: everything native is made, used and freed in it."""
        death: EngineDied | None = None
        try:
            with contextlib.ExitStack() as native:
                self._worker = self._load(path, native)
                native.callback(self._shut)
                self._loaded.set_result(None)
                try:
                    self._worker.run()
                except BaseException as error:
                    logger.critical("the engine of %s has ended by an error", path.name, exc_info=error)
                    death = EngineDied(str(error) or type(error).__name__)
                    self._shut()
                    self._worker.abandon(death)
        except BaseException as error:
            if not self._loaded.done():
                self._loaded.set_exception(error)
                return
            logger.critical("the engine of %s could not be freed", path.name, exc_info=error)
        if death is not None:
            self._death.set_result(death)

    @abc.abstractmethod
    def _load(self, path: Path, native: contextlib.ExitStack) -> Works:
        """Load the model in the engine's thread: set `info`, and return the worker that runs next. What is native goes on
        `native`, to be freed with the thread. Raises ModelLoadError."""

    def _shut(self) -> None:
        """Admit nobody any more and wait for who is tokenizing: before anything native is freed, whatever ended the thread."""
        with self._lock:
            self._closed = True
        self._tokenizer.close()

    def _open_model(self, path: Path, native: contextlib.ExitStack) -> tuple[llama.Model, bool]:
        """Return the model, which `native` will free, and whether it is on a GPU. Raises ConfigError, ModelLoadError."""
        on_gpu = self._settings.gpu_layers != 0 and llama.supports_gpu()
        set_numa(self._settings.numa)
        model = self._model = open_weights(path, Placement.of(self._settings), native)
        self._tokenizer = Tokenizer(model)
        return model, on_gpu


_loaded: weakref.WeakSet[Engine] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Close the engines that a program has left open. LLVM's OpenMP ends its threads with the process, even in the middle of a
    step, which then computes nonsense and may crash."""
    for engine in list(_loaded):
        if engine._thread.is_alive():  # in a fork it is not
            engine.close()


def open_weights(path: Path, placement: Placement, native: contextlib.ExitStack) -> llama.Model:
    """Return the model, which `native` will free. Raises ConfigError for a device that is not there, and ModelLoadError, also
    for weights that are larger than the free memory: the system would grind to a halt."""
    size = path.stat().st_size if path.exists() else 0
    if not (placement.gpu_layers and llama.supports_gpu()) and size > (free := hardware.available_memory()):
        reason = f"its weights need {size / 2**30:.1f} GiB of memory, {free / 2**30:.1f} GiB are free"
        raise ModelLoadError(path, reason)
    model = llama.Model(path, placement.gpu_layers, placement=placement)
    native.callback(model.close)
    return model


def free_memory(model: llama.Model, settings: EngineSettings, on_gpu: bool) -> int:
    """Return the bytes that the model's KV pool may take, now that its weights are loaded."""
    gpus = [gpu["free_bytes"] for gpu in _gpus(settings)] if on_gpu else []
    return kv_room(hardware.available_memory(), gpus, settings.gpu_layers, model.n_layer)


def device(model: llama.Model, settings: EngineSettings, threads: int, on_gpu: bool) -> str:
    """Describe the device that computes."""
    if not on_gpu:
        return f"CPU ({threads} threads)"
    layers = model.n_layer + 1
    offloaded = layers if settings.gpu_layers < 0 else min(layers, settings.gpu_layers)
    name = next((str(gpu["name"]) for gpu in _gpus(settings)), "GPU")
    experts = model.n_layer if settings.cpu_moe else min(model.n_layer, settings.n_cpu_moe or 0)
    apart = [f"experts of {experts} in RAM"] if experts else []
    apart += [f"{pattern} on {device}" for pattern, device in overrides(settings.override_tensor)]
    return f"{name} ({', '.join([f'{offloaded}/{layers} layers', *apart])})"


def _gpus(settings: EngineSettings) -> list[dict[str, Any]]:
    """Return the GPUs that the model is on."""
    found = hardware.gpus()
    return found[settings.main_gpu or 0 :][:1] if settings.split_mode == "none" else found


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
        named_templates=model.named_templates,
        bos=model.bos,
        eos=model.eos,
        add_bos=model.add_bos,
        control_tokens=model.control_tokens,
        **facts,
    )
