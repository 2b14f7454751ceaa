"""The beginnings of a request's text as digests: what a router compares without a tokenizer. Pure.

Two requests share tokens in a prefix cache where their rendered prompts begin alike, and those do where the texts that they are
made from do. A text has a digest at each of its edges, each over everything up to there, so that the last digest that two
requests have in common tells how much they share.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

NARROW, WIDE, WIDEST = 128, 1024, 8192
"""Characters from one edge to the next: up to WIDE * 8, up to WIDEST * 16, and beyond."""

MOST = 1 << 21
"""Characters of a text that have edges."""

CHARACTERS = 4
"""Characters of a token, about: what a router reckons with."""

ORDER = ("tools", "system", "instructions", "history", "messages", "input", "prompt", "query", "documents", "content")
"""Fields that are part of a prompt, in the order in which templates render them."""

_encode = msgspec.json.Encoder(order="deterministic").encode


def _edges() -> Iterator[int]:
    at = 0
    while at < MOST:
        at += NARROW if at < 8 * WIDE else WIDE if at < 16 * WIDEST else WIDEST
        yield at


EDGES = tuple(_edges())
"""The characters up to which texts have digests, as far as they are as long."""


def digests(scope: str, text: str) -> tuple[int, ...]:
    """Return the digest at each edge of `text`, as numbers of 64 bits. `scope` is what shares no cache with another."""
    running = hashlib.blake2b(scope.encode("utf-8", "surrogatepass"), digest_size=8, person=b"prefix")
    found, done = [], 0
    for edge in EDGES[: bisect.bisect_right(EDGES, len(text))]:
        running.update(text[done:edge].encode("utf-8", "surrogatepass"))
        found.append(int.from_bytes(running.digest(), "big"))
        done = edge
    return tuple(found)


def scope_of(model: str, adapter: str, owner: str) -> str:
    """Return the scope of requests of one owner for a model with an adapter; "" is none, and the owner that all share."""
    return "\0".join((model, adapter, owner))


def text_of(body: object) -> str:
    """Return the text of a request's body as far as it is part of the prompt: that of a conversation begins with that of each
    of its beginnings. Fields that are no part of a prompt change nothing."""
    if not isinstance(body, Mapping):
        return ""
    return "".join(f"\1{name}\2{_text(body[name])}" for name in ORDER if body.get(name) not in (None, "", []))


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        return "".join(f"\3{_message(each)}" for each in value)
    return _encode(value).decode()


def _message(value: object) -> str:
    """Return one text for a message in any dialect: content as a string is the same as one part of text."""
    if not isinstance(value, Mapping):
        return _text(value)
    content = value.get("content")
    rest: dict[str, Any] = {name: each for name, each in value.items() if name not in ("role", "content", "type")}
    return f"{value.get('role', '')}\4{_content(content)}{_encode(rest).decode() if rest else ''}"


def _content(content: object) -> str:
    if not isinstance(content, Sequence) or isinstance(content, str):
        return _text(content) if content is not None else ""
    texts = (each.get("text") if isinstance(each, Mapping) else None for each in content)
    return "".join(text if isinstance(text, str) else _text(each) for text, each in zip(texts, content, strict=True))
