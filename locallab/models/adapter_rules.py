"""What the header of a LoRA adapter must fulfil to be loaded with a model, known before either takes memory.

Each rule refuses by the key or the tensor. The reference is `llama_adapter_lora_init_impl` of llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from locallab.errors import ModelLoadError
from locallab.models.gguf import Header, Tensor
from locallab.models.header_rules import ALIGNMENT, INTEGERS

A, B = ".lora_a", ".lora_b"
UNUSED = "_norm.weight"
"""End of the names of tensors that llama.cpp leaves out."""
EMBEDDINGS = "token_embd.weight"
"""Its rows are looked up, so that the matrices of its adapter lie the other way round."""
INVOCATION = "adapter.alora.invocation_tokens"


def check(adapter: Header, base: Header) -> None:
    """Raise ModelLoadError, with the adapter's file, for the first rule that it breaks as an adapter of the model `base`."""
    try:
        _check_keys(adapter, base)
        pairs = _pairs(adapter)
        weights = {tensor.name: tensor for tensor in base.tensors}
        for name, pair in pairs.items():
            _check_pair(name, pair, weights.get(name), base)
    except ValueError as error:
        raise ModelLoadError(adapter.path, str(error)) from None


def _check_keys(adapter: Header, base: Header) -> None:
    """Raise ValueError."""
    kind, way = adapter.metadata.get("general.type"), adapter.metadata.get("adapter.type")
    if kind != "adapter":
        raise ValueError(f"it is no adapter: general.type is {kind!r}; it must be 'adapter'")
    if way != "lora":
        raise ValueError(f"adapter.type is {way!r}; it must be 'lora'")
    if base.embeds:
        raise ValueError(f"{base.path.name} makes embeddings; adapters are for models that write text")
    if adapter.architecture != base.architecture:
        of = f"{base.path.name} is {base.architecture}"
        raise ValueError(f"it is made for a model of the architecture {adapter.architecture}; {of}")
    if INVOCATION in adapter.lengths:
        raise ValueError("it is an activated LoRA (aLoRA), which is not supported: name a plain LoRA")
    alpha = adapter.metadata.get("adapter.lora.alpha", 0.0)
    if not isinstance(alpha, float) or not math.isfinite(alpha):
        raise ValueError(f"adapter.lora.alpha is {alpha!r}; it must be a finite number of 32 bits")
    if any(tensor.place % ALIGNMENT for tensor in adapter.tensors):
        raise ValueError(f"its tensors do not begin at multiples of {ALIGNMENT}")


def _pairs(adapter: Header) -> Mapping[str, Mapping[str, Tensor]]:
    """Return both matrices for each weight. Raises ValueError."""
    pairs: dict[str, dict[str, Tensor]] = {}
    for tensor in adapter.tensors:
        stem, end = tensor.name[: -len(A)], tensor.name[-len(A) :]
        if end in (A, B):
            if end in pairs.setdefault(stem, {}):
                raise ValueError(f"tensor {tensor.name} is there twice")
            pairs[stem][end] = tensor
        elif not tensor.name.endswith(UNUSED):
            raise ValueError(f"tensor {tensor.name} is none of a LoRA: their names end in {A} and {B}")
    if not pairs:
        raise ValueError(f"it has no tensors whose names end in {A} and {B}")
    return pairs


def _check_pair(name: str, pair: Mapping[str, Tensor], weight: Tensor | None, base: Header) -> None:
    """Raise ValueError."""
    if weight is None:
        raise ValueError(f"{base.path.name} has no tensor {name}: the adapter is made for another model")
    for end in (A, B):
        if end not in pair:
            raise ValueError(f"tensor {name}{end} is missing")
        if pair[end].type in INTEGERS:
            right = "of a floating-point or quantized type"
            raise ValueError(f"tensor {name}{end} is of type {pair[end].type}; it must be {right}")
    a, b, whole = (_shape(tensor) for tensor in (pair[A], pair[B], weight))
    if name.endswith(EMBEDDINGS):
        fits = (a[0], a[1], b[1]) == (b[0], whole[1], whole[0])
    else:
        fits = (a[0], a[1], b[1]) == (whole[0], b[0], whole[1])
    if not fits or not a[2:] == b[2:] == whole[2:]:
        raise ValueError(
            f"the matrices for {name} are {_words(a)} and {_words(b)}, which does not fit the {_words(whole)} of"
            f" {base.path.name}: the adapter is made for another model"
        )


def _shape(tensor: Tensor) -> tuple[int, ...]:
    """Return four dimensions, innermost first."""
    return (*tensor.shape, 1, 1, 1)[:4]


def _words(shape: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in (shape if shape[2:] != (1, 1) else shape[:2]))
