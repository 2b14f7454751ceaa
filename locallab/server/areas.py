"""Dialects and areas of the API by path. Paths are canonical, as `middleware.paths` returns them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar

Area = Literal["open", "uncounted", "native", "assistant", "dialect"]
"""Treatment by keys and rate limits: open needs no key and is not counted; uncounted needs a key, if keys are required, and is
not counted; the rest name the rate limit that counts."""


class Owner(Protocol):
    """The part of `dialects.dialect.Dialect` that `server/errors.py` and the middleware read."""

    @property
    def prefixes(self) -> Sequence[str]: ...
    @property
    def error_body(self) -> Callable[[Exception, str], dict[str, Any]]: ...
    @property
    def prompts(self) -> Mapping[str, str]: ...
    @property
    def areas(self) -> Mapping[str, Area]: ...


OwnerType = TypeVar("OwnerType", bound=Owner)


def is_below(path: str, root: str) -> bool:
    """Return whether `path` is `root` or below it. Everything is below ""."""
    return path == root or path.startswith(f"{root}/")


def owner(owners: Sequence[OwnerType], path: str) -> OwnerType:
    """Return the owner with the longest prefix of `path`. One of `owners` must have the prefix ""."""
    return max(owners, key=lambda each: max((len(root) for root in each.prefixes if is_below(path, root)), default=-1))


def area(owned_by: Owner, path: str) -> Area:
    """Return the area of the longest root that `path` is below; "dialect" where the owner names none."""
    found = max((root for root in owned_by.areas if is_below(path, root)), key=len, default=None)
    return "dialect" if found is None else owned_by.areas[found]
