"""Posts a step's events to the thread that reads them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from locallab.engine.request import Listener, TokenEvent

Events = list[tuple[Listener, TokenEvent]]
Post = Callable[[Events], None]
"""Hands one step's events, of all requests, to their listeners. Called from the engine's thread, once a step."""


class Loop(Protocol):
    """The part of an event loop that is needed."""

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: Any) -> object: ...


def call_each(events: Iterable[tuple[Listener, TokenEvent]]) -> None:
    """Call the listeners where we are; in the engine's thread this is the plainest Post."""
    for listener, event in events:
        listener(event)


class LoopPost:
    """A Post whose listeners are called in `loop`, or in the engine's thread while there is none."""

    def __init__(self) -> None:
        self.loop: Loop | None = None

    def __call__(self, events: Events) -> None:
        if self.loop is None:
            call_each(events)
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to read
            self.loop.call_soon_threadsafe(call_each, events)
