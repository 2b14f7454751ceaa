from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import gguf as reference
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallab.errors import ModelLoadError
from locallab.models import gguf
from locallab.models.gguf import TYPES
from tests.support import tiny_gguf

Writer = Callable[[reference.GGUFWriter], object]


def write(path: Path, *steps: Writer) -> Path:
    """A GGUF file of what the steps add."""
    writer = reference.GGUFWriter(path, "llama")
    for step in steps:
        step(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensor(name: str, *shape: int) -> Writer:
    return lambda writer: writer.add_tensor(name, np.ones(shape, np.float32))


@pytest.fixture(params=tiny_gguf.ARCHITECTURES)
def tiny(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tiny_gguf.write(tmp_path / "tiny.gguf", request.param)


def test_the_types_are_ggml_s() -> None:
    known = {int(kind): (kind.name, *size) for kind, size in reference.GGML_QUANT_SIZES.items()}
    assert {kind: known[kind] for kind in TYPES} == TYPES


def test_the_tensors_are_those_the_reference_reads(tiny: Path) -> None:
    read = reference.GGUFReader(tiny).tensors
    expected = [(t.name, t.tensor_type.name, tuple(map(int, t.shape)), int(t.n_bytes)) for t in read]
    assert [(t.name, t.type, t.shape, t.size) for t in gguf.read(tiny).tensors] == expected


def test_the_facts(tmp_path: Path) -> None:
    header = gguf.read(tiny_gguf.write(tmp_path / "tiny.gguf", "llama"))
    assert (header.architecture, header.n_vocab) == ("llama", tiny_gguf.N_VOCAB)
    assert (header.tokenizer, "tokenizer.chat_template" in header.metadata) == ("llama", True)
    assert (header.number("block_count"), header.number("context_length"), header.number("nothing")) == (
        4,
        tiny_gguf.CONTEXT,
        None,
    )
    assert header.each_layer("attention.head_count_kv", 4) == (2, 2, 2, 2)
    assert header.each_layer("nothing", 2, 7) == (7, 7)
    assert header.size == sum(t.size for t in header.tensors)
    assert {t.layer for t in header.tensors} == {None, 0, 1, 2, 3}


def test_figures_that_differ_from_layer_to_layer(tmp_path: Path) -> None:
    header = gguf.read(tiny_gguf.write(tmp_path / "tiny.gguf", "lfm2"))
    assert header.each_layer("attention.head_count_kv", 4) == (2, 0, 2, 0)
    assert header.each_layer("attention.head_count_kv", 5, 9) == (2, 0, 2, 0, 9)
    assert header.number("attention.head_count_kv") == 2


def test_a_real_model(model_path: Path) -> None:
    header = gguf.read(model_path)
    assert header.n_vocab > 1000
    assert "tokenizer.chat_template" in header.metadata
    assert 0 < header.size <= model_path.stat().st_size


def test_long_arrays_are_stepped_over(tmp_path: Path) -> None:
    """Also those of numbers; what comes after them is found."""
    path = write(
        tmp_path / "x.gguf",
        lambda writer: writer.add_token_list(["\N{GRINNING FACE}" * (i % 5) for i in range(5000)]),
        lambda writer: writer.add_token_scores([0.0] * 5000),
        lambda writer: writer.add_array("llama.few", [1, 2]),
        lambda writer: writer.add_chat_template("{{ messages }}"),
        tensor("blk.12.x", 2, 3),
    )
    header = gguf.read(path)
    assert header.n_vocab == 5000
    assert header.lengths["tokenizer.ggml.scores"] == 5000
    assert header.arrays == {"llama.few": (1, 2)}
    assert "tokenizer.chat_template" in header.metadata
    (found,) = header.tensors
    assert found == gguf.Tensor("blk.12.x", "F32", (3, 2), 24, found.place)
    assert found.place == reference.GGUFReader(path).tensors[0].data_offset
    assert header.tensors[0].layer == 12


def test_odd_figures_count_as_not_given(tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.gguf",
        lambda writer: writer.add_string("llama.block_count", "many"),
        lambda writer: writer.add_array("llama.attention.head_count", [float("nan"), 2.0]),
        tensor("a", 4),
    )
    header = gguf.read(path)
    assert header.number("block_count", 3) == 3
    assert header.number("attention.head_count") is None
    assert header.each_layer("attention.head_count", 2, 5) == (5, 5)


def shard(path: Path, index: int, count: int, *tensors: str) -> None:
    """As llama.cpp splits them: only the first file tells of the model."""
    writer = reference.GGUFWriter(path, "llama" if index == 0 else "")
    if index:
        writer.kv_data[0].clear()
    writer.add_uint16("split.no", index)
    writer.add_uint16("split.count", count)
    for name in tensors:
        writer.add_tensor(name, np.ones(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_model_in_several_files(tmp_path: Path) -> None:
    first, second = tmp_path / "m-00001-of-00002.gguf", tmp_path / "m-00002-of-00002.gguf"
    shard(first, 0, 2, "a")
    with pytest.raises(ModelLoadError, match=r"part 2 of 2 is missing: m-00002-of-00002\.gguf"):
        gguf.read(first)
    shard(second, 1, 2, "b", "c")
    header = gguf.read(first)
    assert [each.name for each in header.tensors] == ["a", "b", "c"]
    assert header.parts == (first, second)
    with pytest.raises(ModelLoadError, match=r"name the first, m-00001-of-00002\.gguf"):
        gguf.read(second)
    first.rename(tmp_path / "renamed.gguf")
    with pytest.raises(ModelLoadError, match="must be named like"):
        gguf.read(tmp_path / "renamed.gguf")


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def file(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    return path


START = b"GGUF" + struct.pack("<I", 3)
LLAMA = string("general.architecture") + struct.pack("<I", 8) + string("llama")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a GGUF file"),
        (b"GGML" + bytes(100), "not a GGUF file"),
        (b"GGUF", "cut short at byte 4, in the version"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "its version is 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (START + struct.pack("<QQ", 1 << 60, 0), "damaged or cut short"),
        (START + struct.pack("<QQ", 0, 0), "does not say its architecture"),
        (START + struct.pack("<QQQ", 0, 1, 1 << 62), "damaged or cut short"),
        (START + struct.pack("<QQ", 0, 1) + string("some.key") + struct.pack("<I", 99), "in some.key"),
        (START + struct.pack("<QQ", 0, 1) + string("some.key") + struct.pack("<IIQ", 9, 8, 3), "in some.key"),
        (START + struct.pack("<QQ", 0, 1) + string("some.key") + struct.pack("<IIQQ", 9, 8, 2, 1 << 63), "in some.key"),
        (START + struct.pack("<QQ", 0, 1) + string("some.key") + struct.pack("<IIQ", 9, 4, 1 << 20), "in some.key"),
        (START + struct.pack("<QQ", 0, 1) + string("some.key") + struct.pack("<IIQ", 9, 9, 1), "in some.key"),
        (START + struct.pack("<QQ", 1, 1) + LLAMA + string("w") + struct.pack("<I", 9), "in w"),
        (
            START + struct.pack("<QQ", 1, 1) + LLAMA + string("w") + struct.pack("<IQIQ", 1, 32, 99, 0),
            "w is of the unknown type 99",
        ),
        (START + struct.pack("<QQ", 1, 1) + LLAMA + string("w") + struct.pack("<IQIQ", 1, 33, 2, 0), "in w"),
        (
            START + struct.pack("<QQ", 1, 1) + LLAMA + string("w") + struct.pack("<IQIQ", 1, 32, 2, 0),
            "44 bytes of its tensors are missing",
        ),
        (
            START + struct.pack("<QQ", 0, 2) + LLAMA + string("general.alignment") + struct.pack("<II", 4, 0),
            "general.alignment must be a positive number",
        ),
    ],
)
def test_damage_is_told(tmp_path: Path, data: bytes, reason: str) -> None:
    with pytest.raises(ModelLoadError, match=reason) as caught:
        gguf.read(file(tmp_path, data))
    assert caught.value.path == tmp_path / "bad.gguf"


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="there is no such file"):
        gguf.read(tmp_path / "none.gguf")
    with pytest.raises(ModelLoadError, match="Is a directory"):
        gguf.read(tmp_path)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A file to damage, and what it holds before."""
    path = tiny_gguf.write(tmp_path_factory.mktemp("sound") / "tiny.gguf", "lfm2")
    return path, path.read_bytes()


@given(place=st.integers(0, 12_000), new=st.binary(max_size=9), cut=st.none() | st.integers(0, 12_000))
def test_damage_anywhere_raises_nothing_else(sound: tuple[Path, bytes], place: int, new: bytes, cut: int | None) -> None:
    path, data = sound
    path.write_bytes((data[:place] + new + data[place + len(new) :])[:cut])
    try:
        header = gguf.read(path)
    except ModelLoadError as error:
        assert error.path == path
    else:
        assert isinstance(header.number("block_count"), int | None)
        assert all(isinstance(each, int) for each in header.each_layer("attention.head_count_kv", 4))
