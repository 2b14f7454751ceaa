"""libmtmd: what turns pictures and sounds into embeddings for one model; mtmd.h is the reference for every call here."""

from __future__ import annotations

import ctypes
import hashlib
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp import mtmd_cpp
from llama_cpp._ggml import libggml

from locallab.engine import llama_log
from locallab.engine.llama import Model, check_file
from locallab.engine.media.runs import Embeddings, Places, Prompt, Run, ids, joined
from locallab.errors import EngineFailure, InvalidField, ModelLoadError

LARGEST = 4096
"""Pixels of the sides of the pictures that are counted at load, to know the most tokens of one."""

_SMALL = (64, 64)
_SHAPES = ((LARGEST, LARGEST), (LARGEST, LARGEST // 8), (LARGEST // 8, LARGEST))
_TEXT, _IMAGE = 0, 1  # enum mtmd_input_chunk_type
_STRING = 8  # enum gguf_type
_UNSUPPORTED = ("deepseek4v", "hunyuanvl")
"""Kinds whose pictures depend on what stands before them in a prompt."""

mtmd_cpp.mtmd_helper_log_set(llama_log.callback, ctypes.c_void_p(0))


class Projector:
    """A projector's file. Any thread may call `picture` and `sound`; one thread `encode`."""

    def __init__(self, path: Path, model: Model, *, threads: int, gpu: bool) -> None:
        """Load `path` for `model` (mtmd_init_from_file). Raises ModelLoadError, also where it is another model's."""
        check_file(path)
        for kind in _kinds(path):
            if kind in _UNSUPPORTED:
                raise ModelLoadError(
                    path, f"projectors of the kind {kind!r} are not supported: their pictures depend on the text before"
                )
        params = mtmd_cpp.mtmd_context_params_default()
        params.use_gpu = gpu
        params.print_timings = False
        params.warmup = False
        params.n_threads = threads
        with llama_log.captured() as problems:
            self._context = mtmd_cpp.mtmd_init_from_file(str(path).encode(), model.handle, params)
        if not self._context:
            raise ModelLoadError(path, problems.reason("this is not the projector of this model"))
        self.path = path
        self.size_bytes = path.stat().st_size
        self.width = int(llama_cpp.llama_model_n_embd_inp(model.handle))
        self.sees = bool(mtmd_cpp.mtmd_support_vision(self._context))
        self.hears = bool(mtmd_cpp.mtmd_support_audio(self._context))
        self.rate = int(mtmd_cpp.mtmd_get_audio_sample_rate(self._context))
        self._many_places = bool(mtmd_cpp.mtmd_decode_use_mrope(self._context))
        try:
            if self.sees:
                self._picture(*_SMALL, None, b"", "")
        except InvalidField as error:
            self.close()
            raise ModelLoadError(path, f"it takes no picture: {error.reason}") from None
        except ModelLoadError:
            self.close()
            raise

    @property
    def modalities(self) -> frozenset[str]:
        """What a prompt may hold."""
        return frozenset({"text"} | ({"image"} if self.sees else set()) | ({"audio"} if self.hears else set()))

    def longest_whole(self) -> int:
        """Return the most tokens of a picture that one llama_decode must compute; 0 where all may be cut."""
        if not self.sees or not mtmd_cpp.mtmd_decode_use_non_causal(self._context, None):
            return 0
        counts = [run.count for width, height in _SHAPES for run in self._picture(width, height, None, b"", "").runs]
        return max(counts, default=0)

    def picture(self, width: int, height: int, rgb: bytes, field: str) -> Prompt:
        """Return a picture of [height, width, 3] bytes as tokens: its runs, and what the model wants around them.

        Raises InvalidField for one that cannot be prepared, and for a model that does not see.
        """
        if not self.sees:
            raise InvalidField(field, "this model takes no images")
        key = hashlib.sha256(f"{width}x{height}:".encode() + rgb).digest()
        return self._picture(width, height, rgb, key, field)

    def sound(self, samples: bytes, field: str) -> Prompt:
        """Return a sound, float32 samples of one channel at `rate` Hz, as tokens; raises as `picture`."""
        if not self.hears:
            raise InvalidField(field, "this model takes no audio")
        count = len(samples) // 4
        if not count:
            raise InvalidField(field, "is a sound without samples")
        data = np.frombuffer(samples, np.float32).ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        bitmap = mtmd_cpp.mtmd_bitmap_init_from_audio(count, data)
        return self._prepared(bitmap, hashlib.sha256(b"sound:" + samples).digest(), field)

    def _picture(self, width: int, height: int, rgb: bytes | None, key: bytes, field: str) -> Prompt:
        data = None if rgb is None else ctypes.cast(ctypes.c_char_p(rgb), ctypes.POINTER(ctypes.c_uint8))
        return self._prepared(mtmd_cpp.mtmd_bitmap_init(width, height, data), key, field)

    def _prepared(self, bitmap: Any, key: bytes, field: str) -> Prompt:
        """Return what libmtmd makes of a bitmap (mtmd_tokenize_from_parts), and free that."""
        part = mtmd_cpp.mtmd_input_part(None, bitmap)
        parts = (ctypes.POINTER(mtmd_cpp.mtmd_input_part) * 1)(ctypes.pointer(part))
        chunks = mtmd_cpp.mtmd_input_chunks_init()
        try:
            with llama_log.captured() as problems:
                code = mtmd_cpp.mtmd_tokenize_from_parts(self._context, chunks, parts, 1, False)
            if code:
                raise InvalidField(field, problems.reason("cannot be prepared for this model"))
            count = mtmd_cpp.mtmd_input_chunks_size(chunks)
            return joined(self._part(mtmd_cpp.mtmd_input_chunks_get(chunks, i), key, i, field) for i in range(count))
        finally:
            mtmd_cpp.mtmd_input_chunks_free(chunks)
            mtmd_cpp.mtmd_bitmap_free(bitmap)

    def _part(self, chunk: Any, key: bytes, index: int, field: str) -> Prompt:
        kind = mtmd_cpp.mtmd_input_chunk_get_type(chunk)
        count = int(mtmd_cpp.mtmd_input_chunk_get_n_tokens(chunk))
        if kind == _TEXT:
            length = ctypes.c_size_t()
            tokens = mtmd_cpp.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(length))
            if min(tokens[: length.value], default=0) < 0:
                raise ModelLoadError(self.path, "it needs tokens that the model's vocabulary does not have")
            return Prompt(tokens[: length.value])
        key = hashlib.sha256(key + index.to_bytes(4, "little")).digest()
        whole = bool(mtmd_cpp.mtmd_decode_use_non_causal(self._context, chunk))
        positions = int(mtmd_cpp.mtmd_input_chunk_get_n_pos(chunk))
        places = self._places(chunk, count) if self._many_places and kind == _IMAGE else None
        run = Run(0, count, positions, key, field, whole, places, _Source(chunk))
        return Prompt(ids(key, count), [run])

    def _places(self, chunk: Any, count: int) -> Places | None:
        """Return the places of a picture's tokens in its grid (mtmd_image_tokens_get_decoder_pos); None where they go on as
        positions of text do."""
        image = mtmd_cpp.mtmd_input_chunk_get_tokens_image(chunk)
        found = [mtmd_cpp.mtmd_image_tokens_get_decoder_pos(image, 0, i) for i in range(count)]
        if found[-1].t:
            return None
        places: Places = np.array([[place.t, place.y, place.x, 0] for place in found], np.int32).T
        return places

    def encode(self, run: Run) -> Embeddings:
        """Return the embeddings of a run (mtmd_encode_chunk, mtmd_get_output_embd); seconds on a CPU. Raises EngineFailure."""
        with llama_log.captured() as problems:
            code = mtmd_cpp.mtmd_encode_chunk(self._context, run.source.handle)
        if code:
            raise EngineFailure(f"{run.field} cannot be encoded: {problems.reason(f'mtmd_encode_chunk returned {code}')}")
        found = mtmd_cpp.mtmd_get_output_embd(self._context)
        embeddings: Embeddings = np.ctypeslib.as_array(found, shape=(run.count, self.width)).copy()
        return embeddings

    def close(self) -> None:
        """Free the projector (mtmd_free). Nobody may use it any more."""
        if self._context:
            mtmd_cpp.mtmd_free(self._context)
            self._context = None


class _Source:
    """A prepared picture or sound (mtmd_input_chunk_copy), freed with this object."""

    def __init__(self, chunk: Any) -> None:
        self.handle = mtmd_cpp.mtmd_input_chunk_copy(chunk)
        weakref.finalize(self, mtmd_cpp.mtmd_input_chunk_free, self.handle)


def _kinds(path: Path) -> Iterator[str]:
    """Yield the kinds of a projector's file as its metadata name them (gguf.h)."""
    context = _gguf("init_from_file", ctypes.c_void_p, ctypes.c_char_p, _InitParams)(
        str(path).encode(), _InitParams(True, None)
    )
    if not context:
        raise ModelLoadError(path, "its header cannot be read")
    try:
        for key in (b"clip.projector_type", b"clip.vision.projector_type", b"clip.audio.projector_type"):
            index = _gguf("find_key", ctypes.c_int64, ctypes.c_void_p, ctypes.c_char_p)(context, key)
            if index >= 0 and _gguf("get_kv_type", ctypes.c_int, ctypes.c_void_p, ctypes.c_int64)(context, index) == _STRING:
                value = _gguf("get_val_str", ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int64)(context, index)
                yield value.decode("utf-8", "replace")
    finally:
        _gguf("free", None, ctypes.c_void_p)(context)


class _InitParams(ctypes.Structure):
    """gguf_init_params."""

    _fields_ = [("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p)]


def _gguf(name: str, result: Any, *arguments: Any) -> Any:
    """Return a function of gguf.h."""
    function = getattr(libggml, f"gguf_{name}")
    function.restype, function.argtypes = result, arguments
    return function
