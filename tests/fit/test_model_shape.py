"""How the figures of a header become layers, for what no model of test_estimates has."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from locallab.errors import ModelLoadError
from locallab.fit import Load, approximate, estimate, shape
from locallab.models.gguf import read
from tests.support import tiny_gguf
from tests.support.gguf_headers import Made

Step = Callable[[gguf.GGUFWriter], object]


def header(path: Path, architecture: str, layers: int, *steps: Step) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(layers)
    writer.add_embedding_length(64)
    writer.add_head_count(4)
    for step in steps:
        step(writer)
    for layer in range(layers):
        writer.add_tensor(f"blk.{layer}.x", np.ones(layer + 1, np.float32))
    writer.add_tensor("token_embd.weight", np.ones(10, np.float32))
    writer.add_tensor("rope_freqs.weight", np.ones(3, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def numbers(key: str, value: int) -> Step:
    return lambda writer: writer.add_uint32(key, value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.gguf"


def test_weights_by_layer(path: Path) -> None:
    found = shape(read(header(path, "llama", 3)))
    assert [layer.weights for layer in found.layers] == [4, 8, 12]
    assert (found.embeddings, found.output, found.tied, found.rest) == (40, 40, True, 12)
    assert found.weights == 4 + 8 + 12 + 40 + 12


def test_more_layers_than_there_can_be(path: Path) -> None:
    with pytest.raises(ModelLoadError, match="up to 512 layers, the file says 513"):
        shape(read(header(path, "llama", 1, numbers("x", 1), lambda writer: writer.add_block_count(513))))


def test_heads_are_as_wide_as_the_width_gives_by_default(path: Path) -> None:
    found = shape(read(header(path, "llama", 2, lambda writer: writer.add_head_count_kv(2))))
    assert [layer.kv for layer in found.layers] == [2 * (16 + 16)] * 2
    assert found.kv_bytes("f16") == 2 * 64 * 2
    assert not found.compressible


def test_each_layer_has_its_own_heads(path: Path) -> None:
    steps = [lambda writer: writer.add_head_count_kv([4, 1]), lambda writer: writer.add_key_length(32)]
    assert [layer.kv for layer in shape(read(header(path, "llama", 2, *steps))).layers] == [4 * 48, 48]


def test_one_latent_vector_for_keys_and_values(path: Path) -> None:
    steps = [
        lambda writer: writer.add_head_count_kv(1),
        lambda writer: writer.add_key_length(576),
        lambda writer: writer.add_value_length(512),
        lambda writer: writer.add_key_length_mla(192),
    ]
    assert [layer.kv for layer in shape(read(header(path, "deepseek2", 2, *steps))).layers] == [576, 576]


def test_layers_that_predict_further_tokens_are_not_loaded(path: Path) -> None:
    found = shape(read(header(path, "glm4moe", 3, numbers("glm4moe.nextn_predict_layers", 1))))
    assert [layer.weights for layer in found.layers] == [4, 8]


def test_layers_that_share_a_cache(path: Path) -> None:
    found = shape(read(header(path, "gemma4", 4, numbers("gemma4.attention.shared_kv_layers", 3))))
    assert [bool(layer.kv) for layer in found.layers] == [True, False, False, False]


LISTED = [True, True, False, False, False, False]


@pytest.mark.parametrize(
    ("architecture", "steps", "expected"),
    [
        ("llama", [lambda writer: writer.add_sliding_window(8)], [False] * 6),
        ("gemma3", [], [False] * 6),
        ("gemma3", [lambda writer: writer.add_sliding_window(8)], [True] * 5 + [False]),
        ("gemma2", [], [True, False] * 3),
        ("smallthinker", [lambda writer: writer.add_sliding_window(8)], [False, True, True, True, False, True]),
        ("exaone4", [lambda writer: writer.add_sliding_window(8)], [False] * 6),
        ("gemma4", [lambda w: w.add_sliding_window(8), lambda w: w.add_sliding_window_pattern(LISTED)], LISTED),
    ],
    ids=["not heeded", "no window", "every sixth", "always", "the first", "not this one", "as listed"],
)
def test_windows(path: Path, architecture: str, steps: list[Step], expected: list[bool]) -> None:
    found = shape(read(header(path, architecture, 6, *steps)))
    assert [layer.sliding for layer in found.layers] == expected


@pytest.mark.parametrize(
    ("architecture", "declared", "expected"),
    [("gemma3", 8, 8), ("gemma3", 0, 0), ("gemma2", None, 4096), ("gemma2", 8, 8), ("llama4", 8, 8192), ("llama", 8, 0)],
)
def test_the_size_of_the_window(path: Path, architecture: str, declared: int | None, expected: int) -> None:
    steps = [] if declared is None else [lambda writer: writer.add_sliding_window(declared)]
    assert shape(read(header(path, architecture, 6, *steps))).window == expected


def test_all_attention_of_lfm2_has_the_window(path: Path) -> None:
    steps = [
        lambda w: w.add_sliding_window(8),
        lambda w: w.add_head_count_kv([0, 2, 0, 2]),
        lambda w: w.add_shortconv_l_cache(3),
    ]
    found = shape(read(header(path, "lfm2", 4, *steps)))
    assert [layer.sliding for layer in found.layers] == [False, True, False, True]


def test_heads_of_layers_with_a_window(path: Path) -> None:
    steps = [
        lambda writer: writer.add_sliding_window(8),
        lambda writer: writer.add_sliding_window_pattern([True, False]),
        numbers("gemma4.attention.key_length_swa", 8),
        numbers("gemma4.attention.value_length_swa", 4),
    ]
    assert [layer.kv for layer in shape(read(header(path, "gemma4", 2, *steps))).layers] == [4 * 12, 4 * 32]


STATE = [
    lambda writer: writer.add_ssm_conv_kernel(4),
    lambda writer: writer.add_ssm_inner_size(128),
    lambda writer: writer.add_ssm_state_size(8),
    lambda writer: writer.add_ssm_group_count(2),
]
SIZE = 3 * (128 + 2 * 2 * 8) + 8 * 128


@pytest.mark.parametrize(
    ("architecture", "steps", "states", "caches"),
    [
        ("mamba2", STATE, [SIZE] * 4, [False] * 4),
        ("falcon-h1", STATE, [SIZE] * 4, [True] * 4),
        ("jamba", [*STATE, lambda w: w.add_head_count_kv([0, 2, 0, 2])], [SIZE, 0] * 2, [False, True] * 2),
        ("qwen3next", STATE, [SIZE] * 3 + [0], [False] * 3 + [True]),
        ("qwen3next", [*STATE, lambda w: w.add_full_attention_interval(2)], [SIZE, 0] * 2, [False, True] * 2),
        (
            "nemotron_h",
            [*STATE, lambda w: w.add_head_count_kv([0, 0, 2, 0]), lambda w: w.add_feed_forward_length([0, 9, 0, 9])],
            [SIZE, 0, 0, 0],
            [False, False, True, False],
        ),
        (
            "rwkv7",
            [lambda w: w.add_wkv_head_size(16), lambda w: w.add_token_shift_count(2)],
            [64 * 16 + 2 * 64] * 4,
            [False] * 4,
        ),
        ("llama", [lambda w: w.add_head_count_kv([0, 2, 2, 2])], [0] * 4, [False, True, True, True]),
    ],
)
def test_states(path: Path, architecture: str, steps: list[Step], states: list[int], caches: list[bool]) -> None:
    found = shape(read(header(path, architecture, 4, *steps)))
    assert [layer.state for layer in found.layers] == states
    assert [bool(layer.kv) for layer in found.layers] == caches
    assert found.keeps_state == any(states)


@pytest.mark.parametrize("size", [1, 10**8, 10**9, 10**10, 10**12])
def test_a_usual_shape_has_the_size_asked_for(size: int) -> None:
    assert approximate(size).weights == pytest.approx(size, rel=0.01, abs=100)


@pytest.mark.parametrize(
    ("overrides", "ram", "gpu"),
    [
        ((), [(0, 0), (0, 0)], [(0, 0), (0, 0)]),
        (((r"_exps", "CPU"),), [(0, 1), (0, 1)], [(0, 0), (0, 0)]),
        (((r"blk\.1\.", "CPU"),), [(0, 0), (1, 1)], [(0, 0), (0, 0)]),
        (((r"blk\.1\.attn", "CUDA1"), (r"blk\.1\.", "CPU")), [(0, 0), (1, 1)], [(0, 0), (1, 0)]),
        ((("gate", "CPU"), ("_exps", "CUDA0")), [(1, 1), (1, 1)], [(0, 1), (0, 1)]),
    ],
    ids=["nothing", "experts", "a layer", "the first match counts", "on a GPU"],
)
def test_tensors_that_are_put_elsewhere(
    tmp_path: Path, overrides: tuple[tuple[str, str], ...], ram: list[tuple[int, int]], gpu: list[tuple[int, int]]
) -> None:
    """Of each of the first two layers, whether any dense weights and any experts are pinned to RAM and to a GPU."""
    header = read(tiny_gguf.write(tmp_path / "mixture.gguf", "gpt-oss"))
    plain, found = shape(header), shape(header, overrides)
    assert found.weights == plain.weights and plain.has_experts
    assert [(int(each.ram.dense > 0), int(each.ram.experts > 0)) for each in found.layers[:2]] == ram
    assert [(int(each.gpu.dense > 0), int(each.gpu.experts > 0)) for each in found.layers[:2]] == gpu
    for layer in found.layers:
        for on_gpu in (False, True):
            on, inside = layer.places(on_gpu, experts_in_ram=False)
            assert on.all + inside.all == layer.weights and min(*on, *inside) >= 0
            assert on.all >= layer.gpu.all and inside.all >= layer.ram.all


def test_an_output_that_is_to_be_in_ram(tmp_path: Path) -> None:
    load = Load(gpu_layers=-1, context=512, kv_tokens=512, kv_type="f16", parallel=1, kv_layout="unified")
    made = Made(architecture="llama", layers=2, width=64, heads=2, kv_heads=1, feed_forward=64, vocabulary=4096)
    for tied, name in ((True, "token_embd"), (False, "^output\\.weight")):
        header = read(dataclasses.replace(made, tied=tied).write(tmp_path / "made.gguf"))
        usual, moved = shape(header), shape(header, ((name, "CPU"),))
        before, after = estimate(usual, load), estimate(moved, load)
        assert before.gpu_weights - after.gpu_weights == usual.output
        assert after.weights == usual.weights
