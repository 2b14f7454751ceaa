"""Batches for llama_decode, over numpy arrays, so that filling them takes a few assignments; llama.h, llama_batch."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import llama_cpp
import numpy as np

from locallab.engine.media.runs import Run


class _Entries:
    """What batches of tokens and of embeddings have in common. `causal`: no token sees those behind it."""

    causal = True

    def __init__(self, capacity: int, places: int = 1) -> None:
        self._positions = np.zeros(places * capacity, np.int32)
        self._sequences = np.zeros(capacity, np.int32)
        self._outputs = np.zeros(capacity, np.int8)
        self._counts = np.ones(capacity, np.int32)
        self._pointers = self._sequences.ctypes.data + 4 * np.arange(capacity, dtype=np.uintp)
        raw = llama_cpp.llama_batch()
        raw.pos = self._positions.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_pos))
        raw.n_seq_id = self._counts.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        raw.seq_id = ctypes.cast(self._pointers.ctypes.data, ctypes.POINTER(ctypes.POINTER(llama_cpp.llama_seq_id)))
        raw.logits = self._outputs.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))
        self.raw = raw


class Batch(_Entries):
    """Tokens of any sequences."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._tokens = np.zeros(capacity, np.int32)
        self.raw.token = self._tokens.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token))

    def fill(self, tokens: Sequence[int], positions: Sequence[int], sequences: Sequence[int], outputs: Sequence[int]) -> None:
        """Replace the content. Entry i is a token, its position, its sequence id, and 1 if its logits are requested."""
        n = len(tokens)
        self._tokens[:n] = tokens
        self._positions[:n] = positions
        self._sequences[:n] = sequences
        self._outputs[:n] = outputs
        self.raw.n_tokens = n


class EmbeddingBatch(_Entries):
    """Embeddings of one sequence."""

    def __init__(self, capacity: int, places: int) -> None:
        """`places` are the numbers that place an embedding (`Model.places`)."""
        super().__init__(capacity, places)
        self._dimensions = places

    def fill(self, run: Run, first: int, position: int, sequence: int, outputs: Sequence[int]) -> None:
        """Replace the content by the embeddings of an encoded run from its `first` on, as many as there are `outputs`: 1 where
        logits are requested. `position` is that of the first."""
        assert run.embeddings is not None
        n = len(outputs)
        self._embeddings = np.ascontiguousarray(run.embeddings[first : first + n])  # alive until the next
        self.raw.embd = self._embeddings.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        places = self._positions[: self._dimensions * n].reshape(self._dimensions, n)
        places[:] = position + (np.arange(n) if run.places is None else run.places[:, first : first + n])
        self._sequences[:n] = sequence
        self._outputs[:n] = outputs
        self.raw.n_tokens = n
        self.causal = not run.whole


AnyBatch = Batch | EmbeddingBatch
