"""The bridge from llama.cpp's log (llama_log_set) to Python's logger `locallab.llama`."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import threading
from collections.abc import Iterator

import llama_cpp

logger = logging.getLogger("locallab.llama")

# enum ggml_log_level of ggml.h. llama.cpp's "info" is a page of details per load, hence Python's debug.
_LEVELS = {1: logging.DEBUG, 2: logging.DEBUG, 3: logging.WARNING, 4: logging.ERROR}
_CONTINUED = 5


class Problems:
    """Warnings and errors logged by one native call."""

    def __init__(self) -> None:
        self._lines: list[tuple[int, str]] = []

    def add(self, level: int, line: str) -> None:
        self._lines.append((level, line))

    def reason(self, default: str) -> str:
        """Return the first error, without the name of the C function before it; else the last warning; else `default`."""
        errors = [line for level, line in self._lines if level >= logging.ERROR]
        lines = errors[:1] or [line for _, line in self._lines][-1:] or [default]
        _, separator, rest = lines[0].partition(": ")
        return rest if separator and " " not in lines[0][: -len(rest) - 2] else lines[0]


class _Thread(threading.local):
    """A thread's unfinished line: llama.cpp logs in pieces."""

    level = logging.DEBUG
    pending = ""
    problems: Problems | None = None


_thread = _Thread()


def _receive(level: int, text: bytes, _user_data: ctypes.c_void_p) -> None:
    """Assemble lines and log them. Implements ggml_log_callback."""
    if level != _CONTINUED:
        _thread.level = _LEVELS.get(level, logging.DEBUG)
    *lines, _thread.pending = (_thread.pending + text.decode("utf-8", "replace")).split("\n")
    for line in lines:
        if not line.strip(" ."):
            continue
        python_level = _thread.level
        if _thread.problems is not None and python_level >= logging.WARNING:
            _thread.problems.add(python_level, line.rstrip())
            python_level = logging.DEBUG  # the caller raises them as one error
        logger.log(python_level, line.rstrip())


@contextlib.contextmanager
def captured() -> Iterator[Problems]:
    """Collect llama.cpp's warnings and errors in this thread, and log them at debug level only."""
    _thread.problems = Problems()
    try:
        yield _thread.problems
    finally:
        _thread.problems = None


callback = llama_cpp.llama_log_callback(_receive)  # kept alive here: llama.cpp holds only the pointer
llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
