"""Parser of calls written as a name followed by a JSON object; several families share it, each with its own markers."""

from __future__ import annotations

from collections.abc import Sequence

from locallab.chat.deltas import Text
from locallab.chat.tools.format import NewId
from locallab.chat.tools.parsers.markup import Ended, MarkupParser, Script


class NamedCalls(MarkupParser):
    """Parse any number of `begin name separator {...} end`. `frame` are markers around calls, which are dropped."""

    def __init__(self, begin: str, separator: str, new_id: NewId, *, end: str = "", frame: Sequence[str] = ()) -> None:
        super().__init__(new_id)
        self._begin = begin
        self._separator = separator
        self._end = end
        self._frame = frame

    def script(self) -> Script:
        while marker := (yield from self.text_until(self._begin, *self._frame)):
            if marker != self._begin:
                continue
            try:
                name = yield from self.until(self._separator)
            except Ended as cut:
                yield Text(self._begin + cut.rest)
                return
            yield self.call_start(self.name_of(name))
            yield from self.skip_fence()
            if not (yield from self.json_arguments()):
                return
            self.n_calls += 1
            yield from self.skip_fence()
            if self._end:
                yield from self.takes(self._end)

    def name_of(self, raw: str) -> str:
        """Return the name in the text between `begin` and `separator`."""
        return raw.strip()

    def skip_fence(self) -> Script:
        """Drop white space and the code fence that some models put around the arguments."""
        yield from self.skip_space()
        if (yield from self.takes("```")):
            yield from self.takes("json")
            yield from self.skip_space()
