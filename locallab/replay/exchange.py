"""A client's request with a check of the answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

MODEL = "<model>"
"""Placeholder in paths and bodies for the id of a model that the server lists."""

TOO_LONG = "<too long>"
"""Placeholder in bodies for a text of more tokens than the model's context."""

KeyStyle = Literal["bearer", "x-api-key", "api-key", "both", "none"]
"""Headers in which a client sends its key; `both` means bearer and x-api-key."""


class Unmet(Exception):
    """The answer would break the client; the message says why."""


@dataclasses.dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP response; the names of `headers` are in lower case."""

    status: int
    headers: Mapping[str, str]
    text: str


Check = Callable[[Reply], None]
"""Raises Unmet."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A request of `client`, described by `doing`. `wrong_key` sends an invalid key, which only a server with keys rejects."""

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
        """True if the request depends on the size of the model's context."""
        return TOO_LONG in str(self.body)


def filled(value: Any, model: str, too_long: str) -> Any:
    """Return the body or path with its placeholders replaced."""
    if isinstance(value, str):
        return value.replace(MODEL, model).replace(TOO_LONG, too_long)
    if isinstance(value, Mapping):
        return {name: filled(each, model, too_long) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [filled(each, model, too_long) for each in value]
    return value
