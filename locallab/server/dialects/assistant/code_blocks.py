"""Fenced code blocks of an answer: lines of three or more backticks or tildes open and close them."""

from __future__ import annotations

import dataclasses
import re

_FENCE = re.compile(r"(?P<indent>[ \t]*)(?P<mark>`{3,}|~{3,})[ \t]*(?P<info>.*?)[ \t\r]*")

DEEPER = 3
"""Columns by which a closing fence may be indented further than its opening one; a deeper one belongs to the code."""


@dataclasses.dataclass(frozen=True, slots=True)
class Block:
    """One fenced block. `language` is the first word behind the opening fence; `code` has no final line end; `closed` is False
    if the answer ended first."""

    language: str
    code: str
    closed: bool


class Fences:
    """Finds the blocks of an answer that is fed in pieces, cut anywhere.

    A fence may be indented, as in a list; its code then loses as much of its indentation. A block that is never closed has
    all that came after its fence.
    """

    def __init__(self) -> None:
        self._blocks: list[Block] = []
        self._rest: list[str] = []  # of an incomplete line
        self._open: re.Match[str] | None = None
        self._lines: list[str] = []

    def feed(self, text: str) -> None:
        """Take the next piece of the answer."""
        head, *tail = text.split("\n")
        self._rest.append(head)
        for line in tail:
            self._take("".join(self._rest))
            self._rest = [line]

    def finish(self) -> list[Block]:
        """End the answer, and return its blocks in order."""
        if last := "".join(self._rest):
            self._take(last)
        if self._open:
            self._close(closed=False)
        return self._blocks

    def _take(self, line: str) -> None:
        fence = _FENCE.fullmatch(line)
        if self._open is None:
            if fence and "`" not in fence["info"]:
                self._open = fence
            return
        indent, mark = len(self._open["indent"]), self._open["mark"]
        # The same sign, as many or more, nothing behind, and not much deeper.
        if fence and fence["mark"].startswith(mark) and not fence["info"] and len(fence["indent"]) <= indent + DEEPER:
            self._close(closed=True)
        else:
            blank = len(line) - len(line.lstrip(" \t"))
            self._lines.append(line[min(indent, blank) :])

    def _close(self, closed: bool) -> None:
        assert self._open is not None
        language = next(iter(self._open["info"].split()), "")
        self._blocks.append(Block(language, "\n".join(self._lines).removesuffix("\r"), closed))
        self._open, self._lines = None, []
