"""GGUF files with any key, value or tensor changed, also to what no writer would write.

`SHOWN` and `TRIED` are the kinds of damage that end or hang llama.cpp, each with words that its refusal has.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf

from tests.support import tiny_embedding_gguf, tiny_gguf

Kind = gguf.GGUFValueType
_CODES = dict(
    zip(
        (
            *(Kind.UINT8, Kind.INT8, Kind.UINT16, Kind.INT16, Kind.UINT32, Kind.INT32),
            *(Kind.FLOAT32, Kind.BOOL, Kind.UINT64),
            *(Kind.INT64, Kind.FLOAT64),
        ),
        "BbHhIif?Qqd",
        strict=True,
    )
)


@dataclasses.dataclass
class Value:
    """A value of the metadata: a number, a text (bytes), or a list of `item` values."""

    kind: Kind
    value: Any
    item: Kind | None = None

    def encode(self) -> bytes:
        if self.item is None:
            return struct.pack("<I", self.kind) + _scalar(self.kind, self.value)
        items = b"".join(_scalar(self.item, each) for each in self.value)
        return struct.pack("<IIQ", self.kind, self.item, len(self.value)) + items


@dataclasses.dataclass
class Tensor:
    """A tensor: dimensions, innermost first, the number of its type, its bytes, and where they are said to lie (None: where
    they do)."""

    shape: list[int]
    type: int
    data: bytes
    offset: int | None = None


@dataclasses.dataclass
class Gguf:
    """A GGUF file in parts, to be changed and written."""

    keys: dict[str, Value]
    tensors: dict[str, Tensor]

    @classmethod
    def read(cls, path: Path) -> Gguf:
        reader = gguf.GGUFReader(path)
        keys = {name: _value(field) for name, field in reader.fields.items() if not name.startswith("GGUF.")}
        tensors = {
            each.name: Tensor([int(n) for n in each.shape], int(each.tensor_type), each.data.tobytes())
            for each in reader.tensors
        }
        return cls(keys, tensors)

    @property
    def architecture(self) -> str:
        return str(self.keys["general.architecture"].value.decode())

    def name(self, key: str) -> str:
        """Return the full name of a key of the architecture, or of one that exists as it is."""
        return key if key in self.keys or key.startswith(("tokenizer.", "general.")) else f"{self.architecture}.{key}"

    def set(self, key: str, value: Any, kind: Kind | None = None, item: Kind | None = None) -> None:
        """Set a key; without `kind` it keeps its own."""
        name = self.name(key)
        old = self.keys.get(name)
        if kind is None and old is not None:
            kind, item = old.kind, old.item
        assert kind is not None, f"{name} is new: name its kind"
        self.keys[name] = Value(kind, value, item)

    def write(self, path: Path, alignment: int = 32) -> Path:
        infos, data = [], b""
        for name, tensor in self.tensors.items():
            data += bytes(-len(data) % alignment)
            offset = len(data) if tensor.offset is None else tensor.offset
            shape = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
            infos.append(_text(name.encode()) + shape + struct.pack("<IQ", tensor.type, offset))
            data += tensor.data
        head = b"GGUF" + struct.pack("<IQQ", 3, len(self.tensors), len(self.keys))
        head += b"".join(_text(name.encode()) + value.encode() for name, value in self.keys.items()) + b"".join(infos)
        path.write_bytes(head + bytes(-len(head) % alignment) + data + bytes(-len(data) % alignment))
        return path


def _value(field: gguf.ReaderField) -> Value:
    kind, *items = field.types
    parts = [field.parts[index] for index in field.data]
    texts = (items or [kind])[-1] == Kind.STRING
    values = [part.tobytes() if texts else part.tolist()[0] for part in parts]
    return Value(kind, values, items[-1]) if items else Value(kind, values[0])


def _scalar(kind: Kind, value: Any) -> bytes:
    return _text(value) if kind == Kind.STRING else struct.pack(f"<{_CODES[kind]}", value)


def _text(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


Edit = Callable[[Gguf], object]
_FIRST_BYTE = 5
"""Token of the byte 2 in the tiny models."""


def _text_at(token: int, text: bytes) -> Edit:
    return lambda g: g.keys["tokenizer.ggml.tokens"].value.__setitem__(token, text)


def _all_texts(text: Callable[[int], bytes]) -> Edit:
    def edit(g: Gguf) -> None:
        tokens = g.keys["tokenizer.ggml.tokens"]
        tokens.value = [text(token) for token in range(len(tokens.value))]

    return edit


def _number(key: str, value: Any, kind: Kind = Kind.UINT32) -> Edit:
    return lambda g: g.set(key, value, kind)


def _type(tensor: str, type: gguf.GGMLQuantizationType, size: float) -> Edit:
    def edit(g: Gguf) -> None:
        found = g.tensors[tensor]
        found.type, found.data = int(type), bytes(int(math.prod(found.shape) * size))

    return edit


def _experts(count: int, used: int, **more: int) -> Edit:
    def edit(g: Gguf) -> None:
        for key, value in {"expert_count": count, "expert_used_count": used, **more}.items():
            g.set(key, value, Kind.UINT32)

    return edit


def _shorter(key: str) -> Edit:
    return lambda g: g.keys[key].value.pop()


_Q = gguf.GGMLQuantizationType
_EPSILON = "attention.layer_norm_rms_epsilon"
_TOKENS = "tokenizer.ggml.tokens"
_SCALING = "rope.scaling.type"
_NORM = "blk.0.attn_norm.weight"

SHOWN: Mapping[str, tuple[str, Edit, str]] = {
    "no layers": ("llama", _number("block_count", 0), "llama.block_count is 0; it must be from 1 to 512"),
    "a layer too many": ("llama", _number("block_count", 513), "llama.block_count is 513"),
    "layers without end": ("mamba", _number("block_count", 2**31 - 1), "mamba.block_count is 2147483647"),
    "more predicting layers": ("llama", _number("nextn_predict_layers", 5), "nextn_predict_layers is 5; it must be from 0 to"),
    "negative epsilon": ("llama", _number(_EPSILON, -1.0, Kind.FLOAT32), f"llama.{_EPSILON} is -1.0"),
    "epsilon that is no number": ("gemma3", _number(_EPSILON, math.nan, Kind.FLOAT32), f"gemma3.{_EPSILON} is nan"),
    "epsilon of an encoder": ("bert", _number("attention.layer_norm_epsilon", -1e-5, Kind.FLOAT32), "layer_norm_epsilon is -"),
    "unknown rope": (
        "llama",
        _number(_SCALING, b"spiral", Kind.STRING),
        f"{_SCALING} is 'spiral'; it must be one of none, linear",
    ),
    "no rope's name": ("llama", _number(_SCALING, b"", Kind.STRING), f"{_SCALING} is ''"),
    "rope of nothing": ("gemma3", _number("rope.dimension_count", 0), "rope.dimension_count is 0; it must be an even number"),
    "odd rope": ("lfm2", _number("rope.dimension_count", 7), "rope.dimension_count is 7"),
    "never full attention": ("qwen35", _number("full_attention_interval", 0), "full_attention_interval is 0"),
    "unknown pooling": ("bert", _number("pooling_type", 99), "bert.pooling_type is 99; it must be from 0 to 4"),
    "the next pooling": ("llama", _number("pooling_type", 5), "llama.pooling_type is 5"),
    "more experts used": ("gpt-oss", _experts(2, 3), "expert_used_count is 3; it must be from 1 to expert_count, 2"),
    "no experts used": ("gpt-oss", _experts(2, 0), "expert_used_count is 0"),
    "experts used of none": ("llama", _experts(0, 1), "expert_used_count is 1"),
    "experts without end": ("llama", _experts(2**31 - 1, 1), "expert_count is 2147483647; it must be from 0 to 1024"),
    "groups of no experts": ("llama", _experts(0, 0, expert_group_count=1), "expert_group_count is 1; it must be below"),
    "uneven groups": ("llama", _experts(8, 1, expert_group_count=3), "expert_group_count is 3; it must be a divisor"),
    "all groups used": (
        "llama",
        _experts(8, 1, expert_group_count=2, expert_group_used_count=2),
        "expert_group_used_count is 2; it must be from 1 to 1",
    ),
    "equal texts": (
        "llama",
        _all_texts(lambda token: b"same"),
        f"{_TOKENS} is 'same' at 0 and at 1; it must be a list of diff",
    ),
    "two equal texts": ("bert", _text_at(9, "▁cat".encode()), f"{_TOKENS} is '▁cat' at"),
    "texts equal up to NUL": ("bert", _text_at(9, "▁cat\0x".encode()), f"{_TOKENS} is '▁cat' at"),
    "equal binary texts": ("llama", _all_texts(lambda token: b"\xff\xfe"), f"{_TOKENS} is '��' at 0 and at 1"),
    "a text that is empty": ("llama", _text_at(_FIRST_BYTE, b""), f"{_TOKENS} is without the byte 0x02"),
    "a text of NUL": ("llama", _text_at(_FIRST_BYTE, b"\0"), f"{_TOKENS} is without the byte 0x02"),
    "empty texts": ("llama", _all_texts(lambda token: b""), f"{_TOKENS} is without the byte 0x00"),
    "no byte tokens": ("llama", _all_texts(b"word%d".__mod__), f"{_TOKENS} is without the byte 0x00"),
    "texts that are numbers": (
        "llama",
        lambda g: g.set(_TOKENS, [1] * len(g.keys[_TOKENS].value), Kind.ARRAY, Kind.INT32),
        f"{_TOKENS} is a list of numbers",
    ),
    "scores are missing": (
        "llama",
        _shorter("tokenizer.ggml.scores"),
        "tokenizer.ggml.scores is a list of 284; it must be as l",
    ),
    "types are missing": ("bert", _shorter("tokenizer.ggml.token_type"), "tokenizer.ggml.token_type is a list of"),
    "norm of whole numbers": ("llama", _type(_NORM, _Q.I32, 4), f"tensor {_NORM} is of type I32"),
    "norm of bytes": ("mamba", _type("output_norm.weight", _Q.I8, 1), "tensor output_norm.weight is of type I8"),
    "norm in blocks": ("llama", _type(_NORM, _Q.Q8_0, 34 / 32), f"tensor {_NORM} is of type Q8_0; it must be of type F32"),
    "weights of whole numbers": ("llama", _type("blk.0.attn_q.weight", _Q.I16, 2), "blk.0.attn_q.weight is of type I16"),
    "weights of doubles": ("gemma3", _type("output.weight", _Q.F64, 8), "tensor output.weight is of type F64"),
    "alignment 1": ("llama", _number("general.alignment", 1), "general.alignment is 1; it must be 32"),
}
"""Damage that the header shows: the model, the edit, words of the refusal."""

TRIED: Mapping[str, tuple[str, Edit, str]] = {
    "norm of half floats": ("llama", _type(_NORM, _Q.F16, 2), "it ends llama.cpp (SIGABRT): binary-ops.cpp"),
    "another number of heads": ("lfm2", _number("attention.head_count", 3), "it ends llama.cpp (SIGABRT): ggml.c"),
    "no token that opens a text": (
        "bert",
        lambda g: g.keys.pop("tokenizer.ggml.bos_token_id"),
        "it ends llama.cpp (SIGABRT): llama-vocab.cpp",
    ),
    "a tensor is missing": ("qwen35", lambda g: g.tensors.pop("blk.0.attn_qkv.weight"), "it ends llama.cpp (SIGSEGV)"),
}
"""Damage that shows when llama.cpp loads the file or computes."""


def write(path: Path, model: str, edit: Edit) -> Path:
    """Write a tiny model of a kind of tiny_gguf, or "bert", with the edit done to it."""
    if model == "bert":
        tiny_embedding_gguf.bert(path)
    else:
        tiny_gguf.write(path, model)
    damaged = Gguf.read(path)
    edit(damaged)
    alignment = damaged.keys.get("general.alignment")
    return damaged.write(path, alignment.value if alignment else 32)
