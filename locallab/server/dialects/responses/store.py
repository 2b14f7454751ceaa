"""Responses kept in memory: the last used ones, within limits of number and bytes."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Iterable, Sequence
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
    ids: tuple[str, ...] = ()

    @classmethod
    def of(cls, body: dict[str, Any], request_items: list[Any]) -> Kept:
        ids = tuple(by_id([*request_items, *body["output"]]))
        return cls(body["previous_response_id"], msgspec.json.encode(request_items), msgspec.json.encode(body), ids)

    @property
    def size(self) -> int:
        return len(self.request) + len(self.body)

    def request_items(self) -> list[Any]:
        items: list[Any] = msgspec.json.decode(self.request)
        return items

    def items(self) -> list[Any]:
        """Return the items of the request and of the answer."""
        return [*self.request_items(), *msgspec.json.decode(self.body)["output"]]


class ResponseStore:
    """The responses of one server. For one thread."""

    def __init__(self, most: int = MOST, most_bytes: int = MOST_BYTES) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._kept: OrderedDict[Key, Kept] = OrderedDict()
        self._holders: dict[tuple[Owner, str], dict[Key, None]] = {}  # the responses that have an item, the newest last
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, owner: Owner, response_id: str, kept: Kept) -> None:
        """Keep a response; the least recently used ones make room. One that is too large by itself is not kept."""
        if kept.size > self._most_bytes:
            return
        key = (owner, response_id)
        if key in self._kept:
            self._drop(key)
        self._kept[key] = kept
        self._bytes += kept.size
        for item_id in kept.ids:
            self._holders.setdefault((owner, item_id), {})[key] = None
        while len(self._kept) > self._most or self._bytes > self._most_bytes:
            self._drop(next(iter(self._kept)))

    def find(self, key: Key) -> Kept | None:
        """Return a response, which does not count as its use."""
        return self._kept.get(key)

    def chain(self, owner: Owner, response_id: str, most: int = MOST) -> list[Kept]:
        """Return a response and those it continued, the newest first, up to the first one that is not kept, or `most`.

        The oldest is used last, so that a conversation is not cut at its beginning.
        """
        found: list[Kept] = []
        key: Key = (owner, response_id)
        while key in self._kept and len(found) < most:
            self._kept.move_to_end(key)
            found.append(self._kept[key])
            if found[-1].previous is None:
                break
            key = (owner, found[-1].previous)
        return found

    def remove(self, owner: Owner, response_id: str) -> bool:
        """Return whether it was kept."""
        if (owner, response_id) not in self._kept:
            return False
        self._drop((owner, response_id))
        return True

    def items(self, owner: Owner, ids: Iterable[str]) -> dict[str, Any]:
        """Return those of the items that the owner's responses have, by their ids."""
        holders = {each: next(reversed(self._holders[owner, each])) for each in ids if (owner, each) in self._holders}
        return picked(holders, {key: self._kept[key] for key in set(holders.values())})

    def _drop(self, key: Key) -> None:
        kept = self._kept.pop(key)
        self._bytes -= kept.size
        for item_id in kept.ids:
            holders = self._holders[key[0], item_id]
            del holders[key]
            if not holders:
                del self._holders[key[0], item_id]


def conversation(chain: Sequence[Kept], response_id: str) -> list[Any]:
    """Return all items up to the end of this response, oldest first, those of requests and of answers.

    `chain` starts with the response. Raises UnknownResponse for the first one missing.
    """
    if not chain or chain[-1].previous is not None:
        raise UnknownResponse((chain[-1].previous if chain else None) or response_id)
    return [item for kept in reversed(chain) for item in kept.items()]


def inputs(chain: Sequence[Kept], response_id: str) -> list[Any]:
    """Return the items that the response had as its input, oldest first, as far as they are still kept.

    `chain` starts with the response. Raises UnknownResponse.
    """
    if not chain:
        raise UnknownResponse(response_id)
    return [*(item for kept in reversed(chain[1:]) for item in kept.items()), *chain[0].request_items()]


def picked(holders: dict[str, Any], kept: dict[Any, Kept]) -> dict[str, Any]:
    """Return the items by id; `holders` says in which of the `kept` each is."""
    items = {key: by_id(each.items()) for key, each in kept.items()}
    return {item_id: items[key][item_id] for item_id, key in holders.items()}


def by_id(items: Iterable[Any]) -> dict[str, Any]:
    """Return the items that have an id; of several with one, the first."""
    found: dict[str, Any] = {}
    for item in items:
        if isinstance(item, dict) and isinstance(item.get("id"), str):
            found.setdefault(item["id"], item)
    return found
