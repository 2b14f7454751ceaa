"""What the header of an adapter shows is refused by the key or the tensor."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from locallab.errors import ModelLoadError
from locallab.models import adapter_rules, gguf
from tests.support import tiny_embedding_gguf, tiny_gguf, tiny_lora

Q, A, B = "blk.0.attn_q.weight", "blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight.lora_b"
EMBEDDINGS = "token_embd.weight"


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_gguf.write(tmp_path / "base.gguf", "llama")


def check(adapter: Path, base: Path) -> None:
    adapter_rules.check(gguf.read(adapter), gguf.read(base))


@pytest.mark.parametrize("kind", ["llama", "gemma3", "mamba", "lfm2", "gpt-oss", "qwen35"])
def test_a_sound_adapter_passes(kind: str, tmp_path: Path) -> None:
    base = tiny_gguf.write(tmp_path / "base.gguf", kind)
    check(tiny_lora.write(tmp_path / "lora.gguf", base), base)


WRONG = {
    "no adapter": ({"general.type": "model"}, {}, "it is no adapter: general.type is 'model'; it must be 'adapter'"),
    "a control vector": ({"adapter.type": "cvec"}, {}, "adapter.type is 'cvec'; it must be 'lora'"),
    "another architecture": (
        {"general.architecture": "qwen3"},
        {},
        "it is made for a model of the architecture qwen3; base.gguf is llama",
    ),
    "an activated one": ({"adapter.alora.invocation_tokens": [1]}, {}, "it is an activated LoRA (aLoRA), which is not"),
    "alpha in words": ({"adapter.lora.alpha": "two"}, {}, "adapter.lora.alpha is 'two'; it must be a finite number of 32 bits"),
    "alpha without end": ({"adapter.lora.alpha": float("inf")}, {}, "adapter.lora.alpha is inf; it must be a finite number"),
    "a tensor of a model": ({}, {"blk.0.attn_q.bias": zeros(64)}, "tensor blk.0.attn_q.bias is none of a LoRA"),
    "a layer more": (
        {},
        {"blk.4.attn_q.weight.lora_a": zeros(4, 64), "blk.4.attn_q.weight.lora_b": zeros(64, 4)},
        "base.gguf has no tensor blk.4.attn_q.weight: the adapter is made for another model",
    ),
    "a half": ({}, {B: None}, f"tensor {B} is missing"),
    "the other half": ({}, {A: None}, f"tensor {A} is missing"),
    "wider": ({}, {A: zeros(4, 128)}, f"the matrices for {Q} are 128 x 4 and 4 x 64, which does not fit the 64 x 64 of"),
    "longer": ({}, {B: zeros(128, 4)}, f"the matrices for {Q} are 64 x 4 and 4 x 128, which does not fit the 64 x 64 of"),
    "of two ranks": ({}, {A: zeros(8, 64)}, f"the matrices for {Q} are 64 x 8 and 4 x 64"),
    "for experts": ({}, {A: zeros(2, 4, 64), B: zeros(2, 64, 4)}, f"the matrices for {Q} are 64 x 4 x 2 x 1 and 4 x 64"),
    "of whole numbers": ({}, {A: np.zeros((4, 64), np.int32)}, f"tensor {A} is of type I32"),
    "embeddings of two ranks": (
        {},
        {f"{EMBEDDINGS}.lora_a": zeros(285, 8), f"{EMBEDDINGS}.lora_b": zeros(64, 4)},
        f"the matrices for {EMBEDDINGS} are 8 x 285 and 4 x 64",
    ),
}


@pytest.mark.parametrize(("facts", "tensors", "reason"), WRONG.values(), ids=WRONG)
def test_each_rule(facts: dict[str, str], tensors: tiny_lora.Tensors, reason: str, base: Path, tmp_path: Path) -> None:
    wrong = tiny_lora.write(tmp_path / "lora.gguf", base, facts=facts, tensors=tensors)
    with pytest.raises(ModelLoadError) as caught:
        check(wrong, base)
    assert caught.value.path == wrong and caught.value.reason.startswith(reason)


def test_an_adapter_of_the_embeddings_passes(base: Path, tmp_path: Path) -> None:
    tensors = {f"{EMBEDDINGS}.lora_a": zeros(tiny_gguf.N_VOCAB, 4), f"{EMBEDDINGS}.lora_b": zeros(64, 4)}
    check(tiny_lora.write(tmp_path / "lora.gguf", base, tensors=tensors), base)


def test_norms_are_left_out_as_llama_cpp_does(base: Path, tmp_path: Path) -> None:
    check(tiny_lora.write(tmp_path / "lora.gguf", base, tensors={"blk.0.attn_norm.weight": zeros(64)}), base)


def test_an_adapter_without_matrices_is_none(base: Path, tmp_path: Path) -> None:
    nothing = dict.fromkeys((name for name, _ in tiny_lora.matrices(gguf.read(base), 0, 4)), None)
    with pytest.raises(ModelLoadError, match="it has no tensors whose names end in"):
        check(tiny_lora.write(tmp_path / "lora.gguf", base, tensors=nothing), base)


def test_embedding_models_have_no_adapters(tmp_path: Path) -> None:
    base = tmp_path / "bert.gguf"
    tiny_embedding_gguf.bert(base)
    with pytest.raises(ModelLoadError, match=r"bert\.gguf makes embeddings; adapters are for models that write text"):
        check(tiny_lora.write(tmp_path / "lora.gguf", base), base)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 2500), st.integers(0, 255)), min_size=1, max_size=8), st.integers(0, 3000))
def test_whatever_is_damaged_is_refused_by_name_or_sound(
    base: Path, tmp_path: Path, changes: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(tiny_lora.write(tmp_path / "lora.gguf", base).read_bytes())
    for place, value in changes:
        data[place] = value
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(data[:cut] if cut > 2500 else data)
    with contextlib.suppress(ModelLoadError):
        check(damaged, base)
