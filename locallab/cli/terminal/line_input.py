"""Input of `locallab chat`: lines, edited with readline, and the messages they form."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from locallab.cli.terminal.input_history import InputHistory

QUOTES = '"""'
FIRST, NEXT = ">>> ", "... "


def is_typed() -> bool:
    """Return whether a person types at a terminal."""
    return sys.stdin.isatty() and sys.stdout.isatty()


class MessageBuffer:
    '''The lines of a message: one, several between """ and """, or several of which all but the last end in a backslash.'''

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._quoted = False

    @property
    def begun(self) -> bool:
        """True while more lines belong to the message."""
        return self._quoted or bool(self._lines)

    @property
    def text(self) -> str:
        """The text of the lines so far."""
        return "\n".join(self._lines)

    def feed(self, line: str) -> str | None:
        """Add a line. Returns the message once it is complete, and clears the buffer."""
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
            last = [line] if line else []
        elif line.endswith("\\"):
            self._lines.append(line[:-1])
            return None
        else:
            last = [line]
        message = "\n".join([*self._lines, *last])
        self._lines, self._quoted = [], False
        return message


class Lines:
    """Messages from stdin. On a terminal readline edits them, recalls earlier ones, also of `history`, and completes on Tab.

    `complete` receives the line up to the cursor, and returns complete lines.
    """

    def __init__(self, complete: Callable[[str], Sequence[str]], history: InputHistory | None = None) -> None:
        self.typed = is_typed()
        """True if a person types the messages."""
        self._history = history
        self._previous = ""
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")  # else bytes that are no UTF-8 would end the conversation
        if not self.typed:
            return
        found: Sequence[str] = ()

        def match(text: str, state: int) -> str | None:
            nonlocal found
            if state == 0:
                found = complete(text)
            return found[state] if state < len(found) else None

        with contextlib.suppress(ImportError):  # without readline the terminal edits the line
            import readline

            readline.set_completer(match)
            readline.set_completer_delims("")
            readline.parse_and_bind("tab: complete")
            readline.set_auto_history(False)
            for line in history.lines if history else ():
                readline.add_history(line)

    def read(self) -> str | None:
        """Return the next message, None at the end of input. Raises KeyboardInterrupt."""
        buffer = MessageBuffer()
        while True:
            try:
                line = input((NEXT if buffer.begun else FIRST) if self.typed else "")
            except EOFError:
                return None if self.typed or not buffer.begun else buffer.text
            if self.typed:
                self._remember(line)
            message = buffer.feed(line)
            if message is not None:
                return message

    def _remember(self, line: str) -> None:
        """Keep a line for recall, once if it is typed several times in a row."""
        if not line.strip() or line == self._previous:
            return
        self._previous = line
        with contextlib.suppress(ImportError):
            import readline

            readline.add_history(line)
        if self._history is not None:
            self._history.add(line)

    @property
    def left(self) -> str:
        """The text of an interrupted line."""
        with contextlib.suppress(ImportError):
            import readline

            return readline.get_line_buffer()
        return ""
