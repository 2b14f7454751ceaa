"""The answer to a prompt with pictures as llama.cpp's own helper computes it, as its server does: in one context, one after the
other, nothing cached."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Sequence
from pathlib import Path

import llama_cpp
import numpy as np
from llama_cpp import mtmd_cpp

from locallab.engine.llama import Model

CONTEXT = 2048

Picture = tuple[int, int, bytes]
"""Width, height, RGB."""

Part = Sequence[int] | Picture | np.ndarray
"""Token ids, a picture, or the samples of a sound."""


class Reference:
    def __init__(self, model: Path, projector: Path) -> None:
        self._model = Model(model, 0)
        params = mtmd_cpp.mtmd_context_params_default()
        params.use_gpu, params.print_timings, params.warmup, params.n_threads = False, False, False, 1
        self._projector = mtmd_cpp.mtmd_init_from_file(str(projector).encode(), self._model.handle, params)
        assert self._projector

    def close(self) -> None:
        mtmd_cpp.mtmd_free(self._projector)
        self._model.close()

    def answer(self, prompt: Sequence[Part], tokens: Sequence[int]) -> list[np.ndarray]:
        """Return the log probabilities at each of the answer's `tokens`, those before it given."""
        with self._context() as context:
            past = 0
            for index, part in enumerate(prompt):
                past = self._read(context, part, past, index == len(prompt) - 1)
            found = []
            for i, token in enumerate(tokens):
                logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, -1), shape=(self._model.n_vocab,))
                found.append(logits - logits.max() - np.log(np.exp(logits - logits.max()).sum()))
                if i < len(tokens) - 1:
                    past = self._read(context, [token], past, True)
            return found

    @contextlib.contextmanager
    def _context(self) -> Iterator[int]:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_threads, params.n_threads_batch = CONTEXT, 512, 512, 1, 1
        context = llama_cpp.llama_init_from_model(self._model.handle, params)
        try:
            yield context
        finally:
            llama_cpp.llama_free(context)

    def _read(self, context: int, part: Part, past: int, last: bool) -> int:
        if isinstance(part, (tuple, np.ndarray)):
            return self._media(context, part, past, last)
        batch = llama_cpp.llama_batch_init(len(part), 0, 1)
        for i, token in enumerate(part):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, past + i, 1, 0
            batch.logits[i] = int(last and i == len(part) - 1)
        batch.n_tokens = len(part)
        assert llama_cpp.llama_decode(context, batch) == 0
        llama_cpp.llama_batch_free(batch)
        return past + len(part)

    def _media(self, context: int, part: Picture | np.ndarray, past: int, last: bool) -> int:
        if isinstance(part, tuple):
            width, height, rgb = part
            data = ctypes.cast(ctypes.c_char_p(rgb), ctypes.POINTER(ctypes.c_uint8))
            bitmap = mtmd_cpp.mtmd_bitmap_init(width, height, data)
        else:
            bitmap = mtmd_cpp.mtmd_bitmap_init_from_audio(len(part), part.ctypes.data_as(ctypes.POINTER(ctypes.c_float)))
        one = mtmd_cpp.mtmd_input_part(None, bitmap)
        parts = (ctypes.POINTER(mtmd_cpp.mtmd_input_part) * 1)(ctypes.pointer(one))
        chunks = mtmd_cpp.mtmd_input_chunks_init()
        assert mtmd_cpp.mtmd_tokenize_from_parts(self._projector, chunks, parts, 1, False) == 0
        new = llama_cpp.llama_pos(0)
        assert mtmd_cpp.mtmd_helper_eval_chunks(self._projector, context, chunks, past, 0, 512, last, ctypes.byref(new)) == 0
        mtmd_cpp.mtmd_input_chunks_free(chunks)
        mtmd_cpp.mtmd_bitmap_free(bitmap)
        return new.value
