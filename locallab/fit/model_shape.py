"""The shape of a model: the figures of its header that determine its memory. Pure; follows llama.cpp's layout."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import NamedTuple

from locallab.errors import ConfigError, ModelLoadError
from locallab.memory_model import KV_BYTES, windowed
from locallab.models.gguf import ENCODERS, Header, Tensor
from locallab.placement_settings import EXPERTS
from locallab.settings import KvType

WINDOWS = {"exaone-moe": 128, "gemma2": 4096, "llama4": 8192}
"""Sliding windows of architectures that have one even if the file declares none."""

FIXED_WINDOWS = {"llama4": 8192, "smallthinker": 4096}
"""Windows of architectures for which the file says only whether there is one."""

BY_THE_LAST = (3, 4)
"""Pooling types that use only the last token of a text: llama.cpp's LAST and RANK."""

MOST_LAYERS = 512
_EXPERTS = re.compile(EXPERTS)

CROWDED = {"phi3": 39}
"""Most layers with which llama.cpp can compute with a KV cache in blocks. Beyond, these architectures, whose tensors are few,
have more nodes in their graph than it makes room for (llama_context::graph_max_nodes), and it ends the process."""

SHARED_KV = {"gemma3n": 20}
"""Default number of layers with a KV cache of their own; the layers above share it."""

RECURRENT = frozenset({"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"})
BOTH = frozenset({"falcon-h1"})
"""Architectures with a state in every layer, instead of a KV cache or beside it."""


Overrides = Sequence[tuple[re.Pattern[str], str]]


class Bytes(NamedTuple):
    """Bytes of weights: those that every token reads, and those of experts, of which a token reads some."""

    dense: int = 0
    experts: int = 0

    @property
    def all(self) -> int:
        return self.dense + self.experts


NOTHING = Bytes()


@dataclasses.dataclass(frozen=True, slots=True)
class Layer:
    """One layer: bytes of its weights, numbers in its KV cache per token, whether its attention has a window, numbers in its
    state per sequence. Of the `kv` numbers so many are `values`, of the weights so many `experts`; some are in `ram` or on a
    `gpu` wherever the layer is. `largest` is its largest tensor, in bytes."""

    weights: int
    kv: int
    sliding: bool
    state: int
    values: int = 0
    experts: int = 0
    ram: Bytes = NOTHING
    gpu: Bytes = NOTHING
    largest: int = 0

    def kv_bytes(self, types: tuple[KvType, KvType]) -> float:
        """Return the bytes of its KV cache per token, with keys and values of these types."""
        return (self.kv - self.values) * KV_BYTES[types[0]] + self.values * KV_BYTES[types[1]]

    def places(self, on_gpu: bool, experts_in_ram: bool) -> tuple[Bytes, Bytes]:
        """Return the weights that are on the GPU and in RAM, if the layer is on the GPU, with or without its experts."""
        free = Bytes(
            self.weights - self.experts - self.ram.dense - self.gpu.dense, self.experts - self.ram.experts - self.gpu.experts
        )
        gpu = Bytes(self.gpu.dense + on_gpu * free.dense, self.gpu.experts + (on_gpu and not experts_in_ram) * free.experts)
        return gpu, Bytes(self.weights - self.experts - gpu.dense, self.experts - gpu.experts)


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """The figures of a model that determine its memory. `embeddings` and `output` are bytes, one tensor if `tied`; `rest` is
    the bytes of other tensors outside the layers; the other figures are vector widths or counts. `window`: tokens that layers
    with a sliding window see. `compressible`: the KV cache may have a block type. `embeds`: it makes embeddings or scores, no
    text; `whole`: each text must be computed in one step; `draft` is the model that drafts for it. A token uses
    `experts_used` of `experts` in each layer that has them. `output_in_ram`: wherever the layers are."""

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
    experts: int = 0
    output_in_ram: bool = False

    @property
    def weights(self) -> int:
        """Bytes of all weights, tied ones counted once."""
        return sum(layer.weights for layer in self.layers) + self.embeddings + self.rest + (0 if self.tied else self.output)

    def kv_bytes(self, kv_type: KvType) -> int:
        """Return the bytes of KV cache per token, within the window of layers that have one."""
        return int(sum(layer.kv for layer in self.layers) * KV_BYTES[kv_type])

    @property
    def has_experts(self) -> bool:
        """True if layers have experts that can be in RAM while the rest is on a GPU."""
        return any(layer.experts for layer in self.layers)

    @property
    def share_of_experts(self) -> float:
        """The share of its experts that a token uses."""
        return min(1.0, self.experts_used / self.experts) if self.experts else 1.0

    @property
    def keeps_state(self) -> bool:
        """True if every sequence takes memory for a state of its own."""
        return any(layer.state for layer in self.layers)


def shape(header: Header, overrides: Sequence[tuple[str, str]] = ()) -> Shape:
    """Return the shape of a model, with llama.cpp's defaults for missing keys. `overrides` are pairs of a pattern and the
    device for tensors of that name. Raises ModelLoadError for impossible figures."""
    compiled = [(compiled_pattern(pattern), device) for pattern, device in overrides]
    layers = _layers(header, compiled)
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
        compressible=key % 32 == 0 and value % 32 == 0 and len(layers) <= CROWDED.get(header.architecture, MOST_LAYERS),
        window=_window(header) if any(layer.sliding for layer in layers) else 0,
        embeds=header.embeds,
        whole=header.embeds and (ahead or header.number("pooling_type") not in BY_THE_LAST),
        experts=header.number("expert_count") or 0,
        output_in_ram=_device("output.weight" if output else "token_embd.weight", compiled) == "CPU",
    )


def compiled_pattern(pattern: str) -> re.Pattern[str]:
    """Return the pattern of --override-tensor, to search names of tensors with. Raises ConfigError."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"override_tensor: {pattern!r} is not a regular expression: {error}") from None


def approximate(size: int, n_ctx_train: int = 0) -> Shape:
    """Return the usual shape for `size` bytes of weights: a model of 7 or 8 billion weights in about 4.7 GB, scaled."""
    scale = size / 4.7e9
    width = max(256, int(4096 * scale**0.35 / 256) * 256)
    layers = max(8, int(32 * scale**0.2))
    embeddings = size // 12
    kv = int(65536 * scale**0.5 / layers)
    each = Layer(weights=(size - embeddings) // layers, kv=kv, sliding=False, state=0, values=kv // 2)
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


def _device(name: str, overrides: Overrides) -> str:
    """Return the device that a tensor is put on, empty for none."""
    return next((device for pattern, device in overrides if pattern.search(name)), "")


def _layers(header: Header, overrides: Overrides) -> tuple[Layer, ...]:
    # The layers for multi-token prediction (nextn) are not loaded.
    count = max(0, (header.number("block_count") or 0) - (header.number("nextn_predict_layers") or 0))
    if count > MOST_LAYERS:
        raise ModelLoadError(header.path, f"block_count: llama.cpp computes up to {MOST_LAYERS} layers, the file says {count}")
    tensors: dict[int | None, list[Tensor]] = {index: [] for index in range(count)}
    for tensor in header.tensors:
        if tensor.layer in tensors:
            tensors[tensor.layer].append(tensor)
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
        _layer(
            tensors[index],
            (0, 0) if only_state else _head(header, "_swa" if sliding[index] else ""),
            kv_heads[index],
            sliding[index],
            state if has_state else 0,
            overrides,
        )
        for index, has_state in enumerate(recurrent)
        for only_state in [(has_state and header.architecture not in BOTH) or index >= with_kv]
    )


def _layer(
    tensors: Sequence[Tensor],
    head: tuple[int, int],
    heads: int,
    sliding: bool,
    state: int,
    overrides: Overrides,
) -> Layer:
    sizes = {"": [0, 0], "CPU": [0, 0], "GPU": [0, 0]}
    for tensor in tensors:
        device = _device(tensor.name, overrides)
        sizes["GPU" if device not in sizes else device][_EXPERTS.search(tensor.name) is not None] += tensor.size
    return Layer(
        weights=sum(map(sum, sizes.values())),
        kv=heads * sum(head),
        sliding=sliding,
        state=state,
        values=heads * head[1],
        experts=sum(experts for _, experts in sizes.values()),
        ram=Bytes(*sizes["CPU"]),
        gpu=Bytes(*sizes["GPU"]),
        largest=max((tensor.size for tensor in tensors), default=0),
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
