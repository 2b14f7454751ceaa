"""The sampling fields that /set changes: those of the server's own requests, with their checks."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import msgspec

from locallab.cli.llama_library import loading_llama
from locallab.errors import ConfigError, InvalidField


def fields() -> Mapping[str, str]:
    """Return the names of the fields, without aliases, and what each means."""
    return {name: meta.description or "" for name, meta in _metas().items() if not (meta.extra or {}).get("alias")}


def named(name: str) -> str:
    """Return the name of the field that `name`, perhaps an alias, means. Raises ConfigError."""
    meta = _metas().get(name)
    if meta is not None:
        return str((meta.extra or {}).get("alias", name))
    near = difflib.get_close_matches(name, fields(), n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "/set lists the names"
    raise ConfigError(f"{name}: there is no such field; {hint}")


def read(name: str, text: str) -> Any:
    """Return a field's value, as JSON has it, from JSON or text without quotation marks; None is unset. Raises ConfigError."""
    try:
        value = msgspec.json.decode(text)
    except (ValueError, RecursionError):
        value = text
    try:
        return _checked(name, value)
    except InvalidField as error:
        first = error
    try:
        return _checked(name, text)  # a text may look like a number
    except InvalidField:
        raise ConfigError(f"{first}; it is: {fields()[name]}") from None


def _checked(name: str, value: Any) -> Any:
    from locallab.server.fields.body import parse
    from locallab.server.fields.sampling import Sampling

    return msgspec.to_builtins(getattr(parse(msgspec.json.encode({name: value}), Sampling), name))


def _metas() -> Mapping[str, msgspec.Meta]:
    with loading_llama():
        from locallab.server.fields.sampling import Sampling
        from locallab.server.fields.table import metas

    return metas(Sampling)
