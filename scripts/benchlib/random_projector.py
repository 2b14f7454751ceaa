"""A projector with random weights, of the size of SmolVLM-256M's: as slow as a real one, and seeing nothing.

python -m benchlib.random_projector MODEL FILE

It fits any model, by the width in its header: pictures are 64 embeddings without tokens of their own around them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

SIDE, PATCH, POOL = 512, 16, 4
WIDTH, HEADS, FEED_FORWARD, LAYERS = 768, 12, 3072, 12


def write(path: Path, text: int) -> None:
    """Writes the projector for a model of width `text`."""
    import gguf

    random, writer = np.random.default_rng(0), gguf.GGUFWriter(path, "clip")

    def matrix(name: str, *shape: int) -> None:
        deviation = float(np.prod(shape[1:])) ** -0.5
        writer.add_tensor(f"{name}.weight", random.normal(0, deviation, shape).astype(np.float16))

    def row(name: str, value: float, size: int) -> None:
        writer.add_tensor(name, np.full(size, value, np.float32))

    writer.add_string("clip.projector_type", "gemma3")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_bool("clip.use_gelu", True)
    numbers = {
        "image_size": SIDE,
        "patch_size": PATCH,
        "embedding_length": WIDTH,
        "feed_forward_length": FEED_FORWARD,
        "block_count": LAYERS,
        "projection_dim": text,
        "attention.head_count": HEADS,
        "projector.scale_factor": POOL,
    }
    for name, number in numbers.items():
        writer.add_uint32(f"clip.vision.{name}", number)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-6)
    for name in ("image_mean", "image_std"):
        writer.add_array(f"clip.vision.{name}", [0.5, 0.5, 0.5])
    matrix("v.patch_embd", WIDTH, 3, PATCH, PATCH)
    row("v.patch_embd.bias", 0, WIDTH)
    writer.add_tensor("v.position_embd.weight", random.normal(0, 0.02, ((SIDE // PATCH) ** 2, WIDTH)).astype(np.float32))
    for layer in range(LAYERS):
        for part, rows, columns in (
            *((part, WIDTH, WIDTH) for part in ("attn_q", "attn_k", "attn_v", "attn_out")),
            ("ffn_up", FEED_FORWARD, WIDTH),
            ("ffn_down", WIDTH, FEED_FORWARD),
        ):
            matrix(f"v.blk.{layer}.{part}", rows, columns)
            row(f"v.blk.{layer}.{part}.bias", 0, rows)
        for norm in ("ln1", "ln2"):
            row(f"v.blk.{layer}.{norm}.weight", 1, WIDTH)
            row(f"v.blk.{layer}.{norm}.bias", 0, WIDTH)
    row("v.post_ln.weight", 1, WIDTH)
    row("v.post_ln.bias", 0, WIDTH)
    matrix("mm.input_projection", WIDTH, text)
    row("mm.soft_emb_norm.weight", 1, WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def width(model: Path) -> int:
    """The width of a model, by its header. Raises ValueError."""
    from locallab.models import gguf

    header = gguf.read(model)
    found = header.number("embedding_length")
    if found is None:
        raise ValueError(f"{model}: its header has no embedding length")
    return found


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    write(Path(sys.argv[2]), width(Path(sys.argv[1])))
