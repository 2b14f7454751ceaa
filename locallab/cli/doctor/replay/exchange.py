"""One request as a client sends it, and what the answer must be."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

MODEL = "<model>"
"""Stands in a path or a body for the id of a model that the server lists."""

TOO_LONG = "<too long>"
"""Stands in a body for a text of more tokens than the model's context."""

KeyStyle = Literal["bearer", "x-api-key", "api-key", "both", "none"]
"""How a client sends its key; both: as bearer and as x-api-key. With `none` it sends no key."""


class Unmet(Exception):
    """The client would break on the answer; says why."""


@dataclasses.dataclass(frozen=True, slots=True)
class Reply:
    """An answer as it came; the names of `headers` are in small letters."""

    status: int
    headers: Mapping[str, str]
    text: str


Check = Callable[[Reply], None]
"""Raises Unmet."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """`client` does `doing`. `wrong_key`: with a key that is not valid, which only a server that asks for keys can refuse."""

    client: str
    doing: str
    path: str
    check: Check
    method: str = "POST"
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    key: KeyStyle = "bearer"
    wrong_key: bool = False

    @property
    def needs_context(self) -> bool:
        """Whether the request is made from the size of the model's context."""
        return TOO_LONG in str(self.body)


def filled(value: Any, model: str, too_long: str) -> Any:
    """The body or path with what its placeholders stand for."""
    if isinstance(value, str):
        return value.replace(MODEL, model).replace(TOO_LONG, too_long)
    if isinstance(value, Mapping):
        return {name: filled(each, model, too_long) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [filled(each, model, too_long) for each in value]
    return value
