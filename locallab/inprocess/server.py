"""A server in the background of a notebook or script."""

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
from locallab.errors import ConfigError, LocalLabError, TunnelError
from locallab.inprocess.launch import check, engine_layers, layers, open_app
from locallab.inprocess.status import Status
from locallab.keys import Keyring, KeyStore, new_secret, with_key_file
from locallab.models import Progress, Registry, adhoc
from locallab.server import listener, runner, tls
from locallab.settings import EngineSettings, Provider, ServerSettings
from locallab.tunnel import announcement, configured_tunnel

if TYPE_CHECKING:
    from openai import OpenAI

WHERE = "start()"
SUPERVISORS = ("supervise", "max_deaths")
"""Settings that only `locallab serve` has, besides openmp."""
WIDTH = 130
"""Columns of the status line, padded to cover the previous one."""

log = logging.getLogger(__name__)


def start(
    model: str | None = None, *, tunnel: bool | Provider | None = None, progress: Progress | None = None, **options: Any
) -> Server:
    """Load `model` and serve it from a thread of this program; returns once it answers, with `tunnel` at a public address.

    Without a model it is the best recommended one that fits this machine and is available, else one that runs everywhere.
    `options` are settings of `locallab serve` by name, such as `context=8192`; they override LOCALLAB_* variables.
    The server is part of the program's own process, so no supervisor can start it again, as that of `locallab serve` does: the
    settings `supervise` and `max_deaths` are refused. So is `openmp`, which counts when llama.cpp is loaded: by the import of
    this function. The port defaults to any free one. `progress` is called with the fetched and the total bytes (None: unknown).
    Raises ConfigError, UnknownModel, SourceError, ModelLoadError, TunnelError; then nothing is left running.
    """
    return Server({**options, "model": model, "tunnel": tunnel}, progress)


class Server:
    """A running server, made by `start`. Use it in a `with` statement, or end it with `stop`.

    `model` is the id of the model it was started with, `local_url` its address on this machine, and `api_key` the key that
    clients must send: None if none is required; created for this server only unless configured.
    """

    def __init__(self, options: Mapping[str, Any], progress: Progress | None = None) -> None:
        check(WHERE, options, ServerSettings, EngineSettings)
        for name in SUPERVISORS:
            if name in options:
                raise ConfigError(f"{WHERE}: {name}: only `locallab serve` has a supervisor")
        if "openmp" in options:
            raise ConfigError(
                f"{WHERE}: openmp: llama.cpp is loaded already; set {settings.variable('openmp')} before the import"
            )
        server = with_key_file(settings.resolve(ServerSettings, *layers(ServerSettings, WHERE, options, {"port": 0})))
        if server.uds and not {"host", "port"}.isdisjoint(options):
            raise ConfigError(f"{WHERE}: uds: is an address of its own, which cannot be combined with host and port")
        engine = engine_layers(WHERE, options)
        registry = Registry.discover(server.registry)
        if server.model:
            registry.resolve(server.model)  # a wrong name fails first
        adhoc.adapters(server.lora)  # and a wrong file

        def announce(url: str) -> None:
            log.warning("the public address is %s", url)

        def complain(error: TunnelError) -> None:
            log.error("no public address: %s", error)

        with contextlib.ExitStack() as running:
            certificates = tls.configured(server)
            sock = running.enter_context(listener.opened(server))
            self.local_url = listener.url(sock, certificates is not None, certificates.name if certificates else str)
            self._cert = server.tls_cert
            self._tunnel = configured_tunnel(server, listener.url(sock, certificates is not None), announce, complain)
            public = listener.is_public(sock) or self._tunnel is not None
            keyring = Keyring(server, KeyStore(), public)
            if keyring.required and server.api_key is None:  # of stored keys only the hashes are known
                server = dataclasses.replace(server, api_key=new_secret())
                keyring.close()
                keyring = Keyring(server, KeyStore(), public)
            running.callback(keyring.close)
            self.api_key = server.api_key
            self._pool, app, spec = running.enter_context(open_app(registry, server, engine, keyring, self._tunnel))
            self.model = spec.id
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
        return f"<locallab server of {self.model} at {self.url}>"  # shown in notebooks: without the key

    @property
    def url(self) -> str:
        """The public address while there is one, else the local one."""
        return (self._tunnel.url if self._tunnel else None) or self.local_url

    def openai(self, **options: Any) -> OpenAI:
        """Return a client of the openai package for this server's local address. `options` go to the client."""
        try:
            from openai import OpenAI
        except ImportError:
            raise LocalLabError("the openai package is not installed: pip install openai") from None
        import httpx

        web = self.local_url
        if web.startswith("unix:"):
            transport = httpx.HTTPTransport(uds=web.removeprefix("unix:"))
            web, options = "http://localhost", {"http_client": httpx.Client(transport=transport), **options}
        elif self._cert:
            options = {"http_client": httpx.Client(verify=tls.trusting(self._cert)), **options}
        return OpenAI(base_url=f"{web}/v1", api_key=self.api_key or "none", **options)

    def announcement(self) -> str:
        """Return the address, as text and as a QR code, the key, and client examples."""
        return announcement(self.url, self.model, self.api_key or "none")

    def status(self) -> Status:
        """Return the current status."""
        return Status.of(self._pool, self._tunnel.facts() if self._tunnel else None, time.monotonic())

    def watch(self, seconds: float = float("inf"), every: float = 5.0) -> None:
        """Print the status every `every` seconds, in place, until interrupted or for `seconds`."""
        deadline, before = time.monotonic() + seconds, self.status()
        with contextlib.suppress(KeyboardInterrupt):
            while (left := deadline - time.monotonic()) > 0:
                time.sleep(min(every, left))
                now = self.status()
                print(f"\r{now.line(before):<{WIDTH}}", end="", flush=True)
                before = now
        print()

    def stop(self) -> None:
        """Close the tunnel, let running requests finish for `grace` seconds and free the memory. May be called again."""
        atexit.unregister(self.stop)
        self._running.close()
