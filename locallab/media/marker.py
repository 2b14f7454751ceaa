"""Markers: texts that stand in a prompt where a picture or a sound belongs.

A chat template sees a marker as text. It is made of letters, digits and underscores, which no template escapes, and nobody can
guess it, so that a text of a user is never one.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping

from locallab.media.attachment import Attachment

MARKER = f"__media_{secrets.token_hex(16)}_"
"""The beginning of every marker of this process."""

DIGITS = 4
MOST = 10**DIGITS
"""Markers that one request may have."""

PATTERN = re.compile(rf"{MARKER}\d{{{DIGITS}}}")
_WHOLE = re.compile(f"({PATTERN.pattern})")


def marker(index: int) -> str:
    """Return the marker of the request's attachment with this index, from 0 to MOST - 1."""
    return f"{MARKER}{index:0{DIGITS}}"


def is_marker(text: str) -> bool:
    return PATTERN.fullmatch(text) is not None


def split(prompt: str) -> list[str]:
    """Return the texts before, between and behind the markers of a prompt: one more than it has markers."""
    return PATTERN.split(prompt)


def parts(text: str) -> list[str]:
    """Return the text in parts that make it up again: those at odd places are its markers."""
    return _WHOLE.split(text)


def count(prompt: str) -> int:
    """Return the number of markers in a prompt."""
    return sum(1 for _ in PATTERN.finditer(prompt)) if MARKER in prompt else 0


def unmarked(text: str) -> str:
    """Return a text of a user without what could be read as a marker."""
    return text.replace(MARKER, "") if MARKER in text else text


def joined(texts: Iterable[str]) -> str:
    """Join the parts of a message by line ends, except beside a marker, as llama.cpp's server does."""
    found, beside = [], True
    for text in texts:
        marks = is_marker(text)
        found += [text] if beside or marks else ["\n", text]
        beside = marks
    return "".join(found)


def placed(prompt: str, media: Mapping[str, Attachment]) -> tuple[str, tuple[Attachment, ...]]:
    """Return a rendered prompt, without markers that are none of `media`, and the attachments in the order of their markers."""
    if MARKER not in prompt:
        return prompt, ()
    found: list[Attachment] = []
    kept = []
    for index, part in enumerate(parts(prompt)):
        if index % 2 and part in media:
            found.append(media[part])
        if index % 2 == 0 or part in media:
            kept.append(part)
    return "".join(kept), tuple(found)


def named(prompt: str, name: str) -> str:
    """Return a prompt for people to read: each marker is `name`, since nobody may learn how markers look."""
    return PATTERN.sub(lambda _: name, prompt)
