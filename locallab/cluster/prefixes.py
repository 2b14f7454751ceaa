"""The beginnings of a request's text as digests: what a router compares without a tokenizer. Pure.

Two requests share tokens in a prefix cache where their rendered prompts begin alike, and those do where the texts that they are
made from do. A text has a digest at each of its edges, each over everything up to there, so that the last digest that two
requests have in common tells how much they share.
"""

from __future__ import annotations

import bisect
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence

import msgspec

NARROW, WIDE, WIDEST = 128, 1024, 8192
"""Characters from one edge to the next: up to WIDE * 8, up to WIDEST * 16, and beyond."""

MOST = 1 << 21
"""Characters of a text that have edges."""

CHARACTERS = 4
"""Characters of a token, about: what a router reckons with."""

ORDER = (
    *("tools", "system", "instructions", "history", "messages", "input"),
    *("input_extra", "input_prefix", "prompt", "query", "documents", "content"),
)
"""Fields that are part of a prompt, in the order in which templates render them."""

MARK = "cache_control"
"""What clients move from message to message, and no prompt has."""

PICTURE = 1024
"""Tokens that data in a message counts as, such as a picture, however long it is."""

_DATA = re.compile(r"(?<![\w+/-])[\w+/-]{1024,}=*", re.ASCII)
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
    key = hashlib.blake2b(scope.encode("utf-8", "surrogatepass"), digest_size=32).digest()
    running = hashlib.blake2b(digest_size=8, key=key, person=b"prefix")
    found, done = [], 0
    for edge in EDGES[: bisect.bisect_right(EDGES, len(text))]:
        running.update(text[done:edge].encode("utf-8", "surrogatepass"))
        found.append(int.from_bytes(running.digest(), "big"))
        done = edge
    return tuple(found)


def scope_of(model: str, adapter: str, owner: str) -> str:
    """Return the scope of requests of one owner for a model with an adapter; "" is none, and the owner that all share."""
    return repr((model, adapter, owner))


def text_of(body: object) -> str:
    """Return the text of a request's body as far as it is part of the prompt: that of a conversation begins with that of each
    of its beginnings. Fields that are no part of a prompt change nothing, nor does the form in which a dialect has a text."""
    if not isinstance(body, Mapping):
        return ""
    texts = ((name, _field(name, body.get(name))) for name in ORDER)
    return "".join(f"\1{name}\2{text}" for name, text in texts if text)


def _field(name: str, value: object) -> str:
    if value is None or name in ("system", "instructions"):
        return _content(value)
    if name == "input" and value and isinstance(value, str):
        return _text([{"role": "user", "content": value}])
    return _text(value)


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        return "".join(f"\3{_message(each)}" for each in value)
    return _json(value)


def _message(value: object) -> str:
    """Return one text for a message in any dialect: content as a string is the same as one part of text."""
    if not isinstance(value, Mapping):
        return value if isinstance(value, str) else _json(value)
    rest = {name: each for name, each in value.items() if name not in ("role", "content", "type", MARK)}
    role = value.get("role")
    return f"{role if isinstance(role, str) else ''}\4{_content(value.get('content'))}{_json(rest) if rest else ''}"


def _content(content: object) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(map(_part, content)) if isinstance(content, Sequence) else _json(content)


def _part(part: object) -> str:
    if not isinstance(part, Mapping):
        return part if isinstance(part, str) else _json(part)
    text = part.get("text")
    return text if isinstance(text, str) else _json({name: each for name, each in part.items() if name != MARK})


def _json(value: object) -> str:
    """Return a value as JSON, data in it as a digest; "" for what no JSON can be made of."""
    try:
        return _DATA.sub(_digest, _encode(value).decode())
    except (RecursionError, ValueError):
        return ""


def _digest(data: re.Match[str]) -> str:
    digest = hashlib.blake2b(data[0].encode(), digest_size=16).hexdigest()
    return digest * (PICTURE * CHARACTERS // len(digest))
