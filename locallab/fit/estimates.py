"""How much memory a model will take, from its shape. Pure. Checked against what llama.cpp takes: tests/fit."""

from __future__ import annotations

import dataclasses

from locallab.fit.model_shape import KV_BYTES, Layer, Shape
from locallab.settings import KvType

STEP = 512
"""Tokens that llama.cpp computes in one go at most (n_ubatch)."""

TOKEN_BYTES, MERGE_BYTES = 160, 150
"""What llama.cpp keeps in RAM of a token of the vocabulary, and of a pair of tokens that the tokenizer joins (measured)."""

TABLE_BYTES = 6
"""Of one entry in the table that says which token of a whole text sees which other one."""

FLOAT = 4


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How a model is loaded: `gpu_layers` as llama.cpp counts them, the output being one; `kv_tokens` the KV pool's cells."""

    gpu_layers: int
    context: int
    kv_tokens: int
    kv_type: KvType
    parallel: int
    batch: int = 2048


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Bytes that a model takes. `weights`, `kv`, `state` (of recurrent layers) and `compute` (buffers and vocabulary) add up
    to `total`, and so do `gpu` and `ram`; `gpu_weights` are those of the weights that are on GPUs."""

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


def estimate(shape: Shape, load: Load, gpus: int = 1) -> Estimate:
    """What a model of this shape takes when it is loaded so. Of several GPUs each computes its own layers, and room for a part
    of a layer stays empty on each but the last."""
    on_gpu = layers_on_gpu(shape, load.gpu_layers)
    below, above = shape.layers[: len(shape.layers) - on_gpu], shape.layers[len(shape.layers) - on_gpu :]
    gpu, ram = _Sum(), _Sum()
    for place, layers in ((ram, below), (gpu, above)):
        place.weights += sum(layer.weights for layer in layers)
        place.kv += int(sum(layer.kv for layer in layers) * load.kv_tokens * KV_BYTES[load.kv_type])
        place.state += sum(layer.state for layer in layers) * FLOAT * sequences(shape, load.parallel)
    ram.weights += shape.embeddings
    if load.gpu_layers:
        gpu.weights += shape.output + shape.rest
        gpu.compute += gpus * (_graph(shape, load) + _converted(above, load))
        gpu.compute += (gpus - 1) * max((layer.weights for layer in above), default=0)
        ram.compute += _inputs(shape, load) if not below else _graph(shape, load)
    else:
        ram.weights += shape.rest + (0 if shape.tied else shape.output)
        ram.compute += _graph(shape, load)
    ram.compute += _logits(shape, load) + vocabulary(shape)
    return Estimate(
        weights=gpu.weights + ram.weights,
        kv=gpu.kv + ram.kv,
        state=gpu.state + ram.state,
        compute=gpu.compute + ram.compute,
        gpu=gpu.total,
        ram=ram.total,
        gpu_weights=gpu.weights,
    )


def layers_on_gpu(shape: Shape, gpu_layers: int) -> int:
    """How many of the model's own layers are on the GPU: the first that goes there is the output."""
    return len(shape.layers) if gpu_layers < 0 else min(len(shape.layers), max(0, gpu_layers - 1))


def sequences(shape: Shape, parallel: int) -> int:
    """Sequences that the engine makes room for: those that run, and finished ones that stay in the KV pool."""
    if shape.embeds:
        return parallel
    return min(256, parallel + (min(parallel, 64) if shape.keeps_state else 64))


def vocabulary(shape: Shape) -> int:
    """Bytes of RAM that the tokenizer's tables take."""
    return TOKEN_BYTES * shape.n_vocab + MERGE_BYTES * shape.n_merges


@dataclasses.dataclass(slots=True)
class _Sum:
    """What comes together in one place."""

    weights: int = 0
    kv: int = 0
    state: int = 0
    compute: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.state + self.compute


def _tokens(shape: Shape, load: Load) -> int:
    """Tokens of the largest step that llama.cpp makes room for: as many for each sequence."""
    if shape.whole:
        return load.kv_tokens
    slots = sequences(shape, load.parallel)
    return -(-min(STEP, load.batch, load.kv_tokens) // slots) * slots


def _graph(shape: Shape, load: Load) -> int:
    """The largest moment of a step: in a feed-forward, in the experts, in a recurrent layer, or at the logits.

    Each keeps the residual, its input and its output beside what it computes.
    """
    tokens, slots = _tokens(shape, load), sequences(shape, load.parallel)
    state = max((layer.state for layer in shape.layers), default=0)
    moments = [
        3 * shape.feed_forward + shape.heads_width if not shape.experts_used else 0,
        3 * shape.experts_used * shape.expert_width + shape.heads_width,
        shape.experts_used * (2 * shape.width + shape.expert_width),
        7 * shape.inner - 3 * shape.width + state * slots // max(1, tokens) if shape.inner else 0,
    ]
    inside = _masks(shape, load) + FLOAT * tokens * (3 * shape.width + max(moments))
    if shape.embeds:
        return inside
    at_logits = FLOAT * (shape.width * (tokens + slots) + shape.n_vocab * min(slots, tokens))
    return max(inside, at_logits)


def _masks(shape: Shape, load: Load) -> int:
    """What each token of a step may see: once for all layers with attention, once more for those with a window."""
    if shape.whole:
        return TABLE_BYTES * load.kv_tokens * load.kv_tokens
    kinds = {layer.sliding for layer in shape.layers if layer.kv}
    return 2 * _tokens(shape, load) * load.kv_tokens * len(kinds)


def _inputs(shape: Shape, load: Load) -> int:
    """What the CPU prepares for a GPU that computes everything."""
    return _masks(shape, load) + FLOAT * _tokens(shape, load) * shape.width


def _logits(shape: Shape, load: Load) -> int:
    """Where texts are read as a whole, there is an output for every token, though none is looked at."""
    return FLOAT * shape.n_vocab * (load.kv_tokens if shape.whole else sequences(shape, load.parallel))


def _converted(layers: tuple[Layer, ...], load: Load) -> int:
    """A GPU widens a layer's compressed KV cache before long prompts look at it."""
    widest = max((layer.kv for layer in layers), default=0)
    return 0 if load.kv_type in ("f16", "bf16") else 2 * widest * load.kv_tokens
