"""A whole server in the background of a notebook or script."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import logging
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from locallab import settings
from locallab.errors import LocalLabError, TunnelError
from locallab.inprocess.launch import check, choose, engine_layers, layers, warn_of_idle_gpu
from locallab.inprocess.status import Status
from locallab.keys import Keyring, KeyStore, new_secret
from locallab.models import Progress, Registry, Store
from locallab.pool import Pool
from locallab.server import runner
from locallab.server.app import create_app
from locallab.settings import EngineSettings, ServerSettings
from locallab.tunnel import announcement, wanted

if TYPE_CHECKING:
    from openai import OpenAI

WHERE = "start()"
WIDTH = 130
"""Columns of the status line: a shorter one is filled up, to cover the one before."""

log = logging.getLogger(__name__)


def start(model: str | None = None, *, tunnel: bool | None = None, progress: Progress | None = None, **options: Any) -> Server:
    """Loads `model` and serves it from a thread of this program; returns when it answers, with `tunnel` from everywhere.

    None is the best recommended model that fits this machine and can be had, else one that runs everywhere.
    `options` are settings of `locallab serve` by their names, such as `context=8192`; they go before LOCALLAB_* variables.
    The port is any free one unless given. `progress` is called with the bytes fetched and all bytes (None: not known).
    Raises ConfigError, UnknownModel, SourceError, ModelLoadError, TunnelError; nothing is left running then.
    """
    return Server({**options, "model": model, "tunnel": tunnel}, progress)


class Server:
    """A running server; `start` makes one. To be used in a `with` statement, or stopped with `stop`.

    `model` is the id of the model it was started with, `local_url` its address on this machine, and `api_key` the key that
    clients must send: None where none is asked for, and made for this server only unless one was given.
    """

    def __init__(self, given: Mapping[str, Any], progress: Progress | None = None) -> None:
        check(WHERE, given, ServerSettings, EngineSettings)
        server = settings.resolve(ServerSettings, *layers(ServerSettings, WHERE, given, {"port": 0}))
        engine = engine_layers(WHERE, given)
        registry = Registry.discover(server.registry)
        warn_of_idle_gpu()
        self.model = choose(registry, server.model, engine).id
        with contextlib.ExitStack() as running:
            sock = running.enter_context(contextlib.closing(runner.bind(server.host, server.port)))
            self.local_url = runner.url(sock)
            self._tunnel = wanted(server, self.local_url, self._moved, self._complain)
            server, keyring = _with_key(server, runner.is_public(sock) or self._tunnel is not None)
            self.api_key = server.api_key
            self._pool = _pool(registry, server, engine)
            running.callback(self._pool.close)
            app = create_app(self._pool, server, keyring, self._tunnel)
            self._pool.load_now(self.model, progress)
            running.callback(runner.Background(app, sock, server).stop)
            if self._tunnel is not None:
                running.callback(self._tunnel.close)
                self._tunnel.start()
                self._tunnel.wait()
            self._running = running.pop_all()
        atexit.register(self.stop)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<locallab server of {self.model} at {self.url}>"  # notebooks show it: no key

    @property
    def url(self) -> str:
        """The public address while there is one, else the local one."""
        return (self._tunnel.url if self._tunnel else None) or self.local_url

    def openai(self, **options: Any) -> OpenAI:
        """A client of the openai package for this server, by its local address. `options` go to the client."""
        try:
            from openai import OpenAI
        except ImportError:
            raise LocalLabError("the openai package is not installed: pip install openai") from None
        return OpenAI(base_url=f"{self.local_url}/v1", api_key=self.api_key or "none", **options)

    def announcement(self) -> str:
        """The address, as a QR code too, the key, and how clients use both."""
        return announcement(self.url, self.model, self.api_key or "none")

    def status(self) -> Status:
        """How it is doing now."""
        return Status.of(self._pool, self._tunnel.facts() if self._tunnel else None, time.monotonic())

    def watch(self, seconds: float = float("inf"), every: float = 5.0) -> None:
        """Prints a line about what is going on, over and over in the same place, until interrupted."""
        deadline, before = time.monotonic() + seconds, self.status()
        with contextlib.suppress(KeyboardInterrupt):
            while (left := deadline - time.monotonic()) > 0:
                time.sleep(min(every, left))
                now = self.status()
                print(f"\r{now.line(before):<{WIDTH}}", end="", flush=True)
                before = now
        print()

    def stop(self) -> None:
        """Lets what runs finish for `grace` seconds, closes the tunnel and frees the memory. May be called again."""
        atexit.unregister(self.stop)
        self._running.close()

    def _moved(self, url: str) -> None:
        log.warning("the public address is %s", url)

    def _complain(self, error: TunnelError) -> None:
        log.error("no public address: %s", error)


def _with_key(server: ServerSettings, public: bool) -> tuple[ServerSettings, Keyring]:
    """The settings with a key if one is asked for: of the keys on this machine only the hashes are known."""
    keyring = Keyring(server, KeyStore(), public)
    if keyring.required and server.api_key is None:
        server = dataclasses.replace(server, api_key=new_secret())
        keyring = Keyring(server, KeyStore(), public)
    return server, keyring


def _pool(registry: Registry, server: ServerSettings, engine: Any) -> Pool:
    options: Any = {"grace": server.grace, "on_demand": server.on_demand, "keep_alive": server.keep_alive}
    return Pool(registry, Store(), engine, **options)
