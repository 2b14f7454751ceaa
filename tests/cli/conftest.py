from __future__ import annotations

import pytest

from tests.support.wait import free_port


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of this machine's server, where nobody listens: other servers of the machine are none of the tests'."""
    port = free_port()
    monkeypatch.setenv("LOCALLAB_PORT", str(port))
    return f"http://127.0.0.1:{port}"
