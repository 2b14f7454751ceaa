"""Stored responses, in memory: the last used ones, within limits of number and bytes."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import msgspec

from locallab.errors import UnknownResponse

MOST = 1000
MOST_BYTES = 64 << 20

Owner = str | None
"""The key that a response belongs to, and that alone finds it. None: everybody without a key."""

Key = tuple[Owner, str]
"""The owner and the id of a response."""


@dataclasses.dataclass(frozen=True, slots=True)
class Kept:
    """A response, the items of its request, both as JSON, the id of the response it continued, and the ids of its items."""

    previous: str | None
    request: bytes
    body: bytes
    ids: tuple[str, ...]

    @property
    def size(self) -> int:
        return len(self.request) + len(self.body)


class ResponseStore:
    """Used in the event loop."""

    def __init__(self, most: int = MOST, most_bytes: int = MOST_BYTES) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._kept: OrderedDict[Key, Kept] = OrderedDict()
        self._holders: dict[tuple[Owner, str], dict[Key, None]] = {}  # the responses that have an item, the newest last
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, owner: Owner, body: dict[str, Any], request_items: list[Any]) -> None:
        """Store a response; the least recently used ones make room. One that is too large by itself is not stored."""
        ids = tuple(_by_id([*request_items, *body["output"]]))
        kept = Kept(body["previous_response_id"], msgspec.json.encode(request_items), msgspec.json.encode(body), ids)
        if kept.size > self._most_bytes:
            return
        key = (owner, body["id"])
        self._kept[key] = kept
        self._bytes += kept.size
        for item_id in ids:
            self._holders.setdefault((owner, item_id), {})[key] = None
        while len(self._kept) > self._most or self._bytes > self._most_bytes:
            self._drop(next(iter(self._kept)))

    def get(self, owner: Owner, response_id: str) -> bytes:
        """Return the response as JSON. Raises UnknownResponse."""
        return self._use(owner, response_id).body

    def remove(self, owner: Owner, response_id: str) -> None:
        """Raises UnknownResponse."""
        self._use(owner, response_id)
        self._drop((owner, response_id))

    def conversation(self, owner: Owner, response_id: str) -> list[Any]:
        """Return all items up to the end of this response, oldest first, those of requests and of answers.

        Raises UnknownResponse for the first one missing.
        """
        chain: list[Kept] = []
        next_id: str | None = response_id
        while next_id is not None:  # the oldest are used last, so that a conversation is not cut at its beginning
            chain.append(self._use(owner, next_id))
            next_id = chain[-1].previous
        return [item for kept in reversed(chain) for item in _items(kept)]

    def inputs(self, owner: Owner, response_id: str) -> list[Any]:
        """Return the items that this response had as its input, oldest first, as far as they are still stored.

        Raises UnknownResponse.
        """
        kept = self._use(owner, response_id)
        items: list[Any] = msgspec.json.decode(kept.request)
        while kept.previous is not None and (owner, kept.previous) in self._kept:
            kept = self._use(owner, kept.previous)
            items = [*_items(kept), *items]
        return items

    def items(self, owner: Owner, ids: Iterable[str]) -> dict[str, Any]:
        """Return those of the items that the owner's responses have, by their ids."""
        holders = {each: next(reversed(self._holders[owner, each])) for each in ids if (owner, each) in self._holders}
        items = {key: _by_id(_items(self._kept[key])) for key in set(holders.values())}
        return {item_id: items[key][item_id] for item_id, key in holders.items()}

    def _drop(self, key: Key) -> None:
        kept = self._kept.pop(key)
        self._bytes -= kept.size
        for item_id in kept.ids:
            holders = self._holders[key[0], item_id]
            del holders[key]
            if not holders:
                del self._holders[key[0], item_id]

    def _use(self, owner: Owner, response_id: str) -> Kept:
        if (owner, response_id) not in self._kept:
            raise UnknownResponse(response_id)
        self._kept.move_to_end((owner, response_id))
        return self._kept[owner, response_id]


def _items(kept: Kept) -> list[Any]:
    return [*msgspec.json.decode(kept.request), *msgspec.json.decode(kept.body)["output"]]


def _by_id(items: Iterable[Any]) -> dict[str, Any]:
    """Return the items that have an id; of several with one, the first."""
    found: dict[str, Any] = {}
    for item in items:
        if isinstance(item, dict) and isinstance(item.get("id"), str):
            found.setdefault(item["id"], item)
    return found
