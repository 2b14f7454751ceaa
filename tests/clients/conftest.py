from __future__ import annotations

import socket

import pytest

from tests.server.conftest import serve, served, shared

__all__ = ["serve", "served", "shared"]


@pytest.fixture
def unused_port() -> int:
    """One that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])
