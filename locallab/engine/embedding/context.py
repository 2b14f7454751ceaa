"""Contexts that compute one row of numbers per sequence: the vector of a text, or the logits of a classifier."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import llama_cpp
import numpy as np
import numpy.typing as npt

from locallab.engine import llama_log
from locallab.engine.batch import Batch
from locallab.engine.llama import KV_TYPES, Model
from locallab.engine.placement import fill_positions
from locallab.errors import EngineFailure, ModelLoadError
from locallab.memory_model import STEP
from locallab.settings import EngineSettings

Rows = npt.NDArray[np.float32]

UNSPECIFIED, NONE, MEAN, LAST, RANK = -1, 0, 1, 3, 4
"""llama.cpp's pooling types; 2 is CLS."""

_WPM = 3
"""LLAMA_VOCAB_TYPE_WPM: the token that closes a text separates a pair too."""


def pooling_of(model: Model) -> int:
    """Return the model's pooling type, MEAN where its metadata has none."""
    return int(model.meta("{arch}.pooling_type") or NONE) or MEAN


def in_steps(model: Model) -> bool:
    """Return True if a sequence may be computed in parts: only its last token counts, and attention is causal."""
    looks_ahead = model.meta("{arch}.attention.causal") == "false" or llama_cpp.llama_model_has_encoder(model.handle)
    return pooling_of(model) in (LAST, RANK) and not looks_ahead


def width(model: Model) -> int:
    """Return the length of a row (llama_model_n_cls_out, llama_model_n_embd_out)."""
    if pooling_of(model) == RANK:
        return int(llama_cpp.llama_model_n_cls_out(model.handle))
    return int(llama_cpp.llama_model_n_embd_out(model.handle))


def seam(model: Model) -> list[int]:
    """Return the tokens between the two texts of a pair, besides those that close the first and open the second."""
    vocabulary = llama_cpp.llama_model_get_vocab(model.handle)
    if not llama_cpp.llama_vocab_get_add_sep(vocabulary) or llama_cpp.llama_vocab_type(vocabulary) == _WPM:
        return []
    return [token for token in [llama_cpp.llama_vocab_sep(vocabulary)] if token >= 0]


def pair_template(model: Model) -> str | None:
    """Return the model's template for reranking, a text with {query} and {document}; None without one."""
    template = llama_cpp.llama_model_chat_template(model.handle, b"rerank")
    return template.decode("utf-8", "replace") if template else None


class PooledContext:
    """A llama_context for embeddings. Owned by one thread; keeps no state between calls."""

    def __init__(self, model: Model, *, tokens: int, n_sequences: int, threads: int, settings: EngineSettings) -> None:
        """Allocate room for `tokens` in `n_sequences` (llama_init_from_model), with the types of KV cache and the positions of
        the settings. Raises ModelLoadError when that fails."""
        self._model = model
        self._encodes = bool(llama_cpp.llama_model_has_encoder(model.handle))
        self._in_steps = in_steps(model)
        self._ctx = self._make(tokens, n_sequences, threads, settings)
        self._memory = llama_cpp.llama_get_memory(self._ctx)
        if self._in_steps and not self._memory:
            self.close()
            self._in_steps = False
            self._ctx = self._make(tokens, n_sequences, threads, settings)
        self._batch = Batch(tokens)
        self._width = width(model)

    def _make(self, tokens: int, n_sequences: int, threads: int, settings: EngineSettings) -> int:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = tokens
        params.n_ubatch = min(tokens, STEP) if self._in_steps else tokens
        params.n_seq_max = n_sequences
        params.n_outputs_max = n_sequences if self._in_steps else 0
        params.n_threads = params.n_threads_batch = threads
        params.type_k, params.type_v = (KV_TYPES[each] for each in settings.kv_types)
        fill_positions(params, settings)
        params.kv_unified = True
        params.no_perf = True
        params.embeddings = True
        configured = int(self._model.meta("{arch}.pooling_type") or NONE)
        params.pooling_type = UNSPECIFIED if configured else MEAN
        with llama_log.captured() as problems:
            context: int = llama_cpp.llama_init_from_model(self._model.handle, params)
        if not context:
            raise ModelLoadError(self._model.path, problems.reason(f"no context of {tokens} tokens could be made"))
        return context

    def compute(self, sequences: Seq[Seq[int]]) -> Rows:
        """Return one row per sequence; together they must fit into the context. Raises EngineFailure."""
        starts = [0] * len(sequences)
        try:
            if self._in_steps and any(len(s) > 1 for s in sequences):
                # with embeddings on, each of these tokens would cost an output as wide as the vocabulary
                llama_cpp.llama_set_embeddings(self._ctx, False)
                try:
                    self._run([s[:-1] for s in sequences], starts, outputs=False)
                finally:
                    llama_cpp.llama_set_embeddings(self._ctx, True)
            if self._in_steps:
                starts = [len(s) - 1 for s in sequences]
                sequences = [s[-1:] for s in sequences]
            self._run(sequences, starts, outputs=True)
            return np.stack([self._row(index) for index in range(len(sequences))])
        finally:
            if self._memory:
                llama_cpp.llama_memory_clear(self._memory, False)

    def _run(self, sequences: Seq[Seq[int]], starts: Seq[int], *, outputs: bool) -> None:
        """Compute sequences from their positions `starts` on (llama_encode, llama_decode). Raises EngineFailure."""
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
        """Copy the row of a sequence (llama_get_embeddings_seq). Raises EngineFailure when there is none."""
        pointer = llama_cpp.llama_get_embeddings_seq(self._ctx, sequence)
        if not pointer:
            raise EngineFailure(f"llama.cpp gave no embedding of sequence {sequence}")
        return np.array(pointer[: self._width], np.float32)

    def close(self) -> None:
        llama_cpp.llama_free(self._ctx)
