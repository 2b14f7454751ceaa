"""Waiting for other threads and processes, and free ports."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

PATIENCE = 60.0
"""Seconds that a busy machine may take for what an idle one does in milliseconds."""
LONG_PATIENCE = 300.0
"""Seconds that a busy machine may take to load a real model, or to answer with it."""


def until(holds: Callable[[], bool], patience: float = PATIENCE) -> None:
    """Return once `holds()`; fail after `patience` seconds."""
    deadline = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])
