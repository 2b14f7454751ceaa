"""A server with a fake model at an address of any kind, under the server's own runner."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from locallab.keys import Keyring, KeyStore
from locallab.server import listener, runner
from locallab.server.app import create_app
from locallab.settings import ServerSettings
from tests.support.fake_pool import making


@contextlib.contextmanager
def behind(folder: Path, **settings: str) -> Iterator[int | str]:
    """Serve a fake model at the address that the settings call for; yield its port or path."""
    server = ServerSettings(**{"host": "127.0.0.1", "port": 0, "grace": 0, **settings})  # type: ignore[arg-type]
    with making(folder) as made, listener.opened(server) as sock:
        made.pool.load_now("tiny:1b")
        keyring = Keyring(server, KeyStore(folder / "keys.json"))
        running = runner.Background(create_app(made.pool, server, keyring), sock, server)
        try:
            yield server.uds or sock.getsockname()[1]
        finally:
            running.stop()
