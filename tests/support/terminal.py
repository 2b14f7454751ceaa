"""A terminal for tests: runs a command in a pseudo-terminal, types, and waits for what it shows."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.wait import PATIENCE

ROOT = Path(__file__).parents[2]
UNHEEDED = 5.0
CODES = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|\].*?(\x07|\x1b\\)|[=>])|\r")

# The terminal becomes the command's own, so that Ctrl-C is a signal.
OWN = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)


class Terminal:
    """A command in a terminal. Its output so far is in `raw`, and without the terminal's codes in `text`."""

    def __init__(self, master: int, process: subprocess.Popen[bytes]) -> None:
        self._master = master
        self._process = process
        self._seen = 0
        self._pressed = False
        self.raw = b""

    @property
    def text(self) -> str:
        return CODES.sub("", self.raw.decode(errors="replace"))

    @property
    def echoes(self) -> bool:
        """Whether the terminal shows keys by itself."""
        return bool(termios.tcgetattr(self._master)[3] & termios.ECHO)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def interrupt(self) -> None:
        """Ctrl-C at a prompt. One that comes when the prompt is drawn but Python does not wait for keys yet is heeded only when
        something else comes: `expect` and `end` then press it again."""
        self.type("\x03")
        self._pressed = True

    def expect(self, wanted: str) -> str:
        """Wait until `wanted` is shown after the last expected output; return the output up to there."""
        deadline = time.monotonic() + PATIENCE
        while (found := self.text.find(wanted, self._seen)) < 0:
            assert self._read(deadline), f"ended without {wanted!r}: {self.text[self._seen :]!r}"
        before, self._seen = self.text[self._seen : found], found + len(wanted)
        self._pressed = False
        return before

    def end(self) -> int:
        """Wait until the command ends; return its exit status."""
        deadline = time.monotonic() + PATIENCE
        while self._read(deadline):
            pass
        return self._process.wait(PATIENCE)

    def _read(self, deadline: float) -> bool:
        ready: list[int] = []
        while not ready and (left := deadline - time.monotonic()) > 0:
            ready, _, _ = select.select([self._master], [], [], min(left, UNHEEDED) if self._pressed else left)
            if not ready and self._pressed:
                self.type("\x03")
        assert ready, f"nothing came any more: {self.text[self._seen :]!r}"
        try:
            data = os.read(self._master, 65536)
        except OSError:  # what Linux says at the end
            return False
        self.raw += data
        return bool(data)


@contextlib.contextmanager
def terminal(*arguments: str, rows: int = 24, columns: int = 80, **environ: str) -> Iterator[Terminal]:
    """Run `locallab` with these arguments."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    inherited = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-c", OWN, "-m", "locallab", *arguments],
        cwd=ROOT,
        env={**inherited, "TERM": "xterm-256color", "INPUTRC": os.devnull, **environ},
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    try:
        yield Terminal(master, process)
    finally:
        process.kill()
        process.wait()
        os.close(master)
