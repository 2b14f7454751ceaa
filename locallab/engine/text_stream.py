"""Token bytes to text: valid UTF-8 at any chunk boundary, stop strings found and never leaked. Pure."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """An incremental decoder: `feed` takes a token's bytes and returns text; any split of the same bytes gives the same text.

    It holds back the bytes of an unfinished character and the longest end of the text that a stop string begins with. The stop
    string that is complete first ends the text (of several at once, the one that begins first); the text before it is kept, the
    stop string and what follows are not. Invalid UTF-8 becomes U+FFFD.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = tuple(s for s in stop if s)
        self._held = ""
        self.stop: str | None = None

    @property
    def stopped(self) -> bool:
        """True once a stop string, `stop`, has ended the text."""
        return self.stop is not None

    def feed(self, data: bytes) -> str:
        return self._release(self._decoder.decode(data))

    def finish(self) -> str:
        """Return the rest of the text; nothing may be fed afterwards."""
        text = self._release(self._decoder.decode(b"", final=True)) + self._held
        self._held = ""
        return text

    def _release(self, text: str) -> str:
        if self.stopped or not self._stop:
            return "" if self.stopped else text
        text = self._held + text
        found = self._first_stop(text)
        if found is not None:
            at, self.stop = found
            self._held = ""
            return text[:at]
        keep = self._unfinished(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _first_stop(self, text: str) -> tuple[int, str] | None:
        """Return the position of the stop string that is complete first, and that string."""
        ends = [(at + len(s), at, s) for s in self._stop if (at := text.find(s)) >= 0]
        return min(ends)[1:] if ends else None

    def _unfinished(self, text: str) -> int:
        """Return the length of the longest end of `text` that a stop string begins with."""
        longest = 0
        for s in self._stop:
            for n in range(min(len(s) - 1, len(text)), longest, -1):
                if text.endswith(s[:n]):
                    longest = n
                    break
        return longest
