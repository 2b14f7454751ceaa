"""Threads with a large stack, for libraries that recurse as deep as their input is long."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

_LOCK = threading.Lock()


@contextlib.contextmanager
def stack_size(size: int) -> Iterator[None]:
    """Give threads that are started within the block a stack of `size` bytes of address space, a multiple of 4 KiB. Others
    that start meanwhile get it too, which costs nothing: memory is taken where it is used."""
    with _LOCK:
        before = threading.stack_size(size)
        try:
            yield
        finally:
            threading.stack_size(before)


def executor(size: int, name: str) -> ThreadPoolExecutor:
    """Start one thread with a stack of `size` bytes; shutting the executor down gives its memory back."""
    thread = ThreadPoolExecutor(1, thread_name_prefix=name)
    with stack_size(size):
        thread.submit(int).result()
    return thread
