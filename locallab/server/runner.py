"""Runs the app under uvicorn on a socket bound beforehand, and shuts it down gracefully.

The first SIGINT or SIGTERM stops accepting connections; running requests, HTTP and WebSocket, get `settings.grace` seconds to
finish. Then the app's lifespan ends, which ends its streams, and connections still open soon after are cut. The exit status is
0. A second signal ends the process at once with status 128 + its number, unless a supervisor sees to that: a signal to the
group of both processes reaches this one twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn

from locallab.errors import LocalLabError
from locallab.server import listener, tls
from locallab.server.connections import STOPPING, ConnectionLimits
from locallab.server.http_protocol import HttpProtocol
from locallab.server.websocket_protocol import WebSocketProtocol
from locallab.settings import ServerSettings

KEEP_ALIVE = 75
"""Seconds an idle connection stays open: longer than the usual 60 s of proxies, so that they close it first."""

MESSAGE_ROOM = 4
"""Limit of a WebSocket message as a multiple of the largest body. A message between the two gets an error event; a larger one
ends the connection (code 1009), so that it does not fill the memory."""

PING = 20.0
"""Seconds between pings to a WebSocket client, and for its answer to each."""

ENDING = 2.0
"""Seconds for streams to deliver their end once the app has ended them."""

COLLECTIONS = (10_000, 50, 100)
"""Thresholds of garbage collection. With Python's own, decoding a body of a million lists looks through all of them time and
again, and the event loop stands still for seconds."""

ALLOCATOR = {-8: 2, -3: 4 << 20}
"""Settings of glibc's malloc (mallopt): M_ARENA_MAX, pools of memory for the threads; M_MMAP_THRESHOLD, bytes from which a
block goes back to the system when it is freed. By default each thread that tokenizes a long text keeps what that took."""

log = logging.getLogger(__name__)


class _Server(uvicorn.Server):
    """A server that listens on `sock` from the start. Raises ConfigError if another process has taken the port meanwhile."""

    def __init__(
        self,
        app: Any,
        sock: socket.socket,
        settings: ServerSettings,
        on_ready: Callable[[], None],
        signals: bool = True,
        supervised: bool = False,
    ) -> None:
        self._limits = ConnectionLimits(settings)
        self._certificates = tls.configured(settings)
        config = uvicorn.Config(
            app,
            loop="uvloop",
            http=functools.partial(HttpProtocol, limits=self._limits),  # type: ignore[arg-type]
            ws=WebSocketProtocol,
            ws_max_size=MESSAGE_ROOM * settings.max_body_mib << 20,
            ws_ping_interval=PING,
            ws_ping_timeout=PING,
            ws_per_message_deflate=False,  # a message is one token: too short to compress
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # the app's own middleware trusts the configured ones
            timeout_keep_alive=KEEP_ALIVE,
        )
        listener.listen(sock, config.backlog)  # here, as uvloop ignores a failure
        super().__init__(config)
        self._host = settings.host
        self._signals = signals
        self._supervised = supervised
        self._grace = settings.grace
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.lifespan.state[STOPPING] = self._stopping = asyncio.Event()
        sockets = sockets or []
        twin = listener.loopback_twin(sockets[0]) if self._host == "localhost" and sockets else None
        if twin is not None:
            sockets = [*sockets, twin]
        try:
            await super().startup(sockets if self._certificates is None else [])
        finally:
            if twin is not None and not self.started:
                twin.close()
        if self._certificates is not None:
            self.servers += [self._encrypted(each, self._certificates) for each in sockets]
        if not self.should_exit:
            self._on_ready()

    def _encrypted(self, sock: socket.socket, certificates: tls.Certificates) -> Any:
        state = self.server_state
        protocol: Any = self.config.http_protocol_class
        make = functools.partial(protocol, config=self.config, server_state=state, app_state=self.lifespan.state)
        return tls.TlsListener(sock, certificates, self._limits, make, state.connections)

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:  # every second
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                connection.check(now)  # type: ignore[union-attr]
            if self._certificates is not None:
                self._certificates.refresh()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._stopping.set()
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        await self._drain(self._grace)
        await self.lifespan.shutdown()
        await self._drain(ENDING)
        if self.server_state.connections:
            log.warning("cut %d connections that did not end in time", len(self.server_state.connections))
        for connection in list(self.server_state.connections):
            connection.transport.abort()  # to the app a disconnected client, which ends the request
        await self._drain(ENDING)

    async def _drain(self, seconds: float) -> None:
        """Wait until no connection or task is left, at most `seconds`."""
        loop, state = asyncio.get_running_loop(), self.server_state
        deadline = loop.time() + seconds
        while (state.connections or state.tasks) and loop.time() < deadline:
            await asyncio.sleep(0.02)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture as uvicorn does, but do not raise the signal again at the end: a requested stop is not a failure."""
        if not self._signals:
            yield
            return
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("the server must run in the main thread")
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit and not self._supervised:
            os._exit(128 + sig)
        if self.should_exit:
            return
        self.should_exit = True
        log.info("stopping: running requests have %g s to finish; a second signal stops at once", self._grace)


def serve(
    app: Any, sock: socket.socket, settings: ServerSettings, on_ready: Callable[[], None], supervised: bool = False
) -> int:
    """Serve `app` on `sock` until a signal; return the exit status. `on_ready` is called once connections are accepted.

    Must run in the main thread; sets the process's garbage collection and its allocator. Raises ConfigError if another process
    has taken the port meanwhile.
    """
    gc.freeze()
    gc.set_threshold(*COLLECTIONS)
    _set_allocator()
    try:
        _Server(app, sock, settings, on_ready, supervised=supervised).run([sock])
    except SystemExit as error:  # raised by uvicorn if the lifespan cannot start; it has logged why
        return int(error.code or 0)
    return 0


def _set_allocator() -> None:
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        for setting, value in ALLOCATOR.items():
            mallopt(setting, value)


class Background:
    """A server of `app` on `sock` in a thread of its own, until `stop`. The program keeps its signal handlers."""

    def __init__(self, app: Any, sock: socket.socket, settings: ServerSettings) -> None:
        """Return once connections are accepted. Raises ConfigError as `serve` does, LocalLabError if the app cannot start."""
        self._settled = threading.Event()
        self._ready = False
        self._server = _Server(app, sock, settings, self._set_ready, signals=False)
        self._thread = threading.Thread(target=self._run, args=(sock,), name="server", daemon=True)
        self._thread.start()
        self._settled.wait()
        if not self._ready:
            self._thread.join()
            raise LocalLabError("the server could not start; its log says why")

    def stop(self) -> None:
        """Stop as a signal stops `serve`; return when the server has ended. May be called again."""
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
