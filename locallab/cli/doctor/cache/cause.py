"""The field that makes two prompts part: found by trying, so that no template needs to be understood."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Field = tuple[str | int, ...]
"""The keys and indices that lead to a value; () is the whole body."""

MISSING = object()
"""The value of a field that a body lacks."""

KINDS = ("type", "role")
"""Keys that tell what an object is: where they differ, one object as a whole stands in place of another."""


def shared(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Return the length of the longest common prefix."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low


def find(a: Any, b: Any, matters: Callable[[Any], bool]) -> Field:
    """Return the smallest part of `a` that `matters` when it is replaced by that of `b`; of several, the first.

    `matters` takes a copy of `a` with one part of `b`. () means that no single part matters.
    """
    for key, changed in changes(a, b):
        if matters(changed):
            inner = find(value(a, (key,)), value(b, (key,)), lambda part, key=key: matters(_with(a, key, part)))  # type: ignore[misc]
            return (key, *inner)
    return ()


def changes(a: Any, b: Any) -> Iterator[tuple[str | int, Any]]:
    """Yield each key at which two objects or lists differ, with `a` as it is when that alone is as in `b`.

    What one list has more than the other counts as one difference.
    """
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        if any(a.get(kind) != b.get(kind) for kind in KINDS):
            return
        for key in [*a, *(key for key in b if key not in a)]:
            if not same(a.get(key, MISSING), b.get(key, MISSING)):
                yield key, _with(a, key, b.get(key, MISSING))
    elif isinstance(a, list) and isinstance(b, list):
        both = min(len(a), len(b))
        for index in range(both):
            if not same(a[index], b[index]):
                yield index, _with(a, index, b[index])
        if len(a) != len(b):
            yield both, [*a[:both], *b[both:]]


def same(a: Any, b: Any) -> bool:
    """Return whether two values are the same JSON text: the order of keys counts, for templates write it."""
    return a is b or (MISSING not in (a, b) and json.dumps(a) == json.dumps(b))


def value(root: Any, field: Field) -> Any:
    """Return the value of a field, MISSING if there is none."""
    for key in field:
        try:
            root = root[key]
        except (LookupError, TypeError):
            return MISSING
    return root


def written(field: Field) -> str:
    """Return a field as errors name it, such as messages[0].content."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in field).removeprefix(".")


def _with(parent: Any, key: Any, part: Any) -> Any:
    if isinstance(parent, list):
        return [*parent[:key], part, *parent[key + 1 :]]
    changed = {**parent, key: part}
    if part is MISSING:
        del changed[key]
    return changed
