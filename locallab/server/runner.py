"""Runs the app under uvicorn on a socket bound beforehand, and stops it well.

The first SIGINT or SIGTERM stops accepting; what runs gets `settings.grace` seconds to finish, over HTTP and WebSocket alike.
Then the app's lifespan ends, which ends its streams, and connections still open soon after are cut. The exit status is 0.
A second signal ends the process at once with the status 128 + its number.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from locallab.errors import ConfigError, LocalLabError
from locallab.server.websocket_protocol import WebSocketProtocol
from locallab.settings import ServerSettings

KEEP_ALIVE = 75
"""Seconds an idle connection stays open: longer than the 60 s of usual proxies, so that it is they who close it."""

MESSAGE_ROOM = 4
"""How many times the largest body the server reads of a WebSocket message: up to there the client is told, and may go on;
a message beyond it must not fill the memory, and ends the connection (code 1009)."""

PING = 20.0
"""Seconds between pings to a WebSocket client, and seconds that it has to answer one."""

ENDING = 2.0
"""Seconds that streams get to deliver their end once the app has ended them."""

log = logging.getLogger(__name__)


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to the address, not yet listening: a client is refused, not kept waiting, until the app is up.

    Raises ConfigError when the address is wrong or taken.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not a host name"
        raise ConfigError(f"host: {host!r} is no address of this machine: {reason}") from None
    family, kind, protocol, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise _refusal(error, host, port) from None
    return sock


def is_public(sock: socket.socket) -> bool:
    """Whether other machines can reach the socket."""
    address: str = sock.getsockname()[0]
    return not ipaddress.ip_address(address.partition("%")[0]).is_loopback


def url(sock: socket.socket) -> str:
    """Where a client on this machine reaches the socket."""
    host, port = sock.getsockname()[:2]
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{local}]:{port}" if ":" in local else f"http://{local}:{port}"


def serve(app: Any, sock: socket.socket, settings: ServerSettings, on_ready: Callable[[], None]) -> int:
    """Serves `app` on `sock` until a signal; returns the exit status. `on_ready` is called once when connections are taken.

    Runs in the main thread. Raises ConfigError when another process has taken the port meanwhile.
    """
    try:
        _listening(app, sock, settings, on_ready).run([sock])
    except SystemExit as error:  # uvicorn's way to tell that the lifespan could not start; it has logged why
        return int(error.code or 0)
    return 0


class Background:
    """Serves `app` on `sock` in a thread of its own from when it is made, until `stop`. Signals stay the program's."""

    def __init__(self, app: Any, sock: socket.socket, settings: ServerSettings) -> None:
        """Returns when connections are taken. Raises ConfigError as `serve`, and LocalLabError when the app cannot start."""
        self._settled = threading.Event()
        self._ready = False
        self._server = _listening(app, sock, settings, self._set_ready, signals=False)
        self._thread = threading.Thread(target=self._run, args=(sock,), name="server", daemon=True)
        self._thread.start()
        self._settled.wait()
        if not self._ready:
            self._thread.join()
            raise LocalLabError("the server could not start; its log says why")

    def stop(self) -> None:
        """As a signal stops `serve`; returns when it has ended. May be called again."""
        self._server.should_exit = True
        self._thread.join()

    def _set_ready(self) -> None:
        self._ready = True
        self._settled.set()

    def _run(self, sock: socket.socket) -> None:
        try:
            with contextlib.suppress(SystemExit):
                self._server.run([sock])
        finally:
            self._settled.set()


def _listening(
    app: Any, sock: socket.socket, settings: ServerSettings, on_ready: Callable[[], None], signals: bool = True
) -> _Server:
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        ws=WebSocketProtocol,
        ws_max_size=MESSAGE_ROOM * settings.max_body_mib << 20,
        ws_ping_interval=PING,
        ws_ping_timeout=PING,
        ws_per_message_deflate=False,  # a token is a message: there is nothing to compress
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # the app's own middleware believes those it is told to
        timeout_keep_alive=KEEP_ALIVE,
    )
    try:
        sock.listen(
            config.backlog
        )  # here, for uvloop does not tell when it fails: two processes may bind one port, one may listen
    except OSError as error:
        raise _refusal(error, settings.host, settings.port) from None
    return _Server(config, settings, on_ready, signals)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, settings: ServerSettings, on_ready: Callable[[], None], signals: bool) -> None:
        super().__init__(config)
        self._signals = signals
        self._grace = settings.grace
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.should_exit:
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        await self._drain(self._grace)
        await self.lifespan.shutdown()
        await self._drain(ENDING)
        self._cut()
        await self._drain(ENDING)

    async def _drain(self, seconds: float) -> None:
        """Waits until nothing runs, at most `seconds`."""
        loop, state = asyncio.get_running_loop(), self.server_state
        deadline = loop.time() + seconds
        while (state.connections or state.tasks) and loop.time() < deadline:
            await asyncio.sleep(0.02)

    def _cut(self) -> None:
        """Drops what is still open. To the app it looks as if the client had left, which ends the request."""
        if self.server_state.connections:
            log.warning("cut %d connections that did not end in time", len(self.server_state.connections))
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but a signal is not raised again at the end: a stop that was asked for is no failure."""
        if not self._signals:
            yield
            return
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("the server must run in the main thread")
        before = {number: signal.signal(number, lambda number, _: self._stop(number)) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int) -> None:
        if self.should_exit:
            os._exit(128 + number)
        self.should_exit = True
        log.info("stopping: what runs has %g s to finish; a second signal stops at once", self._grace)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _refusal(error: OSError, host: str, port: int) -> ConfigError:
    reasons = {
        errno.EADDRINUSE: f"port: {port} on {host} is in use; choose another with --port, or 0 for any free one",
        errno.EACCES: f"port: {port} needs more rights; choose one above 1023",
        errno.EADDRNOTAVAIL: f"host: {host!r} is no address of this machine",
    }
    return ConfigError(reasons.get(error.errno or 0, f"cannot listen on {host} port {port}: {error.strerror}"))
