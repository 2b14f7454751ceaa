"""Models of a known shape with random weights: as fast as real ones, and saying nothing.

python -m gpulib.random_model SHAPE FILE
"""

from __future__ import annotations

import dataclasses
import itertools
import string
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from locallab.chat.known_templates import CHATML

if TYPE_CHECKING:
    import gguf

BLOCK, BLOCK_BYTES = 32, 34
"""Weights and bytes of a q8_0 block: a scale in f16, then a byte for each weight."""

SPECIALS = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
SPACE = "\u2581"
"""What SentencePiece writes for a blank."""

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
    _vocabulary(writer, shape.vocabulary)
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


def _vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """Write a SentencePiece vocabulary: the ChatML markup, all bytes, and short words of letters with and without a space, so
    that a word of a prompt is a few tokens."""
    import gguf

    types = gguf.TokenType
    tokens = [(text, types.CONTROL) for text in SPECIALS] + [(f"<0x{byte:02X}>", types.BYTE) for byte in range(256)]
    tokens += [(text, types.NORMAL) for text in itertools.islice(_words(), size - len(tokens))]
    tokens += [(f"<unused{index}>", types.UNUSED) for index in range(size - len(tokens))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_scores([-float(index) for index in range(size)])
    writer.add_token_types([kind for _, kind in tokens])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(CHATML)


def _words() -> Iterator[str]:
    yield SPACE
    for length in range(1, 4):
        for letters in map("".join, itertools.product(string.ascii_lowercase, repeat=length)):
            yield letters
            if length < 3:
                yield SPACE + letters


def _blocks(weights: int) -> npt.NDArray[np.uint8]:
    count = weights // BLOCK
    blocks = np.random.default_rng(0).integers(0, 256, (count, BLOCK_BYTES), np.uint8)
    blocks[:, :2] = np.full(1, SCALE, np.float16).view(np.uint8)
    return blocks.reshape(-1)


if __name__ == "__main__":
    write(Path(sys.argv[2]), SHAPES[sys.argv[1]])
