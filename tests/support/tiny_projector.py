"""Tiny projectors with random weights for the models of `tiny_gguf`, made in milliseconds: one that cuts pictures into tiles,
one whose pictures attend both ways, one whose positions have several dimensions, one that hears."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

KINDS = {"idefics3": "llama", "gemma3": "gemma3", "qwen2vl_merger": "qwen2vl", "ultravox": "llama"}
"""The kinds of projectors, as their metadata has it, each with the architecture that it is for."""

WANTED = {
    "idefics3": (
        "\n\n",
        "\n",
        "<fake_token_around_image>",
        "<global-img>",
        *(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)),
    ),
    "gemma3": ("<start_of_image>", "<end_of_image>"),
    "qwen2vl_merger": ("<|vision_start|>", "<|vision_end|>"),
    "ultravox": (),
}
"""Tokens that a vocabulary must have around the pictures of each kind."""

TEXT = 64
SEES = (64, 4, 128, 2)
HEARS = (16, 1, 16, 1)
"""Width, heads, width of the feed-forward part, and layers; a sound has 1,500 tokens there."""
SIDE, PATCH = 32, 4
MELS, FRAMES, STACK = 80, 1500, 20


def vocabulary(kind: str) -> list[tuple[str, gguf.TokenType]]:
    """Return the tokens to add to a tiny model for this kind."""
    return [(text, gguf.TokenType.CONTROL) for text in WANTED[kind]]


def write(path: Path, kind: str, *, seed: int = 1, text: int = TEXT, without: tuple[str, ...] = ()) -> Path:
    """Write a projector of a kind of KINDS for a model of width `text`, and return its path. The same arguments give the same
    bytes; `without` names tensors to leave out."""
    _Projector(path, kind, seed, text, without).close()
    return path


class _Projector:
    def __init__(self, path: Path, kind: str, seed: int, text: int, without: tuple[str, ...]) -> None:
        self._random = np.random.default_rng(seed)
        self._without = without
        self._writer = gguf.GGUFWriter(path, "clip")
        self._text = text
        self._width, self._heads, self._feed_forward, self._n_layers = HEARS if kind == "ultravox" else SEES
        self._writer.add_string("clip.projector_type", kind)
        if kind == "ultravox":
            self._hears()
        else:
            self._sees(kind)

    def close(self) -> None:
        self._writer.write_header_to_file()
        self._writer.write_kv_data_to_file()
        self._writer.write_tensors_to_file()
        self._writer.close()

    def _facts(self, of: str) -> None:
        self._writer.add_bool(f"clip.has_{of}_encoder", True)
        self._writer.add_uint32(f"clip.{of}.embedding_length", self._width)
        self._writer.add_uint32(f"clip.{of}.feed_forward_length", self._feed_forward)
        self._writer.add_uint32(f"clip.{of}.block_count", self._n_layers)
        self._writer.add_uint32(f"clip.{of}.projection_dim", self._text)
        self._writer.add_uint32(f"clip.{of}.attention.head_count", self._heads)
        self._writer.add_float32(f"clip.{of}.attention.layer_norm_epsilon", 1e-6)
        self._writer.add_bool("clip.use_gelu", True)

    def _sees(self, kind: str) -> None:
        self._facts("vision")
        self._writer.add_uint32("clip.vision.image_size", SIDE)
        self._writer.add_uint32("clip.vision.patch_size", PATCH)
        self._writer.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
        self._writer.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])
        self._matrix("v.patch_embd.weight", self._width, 3, PATCH, PATCH)
        if kind == "qwen2vl_merger":
            self._matrix("v.patch_embd.weight.1", self._width, 3, PATCH, PATCH)
        else:
            self._zeros("v.patch_embd.bias", self._width)
            self._matrix("v.position_embd.weight", (SIDE // PATCH) ** 2, self._width)
        self._layers("v", key_bias=True)
        self._norm("v.post_ln")
        if kind == "idefics3":
            self._writer.add_uint32("clip.vision.projector.scale_factor", 2)
            self._writer.add_uint32("clip.vision.preproc_image_size", 2 * SIDE)
            self._matrix("mm.model.fc.weight", self._text, 4 * self._width)
        elif kind == "gemma3":
            self._writer.add_uint32("clip.vision.projector.scale_factor", 2)
            self._matrix("mm.input_projection.weight", self._width, self._text)
            self._ones("mm.soft_emb_norm.weight", self._width)
        else:
            self._matrix("mm.0.weight", 4 * self._width, 4 * self._width)
            self._zeros("mm.0.bias", 4 * self._width)
            self._matrix("mm.2.weight", self._text, 4 * self._width)
            self._zeros("mm.2.bias", self._text)

    def _hears(self) -> None:
        self._facts("audio")
        self._writer.add_uint32("clip.audio.num_mel_bins", MELS)
        self._writer.add_uint32("clip.audio.projector.stack_factor", STACK)
        self._matrix("a.conv1d.1.weight", self._width, MELS, 3, half=True, scale=4)  # so that sounds differ
        self._zeros("a.conv1d.1.bias", self._width, 1)
        self._matrix("a.conv1d.2.weight", self._width, self._width, 3, half=True, scale=4)
        self._zeros("a.conv1d.2.bias", self._width, 1)
        self._matrix("a.position_embd.weight", FRAMES, self._width, scale=0.1)
        self._layers("a", key_bias=False)
        self._norm("a.post_ln")
        self._ones("mm.a.norm_pre.weight", STACK * self._width)
        self._matrix("mm.a.mlp.1.weight", 2 * self._width, STACK * self._width)
        self._ones("mm.a.norm_mid.weight", self._width)
        self._matrix("mm.a.mlp.2.weight", self._text, self._width)

    def _layers(self, prefix: str, *, key_bias: bool) -> None:
        for layer in range(self._n_layers):
            block = f"{prefix}.blk.{layer}"
            self._norm(f"{block}.ln1")
            self._norm(f"{block}.ln2")
            for part in ("attn_q", "attn_k", "attn_v", "attn_out"):
                self._matrix(f"{block}.{part}.weight", self._width, self._width)
                if part != "attn_k" or key_bias:
                    self._zeros(f"{block}.{part}.bias", self._width)
            self._matrix(f"{block}.ffn_up.weight", self._feed_forward, self._width)
            self._zeros(f"{block}.ffn_up.bias", self._feed_forward)
            self._matrix(f"{block}.ffn_down.weight", self._width, self._feed_forward)
            self._zeros(f"{block}.ffn_down.bias", self._width)

    def _norm(self, name: str) -> None:
        self._ones(f"{name}.weight", self._width)
        self._zeros(f"{name}.bias", self._width)

    def _matrix(self, name: str, *shape: int, half: bool = False, scale: float = 1) -> None:
        values = self._random.normal(0, scale * float(np.prod(shape[1:])) ** -0.5, shape)
        self._add(name, values.astype(np.float16 if half else np.float32))

    def _zeros(self, name: str, *shape: int) -> None:
        self._add(name, np.zeros(shape, np.float32))

    def _ones(self, name: str, *shape: int) -> None:
        self._add(name, np.ones(shape, np.float32))

    def _add(self, name: str, values: np.ndarray) -> None:
        if name not in self._without:
            self._writer.add_tensor(name, values)
