"""LoRA adapters with random weights for the tiny models, which say something else with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import gguf
import numpy as np

from locallab.models import gguf as headers

RANK = 4

ADAPTED = ("attn_q", "attn_v", "attn_output", "ffn_up", "ffn_down", "ssm_in", "ssm_out", "shortconv.in_proj")
"""The weights that an adapter changes, as far as its model has them."""

Tensors = Mapping[str, np.ndarray | None]


def write(
    path: Path,
    base: Path,
    *,
    seed: int = 0,
    rank: int = RANK,
    alpha: float = 2.0 * RANK,
    facts: Mapping[str, str | float | list[int]] = MappingProxyType({}),
    tensors: Tensors = MappingProxyType({}),
) -> Path:
    """Write an adapter of the model at `base` to `path`, and return it. The same arguments give the same bytes.

    `facts` are metadata in place of the usual; `tensors` are such in place of the usual ones of the same names, None: left out.
    """
    header = headers.read(base)
    writer = gguf.GGUFWriter(path, str(facts.get("general.architecture", header.architecture)))
    usual = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": alpha}
    for key, value in {**usual, **facts}.items():
        if key == "general.architecture":
            continue
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, list):
            writer.add_key_value(key, value, gguf.GGUFValueType.ARRAY, sub_type=gguf.GGUFValueType.UINT32)
        else:
            writer.add_uint32(key, value)
    for name, values in {**dict(matrices(header, seed, rank)), **tensors}.items():
        if values is not None:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def matrices(header: headers.Header, seed: int, rank: int) -> Sequence[tuple[str, np.ndarray]]:
    """Return both matrices for each weight, about as strong as that."""
    random = np.random.default_rng(seed)
    found = []
    for tensor in header.tensors:
        if len(tensor.shape) == 2 and tensor.name.partition(".")[2].partition(".")[2].removesuffix(".weight") in ADAPTED:
            columns, rows = tensor.shape
            a = random.normal(0, columns**-0.5, (rank, columns)).astype(np.float32)
            b = random.normal(0, rank**-0.5, (rows, rank)).astype(np.float32)
            found += [(f"{tensor.name}.lora_a", a), (f"{tensor.name}.lora_b", b)]
    return found
