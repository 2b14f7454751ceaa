"""The adapters of a model and its context, a thin layer over llama.h, the reference for every call here."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Sequence
from typing import Any

import llama_cpp

from locallab.engine import llama_log
from locallab.engine.adapters import BASE, AdapterFile, AdapterInfo, AdapterSet
from locallab.engine.disk_cache import model_digest
from locallab.engine.llama import Model
from locallab.errors import EngineFailure, ModelLoadError

_TEXT = 4096
"""Bytes of a text in an adapter's metadata."""


class Adapters:
    """Adapters in the order of their ids. Made before the one context of the model, and used by its thread alone."""

    def __init__(self, model: Model, files: Sequence[AdapterFile]) -> None:
        """Load the files (llama_adapter_lora_init). Raises ModelLoadError, with the file; then none is loaded."""
        self._handles: list[Any] = []
        self._current = BASE
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            self.infos = tuple(self._load(model, file) for file in files)
            undo.pop_all()

    def use(self, context: int, adapters: AdapterSet) -> bool:
        """Let a llama_context compute the next batches with a set (llama_set_adapters_lora). Return whether it was another one
        before: then llama.cpp plans its memory anew with the next batch. Raises EngineFailure."""
        if adapters == self._current:
            return False
        count = len(adapters.scales)
        handles = (llama_cpp.llama_adapter_lora_p_ctypes * count)(*(self._handles[id] for id, _ in adapters.scales))
        scales = (ctypes.c_float * count)(*(scale for _, scale in adapters.scales))
        if code := llama_cpp.llama_set_adapters_lora(context, handles, count, scales):
            raise EngineFailure(f"llama_set_adapters_lora failed with code {code}")
        self._current = adapters
        return True

    def close(self) -> None:
        """Free them (llama_adapter_lora_free): after the context, before the model."""
        while self._handles:
            llama_cpp.llama_adapter_lora_free(self._handles.pop())

    def _load(self, model: Model, file: AdapterFile) -> AdapterInfo:
        with llama_log.captured() as problems:
            handle = llama_cpp.llama_adapter_lora_init(model.handle, str(file.path).encode())
        if not handle:
            raise ModelLoadError(file.path, problems.reason("llama.cpp gave no reason"))
        self._handles.append(handle)
        if llama_cpp.llama_adapter_get_alora_n_invocation_tokens(handle):
            raise ModelLoadError(file.path, "it is an activated LoRA (aLoRA), which is not supported: name a plain LoRA")
        task, prefix = (_meta(handle, f"adapter.lora.{key}") for key in ("task_name", "prompt_prefix"))
        return AdapterInfo(file.name, file.scale, task, prefix, model_digest(file.path)[:32])


def _meta(handle: Any, key: str) -> str:
    """Return a text of an adapter's metadata; empty without it (llama_adapter_meta_val_str)."""
    buffer = ctypes.create_string_buffer(_TEXT)
    found = llama_cpp.llama_adapter_meta_val_str(handle, key.encode(), buffer, len(buffer))
    return buffer.value.decode("utf-8", "replace") if found >= 0 else ""
