"""Settings of where a model lies: its context, its KV cache, and which of its tensors are on which device."""

from __future__ import annotations

import dataclasses
import re
from typing import Annotated, Any, Literal

from msgspec import Meta

KvType = Literal["f32", "f16", "bf16", "q8_0", "q4_0"]
KvLayout = Literal["auto", "streams", "unified"]
SplitMode = Literal["none", "layer", "row", "tensor"]
RopeScaling = Literal["none", "linear", "yarn"]
Numa = Literal["distribute", "isolate", "numactl"]
MOST = 2**31 - 1
"""Largest number for llama.cpp, which counts in 32 bits."""
MOST_CONTEXT = 2**24
"""Largest context: as many cells for each request that may run at once can still be counted."""

EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
"""Matches the names of the tensors of experts, of which a token uses few."""

MOST_LAYERS = 512
"""LLAMA_MAX_LAYERS."""

_OVERRIDE = re.compile(r"(.+?)=([^=,]+)(?:,|$)")

_Factor = Annotated[float, Meta(ge=0, le=1e9)]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PlacementSettings:
    """Where a model lies, how it is read, and how its positions are encoded."""

    context: Annotated[
        Annotated[int, Meta(ge=1, le=MOST_CONTEXT)] | None,
        Meta(
            description="maximum tokens per request, prompt and answer together; default: from models.yaml, else what the "
            "model was trained for, as far as memory allows"
        ),
    ] = None
    kv_tokens: Annotated[
        Annotated[int, Meta(ge=1, le=MOST)] | None,
        Meta(description="tokens in the KV cache, for all requests together; default: from the context and the free memory"),
    ] = None
    kv_type: Annotated[KvType, Meta(description="data type of the KV cache")] = "f16"
    kv_type_k: Annotated[KvType | None, Meta(description="data type of its keys; default: that of --kv-type")] = None
    kv_type_v: Annotated[KvType | None, Meta(description="data type of its values; default: that of --kv-type")] = None
    kv_layout: Annotated[
        KvLayout,
        Meta(
            description="where requests lie in the KV cache: streams, each in a part of its own as long as the context; "
            "unified, all in one pool; auto: streams if enough of them fit"
        ),
    ] = "auto"
    gpu_layers: Annotated[int, Meta(ge=-1, le=MOST, description="layers to offload to the GPU; -1: all")] = -1
    threads: Annotated[
        Annotated[int, Meta(ge=1, le=512)] | None, Meta(description="CPU threads; default: the number of physical cores")
    ] = None
    cpu_moe: Annotated[
        bool, Meta(description="keep the experts of all layers in RAM, and the rest of the layers on the GPU")
    ] = False
    n_cpu_moe: Annotated[
        Annotated[int, Meta(ge=0, le=MOST)] | None,
        Meta(description="keep the experts of the first N layers in RAM; default: of as many as do not fit on the GPU"),
    ] = None
    override_tensor: Annotated[
        Annotated[str, Meta(pattern=r"^.+=[^=,]+$")] | None,
        Meta(
            description="put the tensors whose names match a regular expression on a device, such as "
            "blk\\.1\\..*_exps=CPU; comma-separated, the first match counts; default: none",
            extra={"each": "PATTERN=DEVICE"},
        ),
    ] = None
    split_mode: Annotated[
        SplitMode,
        Meta(
            description="how several GPUs share a model: none, one GPU has it all; layer, each has some of the layers; row, "
            "each has some rows of every weight; tensor, each computes a part of every layer"
        ),
    ] = "layer"
    tensor_split: Annotated[
        Annotated[str, Meta(pattern=r"^\d+(\.\d+)?(,\d+(\.\d+)?)*$")] | None,
        Meta(description="comma-separated shares of the GPUs in the model, such as 3,1; default: by their free memory"),
    ] = None
    main_gpu: Annotated[
        Annotated[int, Meta(ge=0, le=MOST)] | None,
        Meta(description="number of the GPU that has the whole model with --split-mode none; default: 0"),
    ] = None
    mmap: Annotated[
        bool, Meta(description="map the model's file into memory instead of reading it, so that processes share it")
    ] = True
    mlock: Annotated[bool, Meta(description="keep the weights in RAM: the system may not swap them out")] = False
    numa: Annotated[
        Numa | None,
        Meta(
            description="on a machine with several NUMA nodes: distribute, threads over all nodes; isolate, threads on the "
            "node that starts them; numactl, as numactl says; counts for the whole process; default: off"
        ),
    ] = None
    rope_scaling: Annotated[
        RopeScaling | None,
        Meta(description="method that stretches positions beyond the trained context; default: the model's own"),
    ] = None
    rope_scale: Annotated[
        Annotated[float, Meta(gt=0, le=1e9)] | None,
        Meta(description="factor by which positions are stretched: 4 makes four times the context; default: the model's own"),
    ] = None
    rope_freq_base: Annotated[_Factor | None, Meta(description="base frequency of the positions; default: the model's own")] = (
        None
    )
    rope_freq_scale: Annotated[
        Annotated[float, Meta(gt=0, le=1e9)] | None,
        Meta(description="the inverse of --rope-scale, in its place; default: the model's own"),
    ] = None
    yarn_orig_ctx: Annotated[
        Annotated[int, Meta(ge=1, le=MOST)] | None,
        Meta(description="YaRN: context that the model was trained for before it was stretched; default: the model's own"),
    ] = None
    yarn_ext_factor: Annotated[
        _Factor | None, Meta(description="YaRN: share of extrapolation; 0: interpolation alone; default: the model's own")
    ] = None
    yarn_attn_factor: Annotated[
        _Factor | None, Meta(description="YaRN: factor of the attention's magnitude; default: the model's own")
    ] = None
    yarn_beta_fast: Annotated[
        _Factor | None, Meta(description="YaRN: rotations from which a dimension is not stretched; default: the model's own")
    ] = None
    yarn_beta_slow: Annotated[
        _Factor | None, Meta(description="YaRN: rotations up to which a dimension is stretched; default: the model's own")
    ] = None

    @property
    def kv_types(self) -> tuple[KvType, KvType]:
        """The types of keys and of values in the KV cache."""
        return self.kv_type_k or self.kv_type, self.kv_type_v or self.kv_type

    @property
    def unusual(self) -> dict[str, Any]:
        """The settings that change what a model computes, or where, if they are not at their defaults. Not the context, the KV
        cache and the number of layers on the GPU, which always count."""
        return {name: value for name, default in _CHANGING.items() if (value := getattr(self, name)) != default}


_CHANGING = {
    field.name: field.default
    for field in dataclasses.fields(PlacementSettings)
    if field.name in ("cpu_moe", "n_cpu_moe", "override_tensor", "split_mode", "tensor_split", "main_gpu", "rope_scaling")
    or field.name.startswith(("rope_", "yarn_"))
}


def overrides(text: str | None) -> tuple[tuple[str, str], ...]:
    """Return the pairs of a pattern and a device in --override-tensor, first one first. A pattern may have commas."""
    return tuple((found[1], found[2]) for found in _OVERRIDE.finditer(text or ""))


def shares(text: str | None) -> tuple[float, ...]:
    """Return the shares in --tensor-split."""
    return tuple(map(float, text.split(","))) if text else ()


def experts_of(layers: int) -> str:
    """Return the pattern of the experts in the first so many layers."""
    if layers >= MOST_LAYERS:
        return EXPERTS
    return rf"^blk\.({'|'.join(map(str, range(layers)))}){EXPERTS}"
