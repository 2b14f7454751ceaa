"""Posts a step's events to the thread that reads them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from locallab.engine.request import Listener, TokenEvent

Events = list[tuple[Listener, TokenEvent]]
Post = Callable[[Events], None]
"""Hands one step's events, of all requests, to their listeners. Called from the engine's thread, once a step."""


logger = logging.getLogger(__name__)


class Heard:
    """A listener that may raise, without harm to others: then it hears no more than a last event, and `failed` is called with
    the error, once."""

    __slots__ = ("_deaf", "_failed", "_listener")

    def __init__(self, listener: Listener, failed: Callable[[Exception], None]) -> None:
        self._listener = listener
        self._failed = failed
        self._deaf = False

    def __call__(self, event: TokenEvent) -> None:
        if self._deaf and event.finish_reason is None:
            return
        try:
            self._listener(event)
        except Exception as error:
            logger.exception("a listener failed")
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """Take it that the listener has missed an event by this error."""
        if not self._deaf:
            self._deaf = True
            self._failed(error)


class Loop(Protocol):
    """The part of an event loop that is needed."""

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: Any) -> object: ...


def call_each(events: Iterable[tuple[Listener, TokenEvent]]) -> None:
    """Call the listeners where we are; in the engine's thread this is the plainest Post."""
    for listener, event in events:
        listener(event)


def deliver(post: Post, events: Events) -> None:
    """Post the events, one by one if that fails for all of them; what cannot be posted fails its listener."""
    try:
        post(events)
    except Exception:
        logger.exception("posting %d events failed; they are posted one by one", len(events))
        for event in events:
            try:
                post([event])
            except Exception as error:
                if isinstance(event[0], Heard):  # all are, but those of requests that never began
                    event[0].fail(error)


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
