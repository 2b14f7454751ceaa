"""Models of a known shape with random weights: as fast as real ones, and saying nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import gguf

BLOCK, BLOCK_BYTES = 32, 34
"""Weights and bytes of a q8_0 block: a scale in f16, then a byte for each weight."""

SCALE = 2e-4
"""Of every block: weights of deviation 0.015 keep a 7B model's activations finite."""


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a llama model."""

    layers: int
    embed: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocabulary: int

    @property
    def head(self) -> int:
        """Numbers in the key or the value of one head."""
        return self.embed // self.heads

    @property
    def matrices(self) -> Mapping[str, tuple[int, int]]:
        """Rows and columns of each matrix of a layer, by its name."""
        keys = self.kv_heads * self.head
        return {
            "attn_q": (self.embed, self.embed),
            "attn_k": (keys, self.embed),
            "attn_v": (keys, self.embed),
            "attn_output": (self.embed, self.embed),
            "ffn_gate": (self.feed_forward, self.embed),
            "ffn_up": (self.feed_forward, self.embed),
            "ffn_down": (self.embed, self.feed_forward),
        }


SHAPES = {"tiny": Shape(2, 256, 4, 2, 512, 512), "7b": Shape(28, 3584, 28, 4, 18944, 32000)}
"""`7b` has the layers and heads of Qwen2.5 7B: 7 GB in q8_0, and 56 KiB of KV cache for each token."""


def write(path: Path, shape: Shape) -> Path:
    """Write a model in q8_0 to `path`, and return it. Takes the RAM of one tensor: all share the same random bytes.

    Raises ImportError without the package gguf, which nothing else here needs.
    """
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    _facts(writer, shape)
    blocks = _blocks(max(rows * columns for rows, columns in (*shape.matrices.values(), (shape.vocabulary, shape.embed))))

    def add(name: str, rows: int, columns: int) -> None:
        width = columns // BLOCK * BLOCK_BYTES
        tensor = blocks[: rows * width].reshape(rows, width)
        writer.add_tensor(name, tensor, raw_dtype=gguf.GGMLQuantizationType.Q8_0)

    ones = np.ones(shape.embed, np.float32)
    add("token_embd.weight", shape.vocabulary, shape.embed)
    add("output.weight", shape.vocabulary, shape.embed)
    writer.add_tensor("output_norm.weight", ones)
    for layer in range(shape.layers):
        writer.add_tensor(f"blk.{layer}.attn_norm.weight", ones)
        writer.add_tensor(f"blk.{layer}.ffn_norm.weight", ones)
        for name, size in shape.matrices.items():
            add(f"blk.{layer}.{name}.weight", *size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _facts(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_context_length(32768)
    writer.add_block_count(shape.layers)
    writer.add_embedding_length(shape.embed)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(shape.vocabulary)


def _blocks(weights: int) -> npt.NDArray[np.uint8]:
    count = weights // BLOCK
    blocks = np.random.default_rng(0).integers(0, 256, (count, BLOCK_BYTES), np.uint8)
    blocks[:, :2] = np.full(1, SCALE, np.float16).view(np.uint8)
    return blocks.reshape(-1)
