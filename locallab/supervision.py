"""What a server and its supervisor tell each other: the one in memory that outlives it, the other when it starts a server.

The supervisor imports this, so nothing heavy is imported here.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

REQUESTS = 64
"""Requests under way that a black box holds; older ones are forgotten."""

WIDTH = 256
"""Bytes of a text in a black box; longer ones are cut."""

_LOADING, _RAM, _LOADED = REQUESTS, REQUESTS + 1, REQUESTS + 2
_MODELS = 16


class BlackBox:
    """What a server is doing, in memory shared with the process that forks it: it stays readable however the server ends.

    The requests are written by one thread, the models by one thread at a time.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, WIDTH * (_LOADED + _MODELS))
        self._begun = 0

    def begin(self, request: str) -> int:
        """Note that the request of this id is under way; return the number to end it by."""
        self._begun = number = self._begun + 1
        self._write(number % REQUESTS, f"{number} {request}")
        return number

    def end(self, number: int) -> None:
        if self._begun - number < REQUESTS:  # else a younger request has its place
            self._memory[number % REQUESTS * WIDTH] = 0

    def requests(self) -> list[str]:
        """Return the ids of the requests under way, the youngest first."""
        found = [text.split(" ", 1) for text in map(self._read, range(REQUESTS)) if " " in text]
        return [request for _, request in sorted(found, key=lambda each: -int(each[0]))]

    @property
    def loading(self) -> str:
        """The id of the model that is being loaded, empty if none is."""
        return self._read(_LOADING)

    @loading.setter
    def loading(self, model: str) -> None:
        self._write(_LOADING, model)

    @property
    def loaded(self) -> list[str]:
        """The ids of the loaded models, the one last used first; at most 16."""
        return [text for text in map(self._read, range(_LOADED, _LOADED + _MODELS)) if text]

    @loaded.setter
    def loaded(self, models: list[str]) -> None:
        for place in range(_MODELS):
            self._write(_LOADED + place, models[place] if place < len(models) else "")

    @property
    def ram(self) -> int:
        """Bytes of RAM for which the models were fitted, loading ones included; 0 if unknown."""
        return int(self._read(_RAM) or 0)

    @ram.setter
    def ram(self, size: int) -> None:
        self._write(_RAM, str(size))

    def clear(self) -> None:
        self._memory[:] = bytes(len(self._memory))
        self._begun = 0

    def _write(self, place: int, text: str) -> None:
        self._memory[place * WIDTH : (place + 1) * WIDTH] = text.encode(errors="replace")[:WIDTH].ljust(WIDTH, b"\0")

    def _read(self, place: int) -> str:
        return self._memory[place * WIDTH : (place + 1) * WIDTH].split(b"\0", 1)[0].decode(errors="replace")


class SetAside(NamedTuple):
    """Why a model is not loaded again by itself, and from when on (in seconds of the monotonic clock) it is if asked for."""

    reason: str
    until: float


class Supervision(NamedTuple):
    """What a server is told of those before it.

    `restarts` counts them, `cause` is what ended the last one. `ram` limits, in bytes, what models may take, None: the free
    memory does. `announced` tells that one of them has printed where it listens.
    """

    box: BlackBox
    restarts: int = 0
    cause: str = ""
    set_aside: Mapping[str, SetAside] = MappingProxyType({})
    ram: int | None = None
    announced: bool = False
