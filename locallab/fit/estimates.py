"""Memory estimates from a model's shape. Pure. Checked against llama.cpp's own figures: tests/fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from locallab.fit.model_shape import Bytes, Layer, Shape
from locallab.memory_model import MASK_BYTES, STEP, KvCache, draft_cache, kv_cache, whole_cells
from locallab.settings import KvType, Layout

TOKEN_BYTES, MERGE_BYTES = 160, 150
"""Bytes of RAM that llama.cpp takes for each token of the vocabulary and for each tokenizer merge (measured)."""

OUTPUT_COPIES = 4
"""Buffers as wide as the vocabulary for each output: with samplers on the device probabilities, token ids and what is left of
the logits, besides the logits."""

FLOAT = 4
"""Bytes of a number in a buffer."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A way to load a model. `gpu_layers` as llama.cpp counts them, the output being one; `kv_tokens`: cells of the KV cache;
    `parallel`: most requests at once, which fewer streams reduce; `ubatch`: tokens of a step that are computed in one go. The
    experts of the first `n_cpu_moe` layers are in RAM. `kv_type_k` and `kv_type_v` replace `kv_type`."""

    gpu_layers: int
    context: int
    kv_tokens: int
    kv_type: KvType
    parallel: int
    kv_layout: Layout
    batch: int = 2048
    ubatch: int = STEP
    n_cpu_moe: int = 0
    kv_type_k: KvType | None = None
    kv_type_v: KvType | None = None

    @property
    def kv_types(self) -> tuple[KvType, KvType]:
        """The types of keys and values in the KV cache."""
        return self.kv_type_k or self.kv_type, self.kv_type_v or self.kv_type


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Bytes that a model takes. `weights`, `kv`, `state` (of recurrent layers) and `compute` (buffers and vocabulary) add up
    to `total`, and so do `gpu` and `ram`; `gpu_weights` is the part of the weights on GPUs."""

    weights: int
    kv: int
    state: int
    compute: int
    gpu: int
    ram: int
    gpu_weights: int = 0

    @property
    def total(self) -> int:
        return self.gpu + self.ram

    def __add__(self, other: Estimate) -> Estimate:
        """Return the bytes of two models."""
        return Estimate(
            **{each.name: getattr(self, each.name) + getattr(other, each.name) for each in dataclasses.fields(self)}
        )


def estimate(shape: Shape, load: Load, gpus: int = 1) -> Estimate:
    """Estimate the memory of a model of this shape, and of its draft model, loaded like this. Each of several GPUs computes its
    own layers, and on all but the last, space for less than a layer stays empty."""
    own = _estimate(shape, load, gpus)
    return own + _estimate(shape.draft, draft_load(shape, load), gpus) if shape.draft else own


def draft_load(shape: Shape, load: Load) -> Load:
    """Return how the draft model of a model of this shape, loaded like this, is loaded: wholly on the GPU if that is used."""
    own = kv_cache_of(shape, load)
    cache, batch = draft_cache(own.cells, load.context, own.parallel)
    return Load(
        gpu_layers=-1 if load.gpu_layers else 0,
        context=load.context,
        kv_tokens=cache.cells,
        kv_type=load.kv_type,
        parallel=cache.parallel,
        kv_layout="streams",
        batch=batch,
        kv_type_k=load.kv_type_k,
        kv_type_v=load.kv_type_v,
    )


def _estimate(shape: Shape, load: Load, gpus: int) -> Estimate:
    cache, on_gpu = kv_cache_of(shape, load), layers_on_gpu(shape, load.gpu_layers)
    below, above = shape.layers[: len(shape.layers) - on_gpu], shape.layers[len(shape.layers) - on_gpu :]
    gpu, ram = _Sum(), _Sum()
    carried = 0
    for layer, (on, inside) in zip(shape.layers, weights_of_layers(shape, load), strict=True):
        gpu.weights += on.all
        ram.weights += inside.all
        if inside.all:
            carried = max(carried, layer.largest)
    for place, layers in ((ram, below), (gpu, above)):
        place.kv += kv_bytes(shape, load, layers)
        place.state += state_bytes(shape, load, layers)
    ram.weights += shape.embeddings
    if load.gpu_layers:
        gpu.weights += shape.rest + (0 if shape.output_in_ram else shape.output)
        ram.weights += shape.output if shape.output_in_ram and not shape.tied else 0
        widened = max((_widened(layer, load.kv_types) for layer in above), default=0) * cache.cells
        # To compute a prompt, tensors in RAM are carried to a GPU, one at a time: each begins a part of the graph (op_offload).
        gpu.compute += gpus * (_graph(shape, load) + widened) + carried
        gpu.compute += (gpus - 1) * max((layer.weights for layer in above), default=0)
        inputs = _masks(shape, load) + FLOAT * _tokens(shape, load) * shape.width
        ram.compute += _graph(shape, load) if below else inputs
    else:
        ram.weights += shape.rest + (0 if shape.tied else shape.output)
        ram.compute += _graph(shape, load)
    # Where texts are computed as a whole, llama.cpp keeps logits for every token, though none is read.
    rows = load.kv_tokens if shape.whole else cache.outputs
    copies = 1 if shape.embeds or not load.gpu_layers else OUTPUT_COPIES
    ram.compute += FLOAT * shape.n_vocab * rows * copies + vocabulary(shape)
    return Estimate(
        weights=gpu.weights + ram.weights,
        kv=gpu.kv + ram.kv,
        state=gpu.state + ram.state,
        compute=gpu.compute + ram.compute,
        gpu=gpu.total,
        ram=ram.total,
        gpu_weights=gpu.weights,
    )


def weights_of_layers(shape: Shape, load: Load) -> Iterator[tuple[Bytes, Bytes]]:
    """Yield for each layer the bytes of its weights on a GPU and in RAM."""
    first = len(shape.layers) - layers_on_gpu(shape, load.gpu_layers)
    for index, layer in enumerate(shape.layers):
        yield layer.places(index >= first, index < load.n_cpu_moe)


def _widened(layer: Layer, types: tuple[KvType, KvType]) -> int:
    """Return the bytes per token of the KV cache as a GPU widens it, if it is compressed, before the attention over a long
    prompt."""
    keys, values = (0 if each in ("f16", "bf16") else 2 for each in types)
    return keys * (layer.kv - layer.values) + values * layer.values


def layers_on_gpu(shape: Shape, gpu_layers: int) -> int:
    """Return how many of the model's own layers are on the GPU; the output is the first to go there."""
    return len(shape.layers) if gpu_layers < 0 else min(len(shape.layers), max(0, gpu_layers - 1))


def kv_cache_of(shape: Shape, load: Load) -> KvCache:
    """Return the KV cache that the engine allocates; one for embeddings keeps nothing that is finished."""
    if shape.embeds:
        return KvCache("unified", whole_cells(load.kv_tokens), load.parallel, load.parallel)
    return kv_cache(load.kv_layout, load.kv_tokens, load.context, load.parallel, shape.keeps_state, load.gpu_layers != 0)


def kv_bytes(shape: Shape, load: Load, layers: Iterable[Layer] | None = None) -> int:
    """Return the bytes of the KV cache, or of the part that belongs to these layers."""
    cells, types = _cells(shape, load), load.kv_types
    listed = shape.layers if layers is None else layers
    return int(sum(layer.kv_bytes(types) * cells[layer.sliding] for layer in listed))


def cache_bytes(shape: Shape, load: Load) -> int:
    """Return the bytes of the KV cache and the states, with those of the draft model."""
    own = kv_bytes(shape, load) + state_bytes(shape, load)
    return own + (cache_bytes(shape.draft, draft_load(shape, load)) if shape.draft else 0)


def vocabulary(shape: Shape) -> int:
    """Return the bytes of RAM of the tokenizer's tables."""
    return TOKEN_BYTES * shape.n_vocab + MERGE_BYTES * shape.n_merges


@dataclasses.dataclass(slots=True)
class _Sum:
    """The bytes in one place, RAM or GPUs."""

    weights: int = 0
    kv: int = 0
    state: int = 0
    compute: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.state + self.compute


def state_bytes(shape: Shape, load: Load, layers: Iterable[Layer] | None = None) -> int:
    """Return the bytes of the states of all sequences, or of the part that belongs to these layers."""
    listed = shape.layers if layers is None else layers
    return sum(layer.state for layer in listed) * FLOAT * kv_cache_of(shape, load).sequences


def _cells(shape: Shape, load: Load) -> tuple[int, int]:
    """Return the cells of a layer with full attention and of one with a window; contexts for embeddings keep all."""
    cache = kv_cache_of(shape, load)
    return cache.cells, cache.cells if shape.embeds else cache.window_cells(shape.window, min(load.ubatch, load.batch))


def step_bytes(shape: Shape, load: Load) -> int:
    """Return the bytes of the buffers that a device computes a step in."""
    return _graph(shape, load)


def _tokens(shape: Shape, load: Load) -> int:
    """Return the tokens of the largest step that llama.cpp allocates for, the same number for each sequence."""
    if shape.whole:
        return load.kv_tokens
    cache = kv_cache_of(shape, load)
    return -(-min(load.ubatch, load.batch, cache.cells) // cache.sequences) * cache.sequences


def _graph(shape: Shape, load: Load) -> int:
    """Return the peak bytes of a step: in a feed-forward, in the experts, in a recurrent layer, or at the logits.

    Each keeps the residual, its input and its output beside its intermediate results.
    """
    tokens, cache = _tokens(shape, load), kv_cache_of(shape, load)
    state = max((layer.state for layer in shape.layers), default=0)
    moments = [
        3 * shape.feed_forward + shape.heads_width if not shape.experts_used else 0,
        3 * shape.experts_used * shape.expert_width + shape.heads_width,
        shape.experts_used * (2 * shape.width + shape.expert_width),
        7 * shape.inner - 3 * shape.width + state * cache.sequences // max(1, tokens) if shape.inner else 0,
    ]
    inside = _masks(shape, load) + FLOAT * tokens * (3 * shape.width + max(moments))
    if shape.embeds:
        return inside
    outputs = cache.outputs
    at_logits = FLOAT * (shape.width * (tokens + outputs) + shape.n_vocab * min(outputs, tokens))
    return max(inside, at_logits)


def _masks(shape: Shape, load: Load) -> int:
    """Return the bytes of the attention masks of a step, over the cells of a stream: one for layers with full attention, one
    for those with a window."""
    if shape.whole:
        return MASK_BYTES * load.kv_tokens * load.kv_tokens
    cells = _cells(shape, load)
    seen = sum(cells[kind] for kind in {layer.sliding for layer in shape.layers if layer.kv})
    return 2 * _tokens(shape, load) * seen // kv_cache_of(shape, load).streams
