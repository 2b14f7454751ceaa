"""What can be said of where a model is to lie before anything is loaded: by its header, and by the devices there are.

llama.cpp tells some of it late, when the weights are in memory, and some of it never.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from locallab.errors import ConfigError
from locallab.fit.model_shape import CROWDED, MOST_LAYERS, compiled_pattern, shape
from locallab.memory_model import BLOCKS
from locallab.models.gguf import ENCODERS, Header
from locallab.placement_settings import KvType, overrides, shares

WITHOUT_FLASH_ATTENTION = frozenset({"grok"})
"""Architectures for which llama.cpp turns flash attention off, which values in blocks need."""

ONE_VECTOR = frozenset({"deepseek4"})
"""Architectures with one vector for keys and values, besides those whose header says so."""


def check(settings: Mapping[str, Any], header: Header | None, devices: Sequence[str], gpus: Sequence[str]) -> None:
    """Raise ConfigError for the first of the configured `settings` that cannot be had. `devices` are the names of all that can
    hold tensors, `gpus` of those that llama.cpp spreads a model over. Without a header only they are checked."""
    problems = [_overrides(settings, header, devices), _gpus(settings, gpus), _positions(settings)]
    if header is not None:
        problems += [_experts(settings, header), _kv(settings, header)]
    for name, reason in (problem for each in problems for problem in each):
        raise ConfigError(f"{name}: {reason}")


Problems = Iterator[tuple[str, str]]
"""The name of a setting, and what is wrong with it."""


def _overrides(settings: Mapping[str, Any], header: Header | None, devices: Sequence[str]) -> Problems:
    for pattern, device in overrides(settings.get("override_tensor")):
        if device not in devices:
            yield "override_tensor", f"there is no device {device}; there are {', '.join(devices)}"
        found = compiled_pattern(pattern)
        if header is not None and not any(found.search(tensor.name) for tensor in header.tensors):
            names = ", ".join(tensor.name for tensor in header.tensors[:3])
            yield "override_tensor", f"{pattern!r} matches no tensor of {header.path.name}; they have names like {names}"


def _gpus(settings: Mapping[str, Any], gpus: Sequence[str]) -> Problems:
    mode, main = settings.get("split_mode", "layer"), settings.get("main_gpu")
    there = f"there are {', '.join(gpus)}" if gpus else "llama.cpp finds no GPU here"
    if mode in ("row", "tensor") and not gpus:
        yield "split_mode", f"{mode} needs a GPU, and {there}"
    if main is not None and main >= len(gpus):
        yield "main_gpu", f"there is no GPU {main}: {there}, counted from 0"
    if main is not None and mode != "none":
        yield "main_gpu", f"only split_mode none puts a model on one GPU, and split_mode is {mode}"
    split = shares(settings.get("tensor_split"))
    if split and mode == "none":
        yield "tensor_split", "split_mode none puts the whole model on one GPU"
    if len(split) > len(gpus):
        yield "tensor_split", f"it has shares for {len(split)} GPUs, and {there}"
    if split and not any(split):
        yield "tensor_split", "at least one share must be above 0"


def _positions(settings: Mapping[str, Any]) -> Problems:
    if settings.get("rope_scale") and settings.get("rope_freq_scale"):
        yield "rope_scale", "it is the inverse of rope_freq_scale; set one of them"
    if settings.get("rope_scaling") == "none" and (settings.get("rope_scale") or settings.get("rope_freq_scale")):
        yield "rope_scale", "rope_scaling none does not stretch positions; set it to linear or yarn"


def _experts(settings: Mapping[str, Any], header: Header) -> Problems:
    for name in ("cpu_moe", "n_cpu_moe"):
        if settings.get(name) and not shape(header).has_experts:
            yield name, f"{header.path.name} has no experts; its architecture is {header.architecture}"


def _kv(settings: Mapping[str, Any], header: Header) -> Problems:
    usual: KvType = settings.get("kv_type", "f16")
    types: dict[str, KvType] = {f"kv_type_{part}": settings.get(f"kv_type_{part}") or usual for part in "kv"}
    named = {part: part if settings.get(part) else "kv_type" for part in types}
    key, value = types.values()
    if header.architecture in ENCODERS or not header.number("attention.head_count"):
        return  # it keeps neither
    one = header.architecture in ONE_VECTOR or bool(header.number("attention.key_length_mla"))
    if one and key != value:
        yield (
            "kv_type_v",
            f"{header.path.name} keeps one vector for keys and values: they must be of one type, not {key}, {value}",
        )
    if value in BLOCKS and header.architecture in WITHOUT_FLASH_ATTENTION:
        yield named["kv_type_v"], f"{value} needs flash attention, which llama.cpp does not have for {header.architecture}"
    most = CROWDED.get(header.architecture, MOST_LAYERS)
    if (header.number("block_count") or 0) > most and (block := next((part for part in types if types[part] in BLOCKS), None)):
        reason = f"llama.cpp computes with {types[block]} in models of {header.architecture} with up to {most} layers"
        yield named[block], f"{reason}, and {header.path.name} has {header.number('block_count')}; set f16 or bf16"
    for (part, kind), width in zip(types.items(), _widths(header), strict=True):
        if kind in BLOCKS and width % BLOCKS[kind]:
            reason = f"{kind} stores {BLOCKS[kind]} numbers in a block, and a head of {header.path.name} has {width}"
            yield named[part], f"{reason}; set f16 or bf16"


def _widths(header: Header) -> tuple[int, int]:
    """Return the numbers in a key and in a value of one head."""
    each = (header.number("embedding_length") or 0) // max(1, header.number("attention.head_count") or 1)
    key, value = (header.number(f"attention.{name}_length", each) or 0 for name in ("key", "value"))
    return key, value
