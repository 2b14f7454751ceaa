"""What the header of a GGUF file must fulfil, because llama.cpp ends the process where it does not.

Each rule refuses by the key or the tensor, its value, and what would be right. The reference is llama.cpp's source:
`llama_model_base::load_hparams`, `llama_vocab::impl::load`, and the assertions of ggml's operations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from locallab.errors import ModelLoadError
from locallab.models import gguf
from locallab.models.gguf import Header

MOST_LAYERS = 512
"""LLAMA_MAX_LAYERS."""

MOST_EXPERTS = 1024
"""LLAMA_MAX_EXPERTS."""

ALIGNMENT = 32
"""TENSOR_ALIGNMENT of ggml's buffers, in bytes."""

ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
POOLINGS = (0, 1, 2, 3, 4)
"""None, mean, cls, last, rank."""

UNSPECIFIED = 2**32 - 1
"""The pooling type -1, as it is stored without a sign."""

EPSILONS = ("layer_norm_epsilon", "layer_norm_rms_epsilon", "group_norm_epsilon")
INDICES = "tid2eid"
"""Part of the names of tensors that hold whole numbers: experts by token."""

INTEGERS = frozenset({"I8", "I16", "I32", "I64", "F64"})
"""Types that no operation on weights takes."""

FLOATS = frozenset({"F32", "F16", "BF16"})
DENSE_WITH_EXPERTS = frozenset({"hunyuan-dense", "hunyuan-vl"})
"""Architectures that count the one feed-forward of a layer as an expert."""

UTF8_BYTES = frozenset({*range(0xC0), *range(0xC2, 0xF5)})
TOKENS = "tokenizer.ggml.tokens"


def check(header: Header) -> None:
    """Raise ModelLoadError for the first rule that the header breaks. Reads the vocabulary: 0.1 s for 150,000 tokens."""
    for rule in (_layers, _experts, _numbers, _places, _tensors, _vocabulary):
        for key, value, right in rule(header):
            raise ModelLoadError(header.path, f"{key} is {value}; it must be {right}")


Broken = Iterator[tuple[str, object, str]]
"""A key, its value, and what would be right."""


def _layers(header: Header) -> Broken:
    layers = header.number("block_count")
    if layers is not None and not 1 <= layers <= MOST_LAYERS:
        yield _key(header, "block_count"), layers, f"from 1 to {MOST_LAYERS}"
    ahead = header.number("nextn_predict_layers", 0) or 0
    if layers is not None and not 0 <= ahead <= layers:
        yield _key(header, "nextn_predict_layers"), ahead, f"from 0 to block_count, {layers}"


def _experts(header: Header) -> Broken:
    count, used, groups, groups_used = (
        header.number(name, 0) or 0
        for name in ("expert_count", "expert_used_count", "expert_group_count", "expert_group_used_count")
    )
    if header.architecture in DENSE_WITH_EXPERTS and count <= 1:
        return
    if not 0 <= count <= MOST_EXPERTS:
        yield _key(header, "expert_count"), count, f"from 0 to {MOST_EXPERTS}"
    if not min(count, 1) <= used <= count:
        yield _key(header, "expert_used_count"), used, f"from {min(count, 1)} to expert_count, {count}"
    if groups and not 0 <= groups < count:
        yield _key(header, "expert_group_count"), groups, f"below expert_count, {count}"
    if groups > 1 and count % groups:
        yield _key(header, "expert_group_count"), groups, f"a divisor of expert_count, {count}"
    if groups > 1 and not 0 < groups_used < groups:
        yield _key(header, "expert_group_used_count"), groups_used, f"from 1 to {groups - 1}, below expert_group_count"


def _numbers(header: Header) -> Broken:
    for name in EPSILONS:
        key = _key(header, f"attention.{name}")
        value = header.metadata.get(key, 0.0)
        if isinstance(value, float) and not (value >= 0 and math.isfinite(value)):
            yield key, value, "a number from 0 on"
    key = _key(header, "rope.scaling.type")
    scaling = header.metadata.get(key)
    if isinstance(scaling, str) and scaling not in ROPE_SCALINGS:
        yield key, repr(scaling[:40]), f"one of {', '.join(ROPE_SCALINGS)}"
    for name in ("rope.dimension_count", "rope.dimension_count_swa"):
        turned = header.metadata.get(_key(header, name))
        if isinstance(turned, int) and (turned < 2 or turned % 2):
            yield _key(header, name), turned, "an even number from 2 on"
    if header.number("full_attention_interval", 1) == 0:
        yield _key(header, "full_attention_interval"), 0, "from 1 on"
    pooling = header.metadata.get(_key(header, "pooling_type"))
    if isinstance(pooling, int) and pooling not in (*POOLINGS, UNSPECIFIED, -1):
        yield _key(header, "pooling_type"), pooling, f"from {POOLINGS[0]} to {POOLINGS[-1]}"


def _places(header: Header) -> Broken:
    if any(tensor.place % ALIGNMENT for tensor in header.tensors):
        right = f"{ALIGNMENT}, or such that each tensor begins at a multiple of it"
        yield "general.alignment", header.metadata.get("general.alignment", ALIGNMENT), right


def _tensors(header: Header) -> Broken:
    for tensor in header.tensors:
        if tensor.type in INTEGERS and not (tensor.type == "I32" and INDICES in tensor.name):
            yield f"tensor {tensor.name}", f"of type {tensor.type}", "of a floating-point or quantized type"
        if tensor.type not in FLOATS and tensor.type not in INTEGERS and len(tensor.shape) == 1:
            yield f"tensor {tensor.name}", f"of type {tensor.type}", "of type F32, as all with one dimension"


def _vocabulary(header: Header) -> Broken:
    tokens = header.lengths.get(TOKENS)
    if tokens is None:
        return
    if TOKENS not in header.places:
        yield TOKENS, "a list of numbers", "a list of texts"
        return
    for key in ("tokenizer.ggml.scores", "tokenizer.ggml.token_type"):
        if header.lengths.get(key, tokens) < tokens:
            yield key, f"a list of {header.lengths[key]:,}", f"as long as {TOKENS}, {tokens:,}"
    texts: dict[bytes, int] = {}
    for token, text in enumerate(gguf.texts(header, TOKENS)):
        seen = text.partition(b"\0")[0] or b"[EMPTY_%d]" % token  # as llama.cpp does
        other = texts.setdefault(seen, token)
        if other != token:
            yield TOKENS, f"{_quoted(seen)} at {other:,} and at {token:,}", "a list of different texts"
    if header.tokenizer == "llama":
        missing = [byte for byte in sorted(UTF8_BYTES) if not texts.keys() & {b"<0x%02X>" % byte, bytes([byte])}]
        if missing:
            yield (
                TOKENS,
                f"without the byte {missing[0]:#04x}",
                "a list with <0x00> to <0xFF>, or any other text ends llama.cpp",
            )


def _key(header: Header, name: str) -> str:
    return f"{header.architecture}.{name}"


def _quoted(text: bytes) -> str:
    return repr(text[:40].decode("utf-8", "replace"))
