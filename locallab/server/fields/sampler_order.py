"""The field `samplers`: names, or the letters that llama.cpp's server has for them."""

from __future__ import annotations

from typing import Any

from locallab.engine.sampler_chain import NAMES
from locallab.errors import InvalidField

LETTERS = {
    "e": "penalties",
    "d": "dry",
    "s": "top_n_sigma",
    "k": "top_k",
    "y": "typ_p",
    "p": "top_p",
    "m": "min_p",
    "x": "xtc",
    "t": "temperature",
    "a": "adaptive_p",
    "i": "infill",
}

SPELLINGS = {
    **{spelling: name for name in NAMES for spelling in (name, name.replace("_", "-"), name.replace("_", ""))},
    "nucleus": "top_p",
    "temp": "temperature",
    "typ": "typ_p",
    "typical_p": "typ_p",
}
"""Names that clients use, as llama.cpp reads them."""

MOST = 32
"""The longest order."""

SAMPLER_NAMES: dict[str, Any] = {
    "anyOf": [
        {"type": "array", "items": {"enum": list(SPELLINGS)}, "maxItems": MOST},
        {"type": "string", "pattern": f"^[{''.join(sorted(set(LETTERS) - {'i'}))}]{{0,{MOST}}}$"},
        {"type": "null"},
    ]
}
"""The JSON schema of what `read_samplers` reads."""

ANY_NAMES: dict[str, Any] = {
    "anyOf": [{"type": "array", "maxItems": MOST}, {"type": "string", "maxLength": MOST}, {"type": "null"}]
}
"""The JSON schema of what it reads with notes."""


def read_samplers(raw: object, notes: list[str] | None = None) -> tuple[str, ...]:
    """Return the samplers' names as the engine has them. An unknown one is left out and noted, or without `notes` refused.

    Raises InvalidField.
    """
    names = [LETTERS.get(letter, letter) for letter in raw] if isinstance(raw, str) else raw
    if not isinstance(names, list | tuple):
        raise InvalidField("samplers", "expected a list of names, or a text with a letter for each")
    if len(names) > MOST:
        raise InvalidField("samplers", f"at most {MOST} are possible, got {len(names)}")
    found = []
    for name in names:
        known = SPELLINGS.get(name) if isinstance(name, str) else None
        if known is not None:
            found.append(known)
        elif notes is None:
            raise InvalidField("samplers", f"unknown sampler {name!r}; known: {', '.join(NAMES)}")
        else:
            notes.append(f"samplers: {str(name)[:40]!r} is left out")
    return tuple(found)
