"""The header of a GGUF file (version 2 or 3): metadata and tensor sizes, without the weights.

The `gguf` package makes an array of every string: for a vocabulary of 150,000 tokens it takes seconds. This reader skips the
vocabulary and takes a few hundredths of a second.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import mmap
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from locallab.errors import ModelLoadError
from locallab.models.spec import shards

Scalar = int | float | bool | str
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_KEPT = 1024
"""Longest array that is kept: one number per layer. Of longer ones only the length is kept."""

_MOST = 1 << 24
"""A larger count of tensors, keys or tokens means that the file is damaged."""

ENCODERS = frozenset(
    {
        *("bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2", "jina-bert-v3", "eurobert"),
        *("gemma-embedding", "t5encoder"),
    }
)
"""Architectures that encode a whole text at once and cannot generate."""

_LAYER = re.compile(r"blk\.(\d+)\.")


@dataclasses.dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor: its name, ggml type, dimensions (innermost first), size in bytes, and the byte of the file where it begins."""

    name: str
    type: str
    shape: tuple[int, ...]
    size: int
    place: int = 0

    @property
    def layer(self) -> int | None:
        """Its layer; None for the embeddings, the output and tensors shared by all layers."""
        found = _LAYER.match(self.name)
        return int(found[1]) if found else None


@dataclasses.dataclass(frozen=True, slots=True)
class Header:
    """The header of a model's file, or the merged ones of a split model. `lengths` has the lengths of all metadata arrays,
    `arrays` the values of the short numeric ones, `places` where in the file those of texts begin."""

    path: Path
    metadata: Mapping[str, Scalar]
    arrays: Mapping[str, tuple[Scalar, ...]]
    lengths: Mapping[str, int]
    tensors: tuple[Tensor, ...]
    parts: tuple[Path, ...]
    places: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def architecture(self) -> str:
        return str(self.metadata["general.architecture"])

    @property
    def n_vocab(self) -> int:
        """Number of tokens in the vocabulary."""
        return self.lengths.get("tokenizer.ggml.tokens") or self.number("vocab_size") or 0

    @property
    def embeds(self) -> bool:
        """True for an embedding model or a reranker: it makes one row of numbers per text."""
        return self.architecture in ENCODERS or bool(self.number("pooling_type"))

    @property
    def tokenizer(self) -> str | None:
        """The kind of tokenizer: "gpt2", "llama", ...; None if the file has none."""
        found = self.metadata.get("tokenizer.ggml.model")
        return None if found is None else str(found)

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.size for tensor in self.tensors)

    def number(self, key: str, default: int | None = None) -> int | None:
        """Return the architecture's number of this name; of a short array the largest."""
        name = f"{self.architecture}.{key}"
        found = [each for each in (self.metadata.get(name), *self.arrays.get(name, ())) if isinstance(each, int)]
        return max(found, default=default)

    def each_layer(self, key: str, layers: int, default: int = 0) -> tuple[int, ...]:
        """Return the architecture's number of this name per layer; the file may have one for all layers or one for each."""
        found = self.arrays.get(f"{self.architecture}.{key}")
        if found is None:
            return (self.number(key, default) or 0,) * layers
        return tuple(each if isinstance(each, int) else default for each in (*found, *[default] * layers)[:layers])


def read(path: Path) -> Header:
    """Return the header of the model at `path`; for a split model the merged one of all files, `path` being the first.

    Raises ModelLoadError naming the reason: no such file, not a GGUF file, damaged, cut short, a part missing.
    """
    first = _read_file(path)
    headers = [first]
    count = first.metadata.get("split.count", 1)
    if isinstance(count, int) and count > 1:
        names = shards(path.name)
        if len(names) != count:
            raise ModelLoadError(path, f"it is one of {count} files, which must be named like model-00001-of-{count:05}.gguf")
        if path.name != names[0]:
            raise ModelLoadError(path, f"it is one of {count} files; name the first, {names[0]}")
        for number, name in enumerate(names[1:], 2):
            part = path.with_name(name)
            if not part.is_file():
                raise ModelLoadError(path, f"part {number} of {count} is missing: {name}")
            headers.append(_read_file(part))
    if not isinstance(first.metadata.get("general.architecture"), str):
        raise ModelLoadError(path, "it does not say its architecture")
    tensors = tuple(tensor for header in headers for tensor in header.tensors)
    return dataclasses.replace(first, tensors=tensors, parts=tuple(header.path for header in headers))


def texts(header: Header, key: str) -> Iterator[bytes]:
    """Yield the texts of a metadata array. Raises OSError."""
    length = struct.Struct("<Q").unpack_from
    with header.path.open("rb") as file, contextlib.closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as data:
        at = header.places[key]
        for _ in range(header.lengths[key]):
            end = at + 8 + length(data, at)[0]
            yield data[at + 8 : end]
            at = end


def _read_file(path: Path) -> Header:
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ModelLoadError(path, "this is not a GGUF file")
            with contextlib.closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as data:
                reader = _Reader(path, data)
                try:
                    return reader.header()
                except (struct.error, OverflowError):
                    raise reader.damaged() from None
    except OSError as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
        raise ModelLoadError(path, reason) from None


class _Reader:
    """Reads one file from front to back. `_at` is the position in bytes, `_doing` the item read there, for error messages."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path = path
        self._data = data
        self._at = 4
        self._doing = "the version"

    def header(self) -> Header:
        """Read the header. Raises ModelLoadError, and struct.error or OverflowError for a damaged file."""
        version = self._int("I")
        if version not in (2, 3):
            known = f"its version is {version}" if version < 1 << 16 else "it is big-endian"
            raise ModelLoadError(self._path, f"{known}; versions 2 and 3, little-endian, can be read")
        n_tensors, n_keys = self._count(), self._count()
        metadata: dict[str, Scalar] = {}
        arrays: dict[str, tuple[Scalar, ...]] = {}
        lengths: dict[str, int] = {}
        places: dict[str, int] = {}
        for index in range(1, n_keys + 1):
            self._doing = f"key {index} of {n_keys}"
            key = self._doing = self._string()
            kind = self._int("I")
            if kind == _ARRAY:
                of_texts, start = self._peek("I") == _STRING, self._at + 12
                lengths[key], arrays[key] = self._array()
                if of_texts:
                    places[key] = start
            else:
                metadata[key] = self._string() if kind == _STRING else self._number(self._code(kind))
        tensors = self._tensors(n_tensors, metadata.get("general.alignment", 32))
        return Header(self._path, metadata, {k: v for k, v in arrays.items() if v}, lengths, tensors, (self._path,), places)

    def damaged(self) -> ModelLoadError:
        return ModelLoadError(self._path, f"the file is damaged or cut short at byte {self._at:,}, in {self._doing}")

    def _tensors(self, count: int, alignment: Scalar) -> tuple[Tensor, ...]:
        found, offsets = [], []
        end = 0
        for index in range(1, count + 1):
            self._doing = f"tensor {index} of {count}"
            name = self._doing = self._string()
            if not 1 <= (dimensions := self._int("I")) <= 4:
                raise self.damaged()
            shape = tuple(self._int("Q") for _ in range(dimensions))
            kind, offset = self._int("I"), self._int("Q")
            if kind not in TYPES:
                raise ModelLoadError(self._path, f"{name} is of the unknown type {kind}; a newer version may know it")
            label, block, size = TYPES[kind]
            if shape[0] % block:
                raise self.damaged()
            length = math.prod(shape) // block * size
            found.append((name, label, shape, length))
            offsets.append(offset)
            end = max(end, offset + length)
        if not isinstance(alignment, int) or alignment < 1:
            raise ModelLoadError(self._path, f"general.alignment must be a positive number, it is {alignment!r}")
        begin = -(-self._at // alignment) * alignment
        missing = begin + end - len(self._data)
        if found and missing > 0:
            raise ModelLoadError(self._path, f"the file is cut short: {missing:,} bytes of its tensors are missing")
        return tuple(Tensor(*each, begin + offset) for each, offset in zip(found, offsets, strict=True))

    def _array(self) -> tuple[int, tuple[Scalar, ...]]:
        """Read an array; return its length, and its values if they are few numbers."""
        kind, count = self._int("I"), self._count()
        start = self._at
        if kind == _STRING:
            data, at, length = self._data, self._at, struct.Struct("<Q").unpack_from
            for _ in range(count):  # a vocabulary: the hot loop
                at += 8 + length(data, at)[0]
            self._at = at
        else:
            code = self._code(kind)
            self._at += count * struct.calcsize(f"<{code}")
        if self._at > len(self._data):
            raise self.damaged()
        if kind == _STRING or count > _KEPT:
            return count, ()
        return count, struct.unpack_from(f"<{count}{code}", self._data, start)

    def _code(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise self.damaged()
        return _SCALARS[kind]

    def _count(self) -> int:
        count = self._int("Q")
        if count > _MOST:
            raise self.damaged()
        return count

    def _string(self) -> str:
        length = self._int("Q")
        start, self._at = self._at, self._at + length
        if self._at > len(self._data):
            raise self.damaged()
        return self._data[start : self._at].decode("utf-8", "replace")

    def _int(self, code: str) -> int:
        return int(self._number(code))

    def _peek(self, code: str) -> Any:
        return struct.unpack_from(f"<{code}", self._data, self._at)[0]

    def _number(self, code: str) -> Any:
        start = self._at
        (value,) = struct.unpack_from(f"<{code}", self._data, start)
        self._at = start + struct.calcsize(f"<{code}")
        return value


TYPES: Mapping[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}
"""Tensor types by ggml number: name, values per block, bytes per block."""
