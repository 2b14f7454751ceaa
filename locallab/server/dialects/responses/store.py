"""Stored responses, in memory: the last used ones, within limits of number and bytes."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from typing import Any

import msgspec

from locallab.errors import UnknownResponse

MOST = 1000
MOST_BYTES = 64 << 20

Owner = str | None
"""The key that a response belongs to, and that alone finds it. None: everybody without a key."""


@dataclasses.dataclass(frozen=True, slots=True)
class Kept:
    """A response, the items of its request, both as JSON, and the id of the response it continued."""

    previous: str | None
    request: bytes
    body: bytes

    @property
    def size(self) -> int:
        return len(self.request) + len(self.body)


class ResponseStore:
    """Used in the event loop."""

    def __init__(self, most: int = MOST, most_bytes: int = MOST_BYTES) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._kept: OrderedDict[tuple[Owner, str], Kept] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, owner: Owner, body: dict[str, Any], request_items: list[Any]) -> None:
        """Store a response; the least recently used ones make room. One that is too large by itself is not stored."""
        kept = Kept(body["previous_response_id"], msgspec.json.encode(request_items), msgspec.json.encode(body))
        if kept.size > self._most_bytes:
            return
        self._kept[owner, body["id"]] = kept
        self._bytes += kept.size
        while len(self._kept) > self._most or self._bytes > self._most_bytes:
            _, gone = self._kept.popitem(last=False)
            self._bytes -= gone.size

    def get(self, owner: Owner, response_id: str) -> bytes:
        """Return the response as JSON. Raises UnknownResponse."""
        return self._use(owner, response_id).body

    def remove(self, owner: Owner, response_id: str) -> None:
        """Raises UnknownResponse."""
        self._bytes -= self._use(owner, response_id).size
        del self._kept[owner, response_id]

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

    def item(self, owner: Owner, item_id: str) -> Any:
        """Find the item of this id in any response of the owner; None without one."""
        for (whose, _), kept in reversed(self._kept.items()):
            if whose == owner and (item_id.encode() in kept.body or item_id.encode() in kept.request):
                found = [item for item in _items(kept) if isinstance(item, dict) and item.get("id") == item_id]
                if found:
                    return found[0]
        return None

    def _use(self, owner: Owner, response_id: str) -> Kept:
        if (owner, response_id) not in self._kept:
            raise UnknownResponse(response_id)
        self._kept.move_to_end((owner, response_id))
        return self._kept[owner, response_id]


def _items(kept: Kept) -> list[Any]:
    return [*msgspec.json.decode(kept.request), *msgspec.json.decode(kept.body)["output"]]
