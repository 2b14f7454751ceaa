"""A context and its batches, a thin layer over llama.h, the reference for every call here. One thread owns a Context."""

from __future__ import annotations

import ctypes

import llama_cpp
import numpy as np
import numpy.typing as npt

from locallab.engine import llama_log
from locallab.engine.adapters import AdapterSet
from locallab.engine.batch import AnyBatch
from locallab.engine.llama import KV_TYPES, Model
from locallab.engine.lora import Adapters
from locallab.engine.placement import fill_positions
from locallab.engine.state_format import STATE_HEAD, Bytes, Rows, StateFormat, learn
from locallab.errors import EngineFailure, ModelLoadError
from locallab.memory_model import STEP
from locallab.settings import EngineSettings

NO_ROOM = 1
"""Result of llama_decode when it finds no KV slot; nothing has changed then."""

INVALID = -1
"""Result of llama_decode for a batch that it refuses; nothing has changed then either."""

_Bytes = ctypes.POINTER(ctypes.c_uint8)
_PARTIAL_ONLY = 1
"""LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY."""


class InvalidBatch(EngineFailure):
    """llama_decode has refused the batch, and changed nothing."""


class Context:
    """A llama_context: one KV pool for all sequences, or a stream of cells for each. Owned by one thread."""

    def __init__(
        self,
        model: Model,
        *,
        n_ctx: int,
        n_batch: int,
        n_ubatch: int = STEP,
        n_sequences: int,
        n_outputs: int = 0,
        threads: int,
        kv_type: str,
        kv_type_v: str | None = None,
        unified: bool = True,
        settings: EngineSettings | None = None,
    ) -> None:
        """Allocate `n_ctx` cells (llama_init_from_model): a pool, or without `unified` an equal part for each sequence.

        A batch has at most `n_outputs` outputs, by default one for each sequence, and is computed `n_ubatch` tokens at a
        time. Values are of `kv_type_v`, by default as the keys. Layers with a sliding window keep no more cells than that
        needs. Of the `settings` those of positions count. Raises ModelLoadError when it fails.
        """
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = n_batch
        params.n_ubatch = min(n_ubatch, n_batch)
        params.n_seq_max = n_sequences
        params.n_outputs_max = self._n_outputs = n_outputs or n_sequences
        params.n_outputs_max_per_seq = 1  # of those with a sampler on the device
        params.n_threads = params.n_threads_batch = threads
        params.type_k, params.type_v = KV_TYPES[kv_type], KV_TYPES[kv_type_v or kv_type]
        if settings is not None:
            fill_positions(params, settings)
        params.kv_unified = unified
        params.swa_full = False
        params.no_perf = True
        with llama_log.captured() as problems:
            self._ctx = llama_cpp.llama_init_from_model(model.handle, params)
        if not self._ctx:
            raise ModelLoadError(model.path, problems.reason(f"no context of {n_ctx} tokens could be made"))
        self._memory = llama_cpp.llama_get_memory(self._ctx)
        if not self._memory:  # embedding and diffusion models: each step would see only its own tokens
            self.close()
            raise ModelLoadError(model.path, "this model cannot generate text")
        self._n_vocab = model.n_vocab
        self._logits = np.empty((0, 0), np.float32)
        self._logits_at = 0
        self.n_ctx: int = llama_cpp.llama_n_ctx(self._ctx)
        self.places = model.places
        self.format = StateFormat()
        self.adapters: Adapters | None = None
        self._buffer = np.empty(0, np.uint8)
        self._window = 0 if model.keeps_state else model.sliding_window

    @property
    def handle(self) -> int:
        """The llama_context pointer."""
        return self._ctx  # type: ignore[no-any-return]

    def use(self, adapters: AdapterSet) -> bool:
        """Let the next batches be computed with a set of the `adapters`. Return whether another one was in use."""
        return self.adapters is not None and self.adapters.use(self._ctx, adapters)

    def decode(self, batch: AnyBatch) -> int:
        """Compute `batch` and wait (llama_decode, llama_synchronize). Returns 0 or NO_ROOM.

        Raises InvalidBatch, which changes nothing, or another EngineFailure: a part of the batch may have been computed.
        """
        code = self.submit(batch)
        if code == 0:
            llama_cpp.llama_synchronize(self._ctx)
        return code

    def submit(self, batch: AnyBatch) -> int:
        """Begin to compute `batch`, which may be filled anew at once (llama_decode). A GPU goes on after the return; whatever
        follows, also a state that is read, waits for it. Returns and raises as `decode`."""
        if not batch.causal:
            llama_cpp.llama_set_causal_attn(self._ctx, False)
        code = int(llama_cpp.llama_decode(self._ctx, batch.raw))
        if not batch.causal:
            llama_cpp.llama_set_causal_attn(self._ctx, True)
        if code not in (0, NO_ROOM):
            raise (InvalidBatch if code == INVALID else EngineFailure)(f"llama_decode failed with code {code}")
        return code

    def logits(self) -> npt.NDArray[np.float32]:
        """Return the last batch's logits (llama_get_logits): one row of n_vocab per requested output, in batch order.

        The array is a view, valid until the next `decode`. It has `n_outputs` rows; those beyond the outputs are undefined.
        """
        address = ctypes.cast(llama_cpp.llama_get_logits(self._ctx), ctypes.c_void_p).value or 0
        if address != self._logits_at:  # llama.cpp reserves at least n_outputs_max rows and seldom moves them
            pointer = ctypes.cast(address, ctypes.POINTER(ctypes.c_float))
            self._logits = np.ctypeslib.as_array(pointer, shape=(self._n_outputs, self._n_vocab))
            self._logits_at = address
        return self._logits

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        """Share the cells of positions [start, end) of `source` with `target`, which has none there (llama_memory_seq_cp)."""
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, start, end)

    def remove(self, sequence: int, start: int = 0, end: int = -1) -> None:
        """Drop the cells of `sequence` at positions [start, end), or all (llama_memory_seq_rm). Raises EngineFailure."""
        if not llama_cpp.llama_memory_seq_rm(self._memory, sequence, start, end):
            raise EngineFailure(f"sequence {sequence} cannot be cut at position {start}")

    def last_position(self, sequence: int) -> int:
        """Return the largest position in `sequence`; -1 when it is empty (llama_memory_seq_pos_max)."""
        return int(llama_cpp.llama_memory_seq_pos_max(self._memory, sequence))

    def clear(self) -> None:
        """Drop the cells of all sequences (llama_memory_clear)."""
        llama_cpp.llama_memory_clear(self._memory, False)

    def learn_format(self, count: int, cuts: bool) -> None:
        """Learn `format` from sequence 0, which has `count` tokens. Of a model whose memory `cuts` nothing is fixed, of others
        what llama.cpp saves with LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY. Raises UnknownFormat."""
        n_fixed = 0 if cuts else llama_cpp.llama_state_seq_get_size_ext(self._ctx, 0, _PARTIAL_ONLY) - STATE_HEAD
        self.format = learn(self._state(0), count, n_fixed)

    def save(self, sequence: int, start: int, count: int) -> tuple[Rows, Bytes]:
        """Return the rows of tokens [start, count) of a sequence of `count` tokens and what is fixed at its end, for `restore`
        (llama_state_seq_get_data). Raises EngineFailure, UnknownFormat."""
        return self.format.split(self._state(sequence), start, count)

    def restore(self, sequence: int, rows: list[Rows], fixed: Bytes, end: int) -> bool:
        """Put saved rows and what is fixed at their end into the empty `sequence`, at the positions they had. Return False,
        with `sequence` empty again, unless it then ends before position `end`."""
        return self._read_state(sequence, self.format.join(rows, fixed), end)

    def move(self, source: int, target: int, end: int) -> bool:
        """Move a sequence of `end` tokens to the empty `target`. Return False, with both empty, when that fails."""
        try:
            return self._read_state(target, self._state(source), end)
        except EngineFailure:  # the target is still empty
            return False
        finally:
            self.remove(source)

    def _read_state(self, sequence: int, state: Bytes, end: int) -> bool:
        """Read a state (llama_state_seq_set_data). llama.cpp may say that it has and yet not have: what counts is the result,
        the last position and, where a window moves with it, the first."""
        read = llama_cpp.llama_state_seq_set_data(self._ctx, state.ctypes.data_as(_Bytes), len(state), sequence)
        first = int(llama_cpp.llama_memory_seq_pos_min(self._memory, sequence))
        if read and self.last_position(sequence) == end - 1 and (not self._window or first <= max(0, end + 1 - self._window)):
            return True
        self.remove(sequence)
        return False

    def _state(self, sequence: int) -> Bytes:
        """Return the state of a sequence (llama_state_seq_get_data), valid until the next call. Raises EngineFailure."""
        size = llama_cpp.llama_state_seq_get_size(self._ctx, sequence)
        if len(self._buffer) < size:  # fresh memory costs more than what is written to it
            self._buffer = np.empty(size, np.uint8)
        state = self._buffer[:size]
        written = llama_cpp.llama_state_seq_get_data(self._ctx, state.ctypes.data_as(_Bytes), size, sequence)
        if written != size:
            raise EngineFailure(f"the state of sequence {sequence} has {size} bytes, {written} could be read")
        return state

    def close(self) -> None:
        """Free the context (llama_free)."""
        if self._ctx:
            llama_cpp.llama_free(self._ctx)
            self._ctx = None
