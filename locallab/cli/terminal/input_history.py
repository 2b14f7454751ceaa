"""The lines that were typed in earlier runs of `locallab chat`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from locallab import private_files

LINES = 1000
"""Lines that are kept from one run to the next."""

LONGEST_LINE = 4096
"""Characters of a line that is kept."""

LONGEST_FILE = 64 << 20
"""Bytes of a file that is read."""


class InputHistory:
    """The lines in a file that only its owner may read, the newest last; each is a line of JSON, since what is pasted may have
    line feeds. Several runs may share it.

    Neither a line with `secret` in it is kept, nor a very long one.
    """

    def __init__(self, path: Path, secret: str | None = None) -> None:
        """Read the file, if there is one, and shorten it. Raises OSError if that cannot be done."""
        self._path = path
        self._secret = secret
        private_files.make_folder(path.parent)
        private_files.touch(path)
        path.chmod(private_files.MODE)
        kept = private_files.read_regular(path, LONGEST_FILE).splitlines(keepends=True)
        if len(kept) > LINES:
            kept = kept[-LINES:]
            private_files.replace(path, b"".join(kept))
        self.lines: Sequence[str] = [line for each in kept if (line := _read(each))]

    def add(self, line: str) -> None:
        """Keep a line. A file that cannot be written keeps none."""
        if len(line) > LONGEST_LINE or (self._secret and self._secret in line):
            return
        try:
            handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, private_files.MODE)
            with os.fdopen(handle, "wb") as file:
                file.write(json.dumps(line, ensure_ascii=False).encode(errors="replace") + b"\n")
        except OSError:
            pass


def _read(line: bytes) -> str | None:
    """Return the line in a line of the file; None if it is none that readline takes."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, str) and "\0" not in found else None
