"""What ends llama.cpp is refused by its key where the header shows it, and what works is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from locallab.errors import ModelLoadError
from locallab.models import gguf, header_rules
from tests.support import damaged_gguf, tiny_embedding_gguf, tiny_gguf
from tests.support.damaged_gguf import SHOWN, Gguf, Kind


@pytest.mark.parametrize("name", SHOWN)
def test_damage_is_refused_by_its_key(tmp_path: Path, name: str) -> None:
    model, edit, words = SHOWN[name]
    path = damaged_gguf.write(tmp_path / "damaged.gguf", model, edit)
    with pytest.raises(ModelLoadError) as caught:
        header_rules.check(gguf.read(path))
    assert words in caught.value.reason
    assert str(caught.value).startswith(f"cannot load {path}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("model", [*tiny_gguf.ARCHITECTURES, "bert"])
def test_a_sound_file_passes(tmp_path: Path, model: str) -> None:
    header_rules.check(gguf.read(damaged_gguf.write(tmp_path / "sound.gguf", model, lambda g: None)))


def test_rankers_and_encoders_pass(tmp_path: Path) -> None:
    rank = tiny_embedding_gguf.Pooling.RANK
    for path in (
        tiny_embedding_gguf.bert(tmp_path / "ranker.gguf", rank),
        tiny_embedding_gguf.bert(tmp_path / "bytes.gguf", None, pieces=False),
        tiny_embedding_gguf.qwen3(tmp_path / "decoder.gguf", rank),
        tiny_embedding_gguf.t5encoder(tmp_path / "t5.gguf"),
    ):
        header_rules.check(gguf.read(path))


def test_a_real_file_passes(model_path: Path) -> None:
    header_rules.check(gguf.read(model_path))


EDGES: dict[str, tuple[str, damaged_gguf.Edit]] = {
    "most layers": ("llama", lambda g: g.set("block_count", 512)),
    "epsilon 0": ("llama", lambda g: g.set("attention.layer_norm_rms_epsilon", 0.0)),
    "longrope": ("llama", lambda g: g.set("rope.scaling.type", b"longrope", Kind.STRING)),
    "pooling unspecified": ("llama", lambda g: g.set("pooling_type", 2**32 - 1, Kind.UINT32)),
    "all experts used": ("gpt-oss", lambda g: g.set("expert_used_count", 2)),
    "experts of the one feed-forward": ("llama", lambda g: _hunyuan(g)),
    "longer scores": ("llama", lambda g: g.keys["tokenizer.ggml.scores"].value.append(0.0)),
    "one empty text": ("llama", lambda g: g.keys["tokenizer.ggml.tokens"].value.__setitem__(-1, b"")),
    "alignment 64": ("llama", lambda g: g.set("general.alignment", 64, Kind.UINT32)),
    "experts by token": ("llama", lambda g: _table(g)),
}


def _hunyuan(g: Gguf) -> None:
    g.keys = {name.replace("llama.", "hunyuan-dense."): value for name, value in g.keys.items()}
    g.set("general.architecture", b"hunyuan-dense")
    g.set("expert_used_count", 2, Kind.UINT32)


def _table(g: Gguf) -> None:
    g.tensors["blk.0.ffn_gate_tid2eid.weight"] = damaged_gguf.Tensor([8], 26, bytes(32))


@pytest.mark.parametrize("name", EDGES)
def test_the_edge_of_what_llama_cpp_takes_passes(tmp_path: Path, name: str) -> None:
    model, edit = EDGES[name]
    header_rules.check(gguf.read(damaged_gguf.write(tmp_path / "edge.gguf", model, edit)))


def test_texts_are_read_as_they_are(tmp_path: Path) -> None:
    path = damaged_gguf.write(
        tmp_path / "texts.gguf", "bert", lambda g: g.keys["tokenizer.ggml.tokens"].value.append(b"\xff\0")
    )
    found = list(gguf.texts(gguf.read(path), "tokenizer.ggml.tokens"))
    assert (found[0], found[-1]) == (b"[PAD]", b"\xff\0")
    assert len(found) == len(Gguf.read(path).keys["tokenizer.ggml.tokens"].value)
