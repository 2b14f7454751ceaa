"""Responses that clients may come back to, in memory: so many of them, of so many bytes together, the latest used ones."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import msgspec

from locallab.errors import UnknownResponse

MOST = 1000
MOST_BYTES = 64 << 20

Owner = str | None
"""Whose a response is: only the key that made it finds it. None is everybody without a key."""


@dataclasses.dataclass(frozen=True, slots=True)
class Kept:
    """A response as it was answered, the items it was asked with, and the response it went on from; JSON each."""

    previous: str | None
    asked: bytes
    body: bytes

    @property
    def size(self) -> int:
        return len(self.asked) + len(self.body)


class ResponseStore:
    """To be used in the event loop."""

    def __init__(self, most: int = MOST, most_bytes: int = MOST_BYTES) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._kept: OrderedDict[tuple[Owner, str], Kept] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, owner: Owner, body: dict[str, Any], asked: list[Any]) -> None:
        """Keeps a response; what was used longest ago makes room. One that is too large by itself is not kept."""
        kept = Kept(body["previous_response_id"], msgspec.json.encode(asked), msgspec.json.encode(body))
        if kept.size > self._most_bytes:
            return
        self._kept[owner, body["id"]] = kept
        self._bytes += kept.size
        while len(self._kept) > self._most or self._bytes > self._most_bytes:
            _, gone = self._kept.popitem(last=False)
            self._bytes -= gone.size

    def get(self, owner: Owner, response_id: str) -> bytes:
        """The response, as JSON. Raises UnknownResponse."""
        return self._use(owner, response_id).body

    def remove(self, owner: Owner, response_id: str) -> None:
        """Raises UnknownResponse."""
        self._bytes -= self._use(owner, response_id).size
        del self._kept[owner, response_id]

    def conversation(self, owner: Owner, response_id: str) -> list[Any]:
        """All items up to the end of this response, oldest first: what was asked and what was answered. Raises UnknownResponse
        that names the first one missing."""
        return [item for kept in reversed(list(self._chain(owner, response_id))) for item in _items(kept)]

    def item(self, owner: Owner, item_id: str) -> Any:
        """The item of this id in any response of the owner; None if there is none."""
        for (whose, _), kept in reversed(self._kept.items()):
            if whose == owner and item_id.encode() in kept.body:
                found = [item for item in _items(kept) if isinstance(item, dict) and item.get("id") == item_id]
                if found:
                    return found[0]
        return None

    def _chain(self, owner: Owner, response_id: str) -> Iterator[Kept]:
        """The response and those before it. The oldest are used last, so that a conversation is not cut at its beginning."""
        next_id: str | None = response_id
        while next_id is not None:
            kept = self._use(owner, next_id)
            yield kept
            next_id = kept.previous

    def _use(self, owner: Owner, response_id: str) -> Kept:
        if (owner, response_id) not in self._kept:
            raise UnknownResponse(response_id)
        self._kept.move_to_end((owner, response_id))
        return self._kept[owner, response_id]


def _items(kept: Kept) -> list[Any]:
    return [*msgspec.json.decode(kept.asked), *msgspec.json.decode(kept.body)["output"]]
