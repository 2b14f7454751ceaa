from __future__ import annotations

import socket

import pytest

from tests.server.conftest import serve, served, shared

__all__ = ["serve", "served", "shared"]


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of this machine's server, where nobody listens: other servers of the machine are none of the tests'."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    monkeypatch.setenv("LOCALLAB_PORT", str(port))
    return f"http://127.0.0.1:{port}"
