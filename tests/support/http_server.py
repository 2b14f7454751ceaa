"""A LocalLab server with a fake engine on a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import openai
import uvicorn
from starlette.routing import BaseRoute

from locallab.keys import Keyring, KeyStore
from locallab.models.spec import Adapter, FileSource
from locallab.models.store import Store
from locallab.pool import Pool
from locallab.server import listener, runner
from locallab.server.app import create_app
from locallab.server.connections import STOPPING
from locallab.settings import EngineSettings, ServerSettings
from tests.support.fake_engine import FakeEngine, FakeMemory, registry


@dataclasses.dataclass
class Served:
    """A running server on a real socket: its client, its engine, its pool."""

    url: str
    http: httpx.Client
    pool: Pool

    @property
    def engine(self) -> FakeEngine:
        assert self.pool.current is not None
        return self.pool.current.engine  # type: ignore[return-value]

    @property
    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, http_client=self.http)

    def script(self, *steps: Any) -> None:
        """Set the steps that the engine plays for every request."""
        self.engine.script = lambda prompt, params: list(steps)


@contextlib.contextmanager
def running(app: Any, port: int = 0) -> Iterator[str]:
    """Serve the app from a thread; yield its URL."""
    config = uvicorn.Config(
        app, port=port, log_config=None, access_log=False, lifespan="on", timeout_graceful_shutdown=5, proxy_headers=False
    )
    server = uvicorn.Server(config)
    started = threading.Event()
    startup = server.startup

    stopping, shutdown = asyncio.Event(), server.shutdown

    async def starting(**options: Any) -> None:
        server.lifespan.state[STOPPING] = stopping
        await startup(**options)
        started.set()

    async def ending(**options: Any) -> None:
        stopping.set()
        await shutdown(**options)

    server.startup, server.shutdown = starting, ending  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert started.wait(30)
        host, port = server.servers[0].sockets[0].getsockname()[:2]
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@contextlib.contextmanager
def running_as_served(app: Any, port: int = 0) -> Iterator[str]:
    """The same with all that `locallab serve` does for connections."""
    with listener.bind("127.0.0.1", port) as sock:
        server = runner.Background(app, sock, ServerSettings(grace=0))
        try:
            yield listener.url(sock)
        finally:
            server.stop()


Serve = Callable[..., "contextlib.AbstractContextManager[Served]"]


def start_in(folder: Path) -> Serve:
    @contextlib.contextmanager
    def start(
        load: str | None = "tiny:1b",
        engine: dict[str, Any] | None = None,
        public: bool = False,
        routes: Sequence[BaseRoute] = (),
        tunnel: Any = None,
        room: int = 10,
        pool: dict[str, Any] | None = None,
        adapters: Sequence[str] = (),
        under: Callable[[Any, int], contextlib.AbstractContextManager[str]] = running,
        **settings: Any,
    ) -> Iterator[Served]:
        engines: list[FakeEngine] = []

        def make(path: Path, settings: EngineSettings, post: Any) -> Any:
            more = {"adapters": adapters} if path.stem.startswith("tiny") else {}
            engines.append(FakeEngine(path, settings, post, **{**(engine or {}), **more}))
            return engines[-1]

        served = ServerSettings(**{"rate_limit": False, **settings})  # a test is no slow client
        memory = FakeMemory(room * 10**8, 10**8, lambda: list(engines))
        fixed = {"on_demand": served.on_demand, "keep_alive": served.keep_alive, "memory": memory}
        options: dict[str, Any] = {**fixed, **(pool or {})}
        models = Pool(registry(folder), Store(folder / "store"), engine=make, grace=0.0, **options)
        models.registry.adapt(models.registry.get("tiny:1b"), [_adapter(folder, name) for name in adapters])
        if load:
            models.load_now(load)
        keyring = Keyring(served, KeyStore(folder / "keys.json"), public)
        app = create_app(models, served, keyring, tunnel)
        app.router.routes.extend(routes)
        with under(app, settings.get("port", 0)) as url, httpx.Client(base_url=url, timeout=30) as client:
            yield Served(url, client, models)

    return start


def only_prompt(served: Served) -> str:
    [(prompt, _)] = served.engine.submitted
    return prompt


def _adapter(folder: Path, name: str) -> Adapter:
    """Return an adapter of tiny:1b; its scale is 0.5."""
    path = folder / f"{name}.lora.gguf"
    path.write_bytes(b"GGUF")
    return Adapter(name=name, source=FileSource(path), scale=0.5)
