"""A context that gives one row of numbers for each sequence: the vector of a text, or what a classifier's head says of it."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import llama_cpp
import numpy as np
import numpy.typing as npt

from locallab.engine import llama_log
from locallab.engine.llama import KV_TYPES, Batch, Model
from locallab.errors import EngineFailure, ModelLoadError

Rows = npt.NDArray[np.float32]

UNSPECIFIED, NONE, MEAN, LAST, RANK = -1, 0, 1, 3, 4
"""llama.cpp's pooling types; 2 is CLS."""

STEP = 512
"""Tokens computed at once where a sequence may be computed in parts."""

_SPLITS_PAIRS = 3
"""LLAMA_VOCAB_TYPE_WPM: its closing token separates two texts too."""


def pooling_of(model: Model) -> int:
    """How the model makes one row of a sequence; the mean where it does not say."""
    return int(model.meta("{arch}.pooling_type") or NONE) or MEAN


def in_steps(model: Model) -> bool:
    """Whether a sequence may be computed in parts: only its last token counts, and none looks ahead."""
    ahead = model.meta("{arch}.attention.causal") == "false" or llama_cpp.llama_model_has_encoder(model.handle)
    return pooling_of(model) in (LAST, RANK) and not ahead


def width(model: Model) -> int:
    """Numbers in a row."""
    if pooling_of(model) == RANK:
        return int(llama_cpp.llama_model_n_cls_out(model.handle))
    return int(llama_cpp.llama_model_n_embd_out(model.handle))


def seam(model: Model) -> list[int]:
    """What stands between two texts that are read as a pair, besides what closes the first and opens the second."""
    vocabulary = llama_cpp.llama_model_get_vocab(model.handle)
    if not llama_cpp.llama_vocab_get_add_sep(vocabulary) or llama_cpp.llama_vocab_type(vocabulary) == _SPLITS_PAIRS:
        return []
    return [token for token in [llama_cpp.llama_vocab_sep(vocabulary)] if token >= 0]


def pair_template(model: Model) -> str | None:
    """How the model wants a question and a text to be put before it: a text with {query} and {document}."""
    template = llama_cpp.llama_model_chat_template(model.handle, b"rerank")
    return template.decode("utf-8", "replace") if template else None


class PooledContext:
    """A llama_context for embeddings. Owned by one thread; keeps nothing from one call to the next."""

    def __init__(self, model: Model, *, tokens: int, n_sequences: int, threads: int, kv_type: str) -> None:
        """Makes room for `tokens` at once, in `n_sequences` at most. Raises ModelLoadError when that fails."""
        self._model = model
        self._encodes = bool(llama_cpp.llama_model_has_encoder(model.handle))
        self._in_steps = in_steps(model)
        self._ctx = self._make(tokens, n_sequences, threads, kv_type)
        self._memory = llama_cpp.llama_get_memory(self._ctx)
        if self._in_steps and not self._memory:
            self.close()
            self._in_steps = False
            self._ctx = self._make(tokens, n_sequences, threads, kv_type)
        self._batch = Batch(tokens)
        self._width = width(model)

    def _make(self, tokens: int, n_sequences: int, threads: int, kv_type: str) -> int:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = tokens
        params.n_ubatch = min(tokens, STEP) if self._in_steps else tokens
        params.n_seq_max = n_sequences
        params.n_outputs_max = n_sequences if self._in_steps else 0
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = KV_TYPES[kv_type]
        params.kv_unified = True
        params.no_perf = True
        params.embeddings = True
        stated = int(self._model.meta("{arch}.pooling_type") or NONE)
        params.pooling_type = UNSPECIFIED if stated else MEAN
        with llama_log.captured() as problems:
            made: int = llama_cpp.llama_init_from_model(self._model.handle, params)
        if not made:
            raise ModelLoadError(self._model.path, problems.reason(f"no context of {tokens} tokens could be made"))
        return made

    def compute(self, sequences: Seq[Seq[int]]) -> Rows:
        """A row for each sequence; together they fit into the context. Raises EngineFailure."""
        try:
            if self._in_steps:
                self._prepare(sequences)
                self._run([s[-1:] for s in sequences], [len(s) - 1 for s in sequences], outputs=True)
            else:
                self._run(sequences, [0] * len(sequences), outputs=True)
            return np.stack([self._row(index) for index in range(len(sequences))])
        finally:
            if self._memory:
                llama_cpp.llama_memory_clear(self._memory, False)

    def _prepare(self, sequences: Seq[Seq[int]]) -> None:
        """All but the last tokens: with embeddings off they cost no output, which is as wide as the vocabulary."""
        if all(len(sequence) == 1 for sequence in sequences):
            return
        llama_cpp.llama_set_embeddings(self._ctx, False)
        try:
            self._run([sequence[:-1] for sequence in sequences], [0] * len(sequences), outputs=False)
        finally:
            llama_cpp.llama_set_embeddings(self._ctx, True)

    def _run(self, sequences: Seq[Seq[int]], starts: Seq[int], *, outputs: bool) -> None:
        lengths = [len(sequence) for sequence in sequences]
        tokens = [token for sequence in sequences for token in sequence]
        positions = [start + i for start, length in zip(starts, lengths, strict=True) for i in range(length)]
        ids = [id for id, length in enumerate(lengths) for _ in range(length)]
        self._batch.fill(tokens, positions, ids, [int(outputs)] * len(tokens))
        compute = llama_cpp.llama_encode if self._encodes else llama_cpp.llama_decode
        code = compute(self._ctx, self._batch.raw)
        if code != 0:
            raise EngineFailure(f"{compute.__name__} failed with code {code}")

    def _row(self, sequence: int) -> Rows:
        pointer = llama_cpp.llama_get_embeddings_seq(self._ctx, sequence)
        if not pointer:
            raise EngineFailure(f"llama.cpp gave no embedding of sequence {sequence}")
        return np.array(pointer[: self._width], np.float32)

    def close(self) -> None:
        llama_cpp.llama_free(self._ctx)
