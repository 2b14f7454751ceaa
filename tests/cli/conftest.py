from __future__ import annotations

import pytest

from tests.support.wait import free_port


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> str:
    """The default address of the server, on a free port: tests must not find a real server."""
    port = free_port()
    monkeypatch.setenv("LOCALLAB_PORT", str(port))
    return f"http://127.0.0.1:{port}"
