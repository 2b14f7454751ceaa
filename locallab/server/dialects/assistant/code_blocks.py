"""Fenced code blocks of an answer, read as it comes: lines of three or more backticks or tildes open and close them."""

from __future__ import annotations

import dataclasses
import re

_FENCE = re.compile(r"(?P<indent>[ \t]*)(?P<mark>`{3,}|~{3,})[ \t]*(?P<info>.*?)[ \t\r]*")

DEEPER = 3
"""Columns that a closing fence may be indented further than the opening one; deeper, it belongs to the code."""


@dataclasses.dataclass(frozen=True, slots=True)
class Block:
    """One fenced block. `language` is the first word behind the opening fence; `code` has no line end of its own at the end;
    `closed` is False where the answer ended first."""

    language: str
    code: str
    closed: bool


class Fences:
    """Feed an answer in pieces, cut anywhere; `finish` gives its blocks. A fence indented by a list is one too, and what it
    holds loses as much of its indentation. A block left open holds all that came after its fence."""

    def __init__(self) -> None:
        self._blocks: list[Block] = []
        self._rest: list[str] = []  # of a line whose end has not come
        self._open: re.Match[str] | None = None
        self._lines: list[str] = []

    def feed(self, text: str) -> None:
        """The next piece of the answer."""
        head, *tail = text.split("\n")
        self._rest.append(head)
        for line in tail:
            self._take("".join(self._rest))
            self._rest = [line]

    def finish(self) -> list[Block]:
        """The answer has ended: its blocks, in order."""
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
        elif fence and _closes(fence, self._open):
            self._close(closed=True)
        else:
            self._lines.append(_dedented(line, len(self._open["indent"])))

    def _close(self, closed: bool) -> None:
        assert self._open is not None
        language = next(iter(self._open["info"].split()), "")
        self._blocks.append(Block(language, "\n".join(self._lines).removesuffix("\r"), closed))
        self._open, self._lines = None, []


def blocks(text: str) -> list[Block]:
    """The blocks of a whole answer."""
    fences = Fences()
    fences.feed(text)
    return fences.finish()


def _closes(fence: re.Match[str], opened: re.Match[str]) -> bool:
    """Whether `fence` closes the block that `opened` began: the same sign, as many or more, nothing behind, not much deeper."""
    near = len(fence["indent"]) <= len(opened["indent"]) + DEEPER
    return near and not fence["info"] and fence["mark"].startswith(opened["mark"])


def _dedented(line: str, columns: int) -> str:
    blank = len(line) - len(line.lstrip(" \t"))
    return line[min(columns, blank) :]
