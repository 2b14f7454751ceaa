from __future__ import annotations

from typing import Any

import pytest

from locallab.errors import ConfigError
from locallab.fit import check_placement
from locallab.models import gguf
from tests.support import tiny_embedding_gguf, tiny_gguf
from tests.support.released_models import RELEASED

CPU = ("CPU",)
TWO = ("CUDA0", "CUDA1")


@pytest.fixture(scope="module")
def headers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, gguf.Header]:
    folder = tmp_path_factory.mktemp("headers")
    paths = {
        "dense": RELEASED["SmolLM3 3B"].write(folder / "dense.gguf"),
        "mixture": RELEASED["gpt-oss 20B"].write(folder / "mixture.gguf"),
        "latent": RELEASED["DeepSeek-V2-Lite"].write(folder / "latent.gguf"),
        "phi": RELEASED["Phi-4 14B"].write(folder / "phi.gguf"),
        "narrow": tiny_gguf.write(folder / "narrow.gguf", "llama"),
        "grok": tiny_gguf.write(folder / "grok.gguf", "llama", called="grok"),
        "encoder": tiny_embedding_gguf.bert(folder / "encoder.gguf"),
        "recurrent": tiny_gguf.write(folder / "recurrent.gguf", "mamba"),
    }
    return {name: gguf.read(path) for name, path in paths.items()}


REFUSED: dict[str, tuple[str, dict[str, Any], tuple[str, ...], str]] = {
    "a device that is not there": (
        "dense",
        {"override_tensor": "blk=CUDA7"},
        TWO,
        "override_tensor: there is no device CUDA7; there are CUDA0, CUDA1, CPU",
    ),
    "no device but the CPU": ("dense", {"override_tensor": "blk=CUDA0"}, (), "there is no device CUDA0; there are CPU"),
    "a pattern that is none": ("dense", {"override_tensor": "blk(=CPU"}, (), "'blk(' is not a regular expression: "),
    "a pattern that matches nothing": (
        "dense",
        {"override_tensor": "blk=CPU,experts=CPU"},
        (),
        "override_tensor: 'experts' matches no tensor of dense.gguf; they have names like token_embd.weight, output_norm",
    ),
    "experts of a dense model": (
        "dense",
        {"n_cpu_moe": 3},
        TWO,
        "n_cpu_moe: dense.gguf has no experts; its architecture is smollm3",
    ),
    "all experts of one": ("dense", {"cpu_moe": True}, TWO, "cpu_moe: dense.gguf has no experts"),
    "a GPU that is not there": (
        "dense",
        {"split_mode": "none", "main_gpu": 2},
        TWO,
        "main_gpu: there is no GPU 2: there are CUDA0, CUDA1",
    ),
    "a GPU without one": (
        "dense",
        {"split_mode": "none", "main_gpu": 0},
        (),
        "main_gpu: there is no GPU 0: llama.cpp finds no GPU here",
    ),
    "one GPU of several": (
        "dense",
        {"main_gpu": 1},
        TWO,
        "main_gpu: only split_mode none puts a model on one GPU, and split_mode is layer",
    ),
    "rows without a GPU": ("dense", {"split_mode": "row"}, (), "split_mode: row needs a GPU, and llama.cpp finds no GPU here"),
    "more shares than GPUs": (
        "dense",
        {"tensor_split": "1,1,1"},
        TWO,
        "tensor_split: it has shares for 3 GPUs, and there are CUDA0, CUDA1",
    ),
    "no share at all": ("dense", {"tensor_split": "0,0"}, TWO, "tensor_split: at least one share must be above 0"),
    "shares of one GPU": (
        "dense",
        {"split_mode": "none", "tensor_split": "1"},
        TWO,
        "tensor_split: split_mode none puts the whole",
    ),
    "two scales": (
        "dense",
        {"rope_scale": 2.0, "rope_freq_scale": 0.5},
        (),
        "rope_scale: it is the inverse of rope_freq_scale",
    ),
    "a scale that is off": (
        "dense",
        {"rope_scaling": "none", "rope_scale": 2.0},
        (),
        "rope_scale: rope_scaling none does not stretch",
    ),
    "values in blocks without flash attention": ("grok", {"kv_type_v": "q8_0"}, (), "kv_type_v: q8_0 needs flash attention"),
    "the same by the short name": ("grok", {"kv_type": "q8_0"}, (), "kv_type: q8_0 needs flash attention"),
    "keys that are no whole blocks": (
        "narrow",
        {"kv_type_k": "q4_0"},
        (),
        "kv_type_k: q4_0 stores 32 numbers in a block, and a head of narrow.gguf has 16; set f16 or bf16",
    ),
    "more layers than llama.cpp computes with that": (
        "phi",
        {"kv_type": "q8_0"},
        (),
        "kv_type: llama.cpp computes with q8_0 in models of phi3 with up to 39 layers, and phi.gguf has 40; set f16 or bf16",
    ),
    "one vector of two types": (
        "latent",
        {"kv_type_k": "q8_0"},
        (),
        "kv_type_v: latent.gguf keeps one vector for keys and values",
    ),
}


@pytest.mark.parametrize(("model", "settings", "gpus", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_had_is_refused_by_name(
    headers: dict[str, gguf.Header], model: str, settings: dict[str, Any], gpus: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check_placement(settings, headers[model], (*gpus, *CPU), gpus)
    assert reason in str(caught.value) and "\n" not in str(caught.value)


ALLOWED: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "nothing": ("dense", {}, ()),
    "tensors": ("dense", {"override_tensor": r"blk\.1\.ffn_.*=CPU,^output=CUDA1"}, TWO),
    "experts": ("mixture", {"n_cpu_moe": 3}, ()),
    "no experts": ("dense", {"n_cpu_moe": 0, "cpu_moe": False}, TWO),
    "one GPU": ("dense", {"split_mode": "none", "main_gpu": 1}, TWO),
    "shares": ("dense", {"tensor_split": "3,1", "split_mode": "row"}, TWO),
    "types apart": ("dense", {"kv_type_k": "q8_0"}, ()),
    "one vector": ("latent", {"kv_type": "q8_0"}, ()),
    "no KV cache": ("encoder", {"kv_type": "q4_0"}, ()),
    "states": ("recurrent", {"kv_type": "q4_0"}, ()),
    "floats without flash attention": ("grok", {"kv_type": "f32"}, ()),
    "positions": ("dense", {"rope_scaling": "yarn", "rope_scale": 4.0}, ()),
}


@pytest.mark.parametrize(("model", "settings", "gpus"), ALLOWED.values(), ids=ALLOWED)
def test_what_can_be_had_is_not(
    headers: dict[str, gguf.Header], model: str, settings: dict[str, Any], gpus: tuple[str, ...]
) -> None:
    check_placement(settings, headers[model], (*gpus, *CPU), gpus)


def test_without_a_header_devices_are_checked() -> None:
    check_placement({"override_tensor": "nothing=CPU", "n_cpu_moe": 5}, None, CPU, ())
    with pytest.raises(ConfigError, match="there is no device CUDA0"):
        check_placement({"override_tensor": "nothing=CUDA0"}, None, CPU, ())
