"""Token bytes to text: valid UTF-8 at any chunk boundary, stop strings found and never leaked. Pure."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence

from locallab.engine.stop_strings import StopStrings

_MARKS = re.compile("[\ud800-\udfff]")


class TextStream:
    """An incremental decoder: `feed` takes a token's bytes and returns text; any split of the same bytes gives the same text.

    It holds back the bytes of an unfinished character and the longest end of the text that a stop string begins with. The stop
    string that is complete first ends the text (of several at once, the one that begins first); the text before it is kept,
    what follows is not, and the stop string only if `include_stop`. Invalid UTF-8 becomes U+FFFD. While `armed` is False no
    stop string ends the text.
    """

    def __init__(self, stop: Sequence[str] | StopStrings = (), *, include_stop: bool = False) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        stops = stop if isinstance(stop, StopStrings) else StopStrings(zip(stop, stop, strict=True))
        self._stops = stops if stops else None
        self._include_stop = include_stop
        self._state = 0
        self._held = ""
        self.armed = True
        self.stop: str | None = None

    @property
    def stopped(self) -> bool:
        """True once a stop string, `stop`, has ended the text."""
        return self.stop is not None

    def feed(self, data: bytes) -> str:
        return self._release(self._decoder.decode(data))

    def mark(self, mark: str) -> str:
        """Take a surrogate that stands for a control token: stop strings see it, the text does not have it."""
        return self._release(mark)

    def finish(self) -> str:
        """Return the rest of the text; nothing may be fed afterwards."""
        text = self._release(self._decoder.decode(b"", final=True)) + self._visible(self._held)
        self._held = ""
        return text

    def _release(self, text: str) -> str:
        if self._stops is None or self.stopped:
            return "" if self.stopped else text
        before = len(self._held)
        self._held += text
        for end, character in enumerate(text, before + 1):
            self._state = self._stops.step(self._state, character)
            found = self._stops.found[self._state]
            if found is not None and self.armed:
                self.stop, length = found
                visible = self._visible(self._held[: end - length])
                self._held = ""
                return visible + (self.stop if self._include_stop else "")
        keep = self._stops.depth[self._state]
        released = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return self._visible(released)

    def _visible(self, text: str) -> str:
        return text if text.isascii() else _MARKS.sub("", text)
