"""What a person types in `locallab chat`: lines, edited with readline, and the messages they make."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence

QUOTES = '"""'
FIRST, NEXT = ">>> ", "... "


class Gathered:
    '''A message of one or more lines: """ up to """, or each but the last with a backslash at its end. Pure.'''

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._quoted = False

    @property
    def begun(self) -> bool:
        """Whether more lines are to come."""
        return self._quoted or bool(self._lines)

    @property
    def text(self) -> str:
        """What there is so far."""
        return "\n".join(self._lines)

    def feed(self, line: str) -> str | None:
        """The next line; returns the message once it is complete, and is then ready for the next."""
        if not self.begun and line.lstrip().startswith(QUOTES):
            self._quoted = True
            line = line.lstrip().removeprefix(QUOTES)
            if not line:
                return None
        if self._quoted:
            if not line.rstrip().endswith(QUOTES):
                self._lines.append(line)
                return None
            line = line.rstrip().removesuffix(QUOTES)
            return self._end([line] if line else [])
        if line.endswith("\\"):
            self._lines.append(line[:-1])
            return None
        return self._end([line])

    def _end(self, last: Sequence[str]) -> str:
        message = "\n".join([*self._lines, *last])
        self._lines, self._quoted = [], False
        return message


class Lines:
    """Reads messages from stdin. On a terminal lines can be edited, earlier ones come back, and Tab completes by `complete`,
    which is given the line up to the cursor and returns what the whole of it may become."""

    def __init__(self, complete: Callable[[str], Sequence[str]]) -> None:
        self.typed = sys.stdin.isatty() and sys.stdout.isatty()
        """Whether a person types them."""
        self._complete = complete
        if self.typed:
            self._edit()

    def read(self) -> str | None:
        """The next message; None at the end. Raises KeyboardInterrupt."""
        gathered = Gathered()
        while True:
            try:
                line = input((NEXT if gathered.begun else FIRST) if self.typed else "")
            except EOFError:
                return None if self.typed or not gathered.begun else gathered.text
            message = gathered.feed(line)
            if message is not None:
                return message

    @property
    def left(self) -> str:
        """What stood in the line when it was interrupted."""
        with contextlib.suppress(ImportError):
            import readline

            return readline.get_line_buffer()
        return ""

    def _edit(self) -> None:
        with contextlib.suppress(ImportError):  # a Python without readline: lines come as the terminal edits them
            import readline

            readline.set_completer(self._matching)
            readline.set_completer_delims("")
            readline.parse_and_bind("tab: complete")

    def _matching(self, text: str, state: int) -> str | None:
        found = self._complete(text)
        return found[state] if state < len(found) else None
