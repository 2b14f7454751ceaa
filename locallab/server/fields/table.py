"""The table of a body's fields: those of its struct, aliases among them, and others that are known, which are in its `OTHERS`.

A body may have others of three kinds: refused with what would do, left out with a note, and those that have no effect here.
A field in none of these is noted too.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, get_type_hints

import msgspec
from msgspec import Meta

from locallab.errors import InvalidField

EMPTY: tuple[Any, ...] = (False, "", [], {})
"""Values that ask for nothing."""

MOST_UNKNOWN = 8
"""Unknown fields that a note names."""


@dataclasses.dataclass(frozen=True, slots=True)
class Other:
    """A field that a struct does not have; `off` are the values that are accepted in silence, as null is."""

    effect: Literal["refused", "left out", "no effect"]
    about: str
    off: tuple[Any, ...] = EMPTY


Others = Mapping[str, Other]


def refused(instead: str, off: tuple[Any, ...] = EMPTY) -> Other:
    """A field that would change the answer; `instead` says what would do."""
    return Other("refused", instead, off)


def left_out(reason: str, off: tuple[Any, ...] = EMPTY) -> Other:
    """A field without which the answer is still of use."""
    return Other("left out", reason, off)


def unused(reason: str) -> Other:
    """A field that does not concern the answer."""
    return Other("no effect", reason)


def alias(name: str, more: str = "", **described: Any) -> Meta:
    """Describe a struct's field that is another name of the field `name`."""
    return Meta(description=f"another name of {name}{more}", extra={"alias": name}, **described)


def others(kind: type) -> Others:
    """Return the known fields that the struct does not have."""
    found: Others = getattr(kind, "OTHERS", {})
    return found


@functools.cache
def metas(kind: type) -> Mapping[str, Meta]:
    """Return what the struct says of its fields, by the names that clients send."""
    hints = get_type_hints(kind, include_extras=True)
    return {
        field.encode_name: next((each for each in get_args(hints[field.name]) if isinstance(each, Meta)), Meta())
        for field in msgspec.structs.fields(kind)
    }


@functools.cache
def nested(kind: type) -> Mapping[str, type[msgspec.Struct]]:
    """Return the structs that are values of the struct's fields."""
    found = {}
    for name, hint in get_type_hints(kind).items():
        for part in get_args(hint) if isinstance(hint, types.UnionType) else (hint,):
            if isinstance(part, type) and issubclass(part, msgspec.Struct):
                found[name] = part
    return found


def check_fields(body: bytes, kind: type) -> list[str]:
    """Return notes about the fields of a JSON object that `kind` does not have. Raises InvalidField for a refused one."""
    unknown: list[str] = []
    notes = list(_checked(body, kind, "", unknown))
    if unknown:
        more = f" and {len(unknown) - MOST_UNKNOWN} more" if len(unknown) > MOST_UNKNOWN else ""
        names = ", ".join(name if len(name) <= 40 else f"{name[:40]}..." for name in unknown[:MOST_UNKNOWN])
        notes.append(f"unknown and ignored: {names}{more}")
    return notes


def _checked(body: bytes | msgspec.Raw, kind: type, path: str, unknown: list[str]) -> Iterator[str]:
    known, inside, table = metas(kind), nested(kind), others(kind)
    for name, raw in _RAW.decode(body).items():
        if name in inside and bytes(raw).startswith(b"{"):
            yield from _checked(raw, inside[name], f"{path}{name}.", unknown)
        if name in known or bytes(raw) == b"null":
            continue
        other = table.get(name)
        if other is None:
            unknown.append(path + name)
        elif other.effect != "no effect" and not _among(raw, other.off):
            if other.effect == "refused":
                raise InvalidField(path + name, f"is not supported: {other.about}")
            yield f"{path}{name} is left out: {other.about}"


_RAW = msgspec.json.Decoder(dict[str, msgspec.Raw])


def _among(raw: msgspec.Raw, off: tuple[Any, ...]) -> bool:
    """Return whether the value is one of `off`: 1 is 1.0, but not true."""
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, RecursionError):  # a number out of range, which the struct's decoder has skipped
        return False
    return any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in off)
