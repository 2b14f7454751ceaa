"""Calls as a name followed by the arguments as a JSON object: several families share it, each with its own markers."""

from __future__ import annotations

from collections.abc import Sequence

from locallab.chat.deltas import CallArguments, CallStart, Delta, Text
from locallab.chat.tools.format import NewId
from locallab.chat.tools.parsers.markup import Ended, MarkupParser, Script


class NamedCalls(MarkupParser):
    """Reads `begin name separator {...} end`, any number of them. `frame` are markers around calls that mean nothing more."""

    def __init__(self, begin: str, separator: str, new_id: NewId, *, end: str = "", frame: Sequence[str] = ()) -> None:
        super().__init__()
        self._begin = begin
        self._separator = separator
        self._new_id = new_id
        self._end = end
        self._frame = frame
        self._n_calls = 0

    def script(self) -> Script:
        while marker := (yield from self.text_until(self._begin, *self._frame)):
            if marker != self._begin:
                continue
            try:
                name = yield from self.until(self._separator)
            except Ended as cut:
                yield Text(self._begin + cut.rest)
                return
            yield CallStart(self._n_calls, self._new_id(), self.name_of(name))
            yield from self.skip_fence()
            if not (yield from self.json_value(self._piece)):
                return
            self._n_calls += 1
            yield from self.skip_fence()
            if self._end:
                yield from self.takes(self._end)

    def name_of(self, raw: str) -> str:
        """The name in what stands between `begin` and `separator`."""
        return raw.strip()

    def skip_fence(self) -> Script:
        """White space, and the code fence that some models put around the arguments."""
        yield from self.skip_space()
        if (yield from self.takes("```")):
            yield from self.takes("json")
            yield from self.skip_space()

    def _piece(self, text: str) -> Delta:
        return CallArguments(self._n_calls, text)
