"""The shape of a model: the figures of its header that determine its memory. Pure; follows llama.cpp's layout."""

from __future__ import annotations

import dataclasses

from locallab.errors import ModelLoadError
from locallab.memory_model import KV_BYTES, windowed
from locallab.models.gguf import ENCODERS, Header
from locallab.settings import KvType

WINDOWS = {"exaone-moe": 128, "gemma2": 4096, "llama4": 8192}
"""Sliding windows of architectures that have one even if the file declares none."""

FIXED_WINDOWS = {"llama4": 8192, "smallthinker": 4096}
"""Windows of architectures for which the file says only whether there is one."""

BY_THE_LAST = (3, 4)
"""Pooling types that use only the last token of a text: llama.cpp's LAST and RANK."""

MOST_LAYERS = 512

SHARED_KV = {"gemma3n": 20}
"""Default number of layers with a KV cache of their own; the layers above share it."""

RECURRENT = frozenset({"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"})
BOTH = frozenset({"falcon-h1"})
"""Architectures with a state in every layer, instead of a KV cache or beside it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Layer:
    """One layer: bytes of its weights, numbers in its KV cache per token, whether its attention has a window, numbers in its
    state per sequence."""

    weights: int
    kv: int
    sliding: bool
    state: int


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """The figures of a model that determine its memory. `embeddings` and `output` are bytes, one tensor if `tied`; `rest` is
    the bytes of other tensors outside the layers; the other figures are vector widths or counts. `window`: tokens that layers
    with a sliding window see. `compressible`: the KV cache may have a block type. `embeds`: it makes embeddings or scores, no
    text; `whole`: each text must be computed in one step; `draft` is the model that drafts for it."""

    layers: tuple[Layer, ...]
    embeddings: int
    output: int
    tied: bool
    rest: int
    width: int
    heads_width: int
    feed_forward: int
    inner: int
    experts_used: int
    expert_width: int
    n_vocab: int
    n_merges: int
    n_ctx_train: int
    compressible: bool
    window: int = 0
    embeds: bool = False
    whole: bool = False
    draft: Shape | None = None

    @property
    def weights(self) -> int:
        """Bytes of all weights, tied ones counted once."""
        return sum(layer.weights for layer in self.layers) + self.embeddings + self.rest + (0 if self.tied else self.output)

    def kv_bytes(self, kv_type: KvType) -> int:
        """Return the bytes of KV cache per token, within the window of layers that have one."""
        return int(sum(layer.kv for layer in self.layers) * KV_BYTES[kv_type])

    @property
    def keeps_state(self) -> bool:
        """True if every sequence takes memory for a state of its own."""
        return any(layer.state for layer in self.layers)


def shape(header: Header) -> Shape:
    """Return the shape of a model, with llama.cpp's defaults for missing keys. Raises ModelLoadError for impossible figures."""
    layers = _layers(header)
    width = header.number("embedding_length") or 0
    by_name = {tensor.name: tensor.size for tensor in header.tensors}
    embeddings, output = by_name.get("token_embd.weight", 0), by_name.get("output.weight", 0)
    outside = sum(tensor.size for tensor in header.tensors if tensor.layer is None)
    key, value = _head(header, "")
    # A text can be computed in parts only if no token looks ahead and the last token alone counts.
    ahead = header.architecture in ENCODERS or header.metadata.get(f"{header.architecture}.attention.causal") is False
    return Shape(
        layers=layers,
        embeddings=embeddings,
        output=output or embeddings,
        tied=not output,
        rest=outside - embeddings - output,
        width=width,
        heads_width=(header.number("attention.head_count") or 0) * key,
        feed_forward=header.number("feed_forward_length") or 0,
        inner=header.number("ssm.inner_size") or 0,
        experts_used=header.number("expert_used_count") or 0,
        expert_width=header.number("expert_feed_forward_length") or header.number("feed_forward_length") or 0,
        n_vocab=header.n_vocab,
        n_merges=header.lengths.get("tokenizer.ggml.merges", 0),
        n_ctx_train=header.number("context_length") or 0,
        compressible=key % 32 == 0 and value % 32 == 0,
        window=_window(header) if any(layer.sliding for layer in layers) else 0,
        embeds=header.embeds,
        whole=header.embeds and (ahead or header.number("pooling_type") not in BY_THE_LAST),
    )


def approximate(size: int, n_ctx_train: int = 0) -> Shape:
    """Return the usual shape for `size` bytes of weights: a model of 7 or 8 billion weights in about 4.7 GB, scaled."""
    scale = size / 4.7e9
    width = max(256, int(4096 * scale**0.35 / 256) * 256)
    layers = max(8, int(32 * scale**0.2))
    embeddings = size // 12
    each = Layer(weights=(size - embeddings) // layers, kv=int(65536 * scale**0.5 / layers), sliding=False, state=0)
    return Shape(
        layers=(each,) * layers,
        embeddings=embeddings,
        output=embeddings,
        tied=True,
        rest=0,
        width=width,
        heads_width=width,
        feed_forward=7 * width // 2,
        inner=0,
        experts_used=0,
        expert_width=0,
        n_vocab=150_000,
        n_merges=150_000,
        n_ctx_train=n_ctx_train,
        compressible=True,
    )


def _layers(header: Header) -> tuple[Layer, ...]:
    # The layers for multi-token prediction (nextn) are not loaded.
    count = max(0, (header.number("block_count") or 0) - (header.number("nextn_predict_layers") or 0))
    if count > MOST_LAYERS:
        raise ModelLoadError(header.path, f"block_count: llama.cpp computes up to {MOST_LAYERS} layers, the file says {count}")
    weights = dict.fromkeys(range(count), 0)
    for tensor in header.tensors:
        if tensor.layer in weights:
            weights[tensor.layer] += tensor.size
    heads = header.number("attention.head_count") or 0
    kv_heads = header.each_layer("attention.head_count_kv", count, heads)
    if header.architecture in ENCODERS:
        kv_heads = (0,) * count
    recurrent = _recurrent(header, kv_heads)
    sliding = _sliding(header, recurrent)
    shared = header.number("attention.shared_kv_layers")
    with_kv = SHARED_KV.get(header.architecture, count) if shared is None else count - shared
    state = _state(header)
    return tuple(
        Layer(
            weights=weights[index],
            kv=0 if only_state else kv_heads[index] * sum(_head(header, "_swa" if sliding[index] else "")),
            sliding=sliding[index],
            state=state if has_state else 0,
        )
        for index, has_state in enumerate(recurrent)
        for only_state in [(has_state and header.architecture not in BOTH) or index >= with_kv]
    )


def _head(header: Header, kind: str) -> tuple[int, int]:
    """Return the widths of a key and a value in one head; `kind` is "_swa" for layers with a window."""
    each = (header.number("embedding_length") or 0) // max(1, header.number("attention.head_count") or 1)
    key, value = (header.number(f"attention.{name}_length", each) or 0 for name in ("key", "value"))
    key = header.number(f"attention.key_length{kind}", key) or 0
    value = header.number(f"attention.value_length{kind}", value) or 0
    return key, 0 if header.number("attention.key_length_mla") else value  # MLA: one vector for both


def _window(header: Header) -> int:
    """Return the tokens in the sliding window, 0 if there is none."""
    declared = header.number("attention.sliding_window", WINDOWS.get(header.architecture))
    return FIXED_WINDOWS.get(header.architecture, declared) if declared else 0


def _sliding(header: Header, recurrent: tuple[bool, ...]) -> tuple[bool, ...]:
    """Return for each layer whether its attention has a window."""
    name = "attention.sliding_window_pattern"
    if not _window(header):
        return (False,) * len(recurrent)
    if f"{header.architecture}.{name}" in header.arrays:
        return tuple(map(bool, header.each_layer(name, len(recurrent))))
    if header.architecture == "lfm2":
        return tuple(not has_state for has_state in recurrent)
    return windowed(header.architecture, len(recurrent), header.number(name))


def _recurrent(header: Header, kv_heads: tuple[int, ...]) -> tuple[bool, ...]:
    """Return for each layer whether it keeps a state."""
    if header.architecture in RECURRENT | BOTH:
        return (True,) * len(kv_heads)
    if f"{header.architecture}.attention.recurrent_layers" in header.arrays:
        return tuple(map(bool, header.each_layer("attention.recurrent_layers", len(kv_heads))))
    if every := header.number("full_attention_interval", 4 if header.architecture.startswith(("qwen3next", "qwen35")) else 0):
        return tuple((index + 1) % every != 0 for index in range(len(kv_heads)))
    mixes = header.each_layer("feed_forward_length", len(kv_heads)) if header.architecture.startswith("nemotron_h") else None
    return tuple(
        heads == 0 and bool(_state(header)) and not (mixes and mixes[index])  # Nemotron-H has layers with only a feed-forward
        for index, heads in enumerate(kv_heads)
    )


def _state(header: Header) -> int:
    """Return how many numbers, of 4 bytes each, a recurrent layer keeps per sequence."""
    width, number = header.number("embedding_length") or 0, header.number
    if wkv := number("wkv.head_size"):
        return width * wkv + width * (number("token_shift_count") or 2)
    if taps := number("shortconv.l_cache"):
        return width * (taps - 1)
    taps = max(0, (number("ssm.conv_kernel") or 0) - 1)
    inner, size, groups = (number(f"ssm.{name}") or 0 for name in ("inner_size", "state_size", "group_count"))
    if head := number("kda.head_dim"):
        heads = number("attention.head_count") or 0
        return heads * head * head + 3 * (taps or 3) * heads * head
    return taps * (inner + 2 * groups * size) + size * inner
