from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.conftest import serve, served, shared
from tests.test_end_to_end import Process, serving

__all__ = ["serve", "served", "shared"]


@pytest.fixture(scope="session")
def live(model_path: Path) -> Iterator[Process]:
    """`locallab serve` with the embedded model."""
    with serving(model_path, "--context", "4096") as process:
        yield process


@pytest.fixture
def unused_port() -> int:
    """One that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])
