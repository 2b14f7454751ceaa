"""A cluster without Ray: a front and its replicas in one process, over real connections."""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from locallab.cluster.entrance import front_app, naming
from locallab.cluster.replica import ReplicaServer, Ticket
from locallab.cluster.routing import Route, Table
from locallab.cluster.wire import NUMBER
from locallab.errors import ReplicaGone
from locallab.keys import Keyring, KeyStore
from locallab.models.store import Store
from locallab.pool import Pool
from locallab.server.cluster import Told, What
from locallab.settings import ServerSettings
from tests.support.fake_engine import FakeEngine, FakeMemory, registry
from tests.support.http_server import running, running_as_served

VARIES = re.compile(
    r'"(?:id|item_id|created\w*|completed_at|\w*_(?:ms|second|seconds|duration|at)|previous_\w+)":\s*(?:"[^"]*"|-?[\d.e+-]+|null)'
    r"|\b(?:resp|msg|rs|chatcmpl|cmpl|fc|call)_?-?[0-9a-f]{16,}"
)
"""What differs between two answers to one request: ids and times."""

MODEL = "tiny:1b"


class LocalReplica:
    """A replica with a fake engine; `kill` ends it as SIGKILL does, for those that it is connected with."""

    def __init__(self, folder: Path, name: str, settings: ServerSettings, engine: dict[str, Any], model: str = MODEL) -> None:
        self.name = name
        self.model = model
        self.engines: list[FakeEngine] = []
        self.alive = True
        self.visits = 0

        def make(path: Path, settings: Any, post: Any) -> Any:
            self.engines.append(FakeEngine(path, settings, post, **engine))
            return self.engines[-1]

        memory = FakeMemory(10**9, 10**8, lambda: list(self.engines))
        folder.mkdir()
        models = Pool(registry(folder), Store(folder / "store"), engine=make, grace=0.0, on_demand="refuse", memory=memory)
        models.load_now(model)
        self.server = ReplicaServer(models, settings, name, model, "127.0.0.1")
        self._writers: set[asyncio.StreamWriter] = set()
        connected = self.server._connected

        async def noting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._writers.add(writer)
            await connected(reader, writer)

        self.server._connected = noting  # type: ignore[method-assign]

    @property
    def engine(self) -> FakeEngine:
        return self.engines[-1]

    def kill(self) -> None:
        self.alive = False
        loop = self.server._server.get_loop()

        def cut() -> None:
            self.server._server.close()
            for writer in self._writers:
                writer.transport.abort()

        loop.call_soon_threadsafe(cut)


class LocalCluster:
    """Places requests as the router does; a replica that was killed is known to be gone only once somebody has met it."""

    def __init__(self, replicas: list[LocalReplica]) -> None:
        self.replicas = replicas
        self.table = Table()
        self.table.set_replicas(each.name for each in replicas)
        self._started: set[str] = set()
        self._requests = 0
        self._ending: list[asyncio.Future[None]] = []

    @contextlib.asynccontextmanager
    async def place(self, model: str, route: Route, *, known: bool) -> AsyncIterator[Ticket]:
        for each in self.replicas:
            if each.name not in self._started:
                self._started.add(each.name)
                await each.server.start()
        fitting = [each.name for each in self.replicas if each.model == model]
        chosen = next((name for name in self.table.choose(route, fitting) if name in self.table.replicas), None)
        if chosen is None:
            raise ReplicaGone("none is left")
        replica = next(each for each in self.replicas if each.name == chosen)
        if not replica.alive:
            self.table.forget(chosen)
        self._requests += 1
        number = self._requests
        self.table.send(number, route, chosen)
        replica.visits += 1
        name = secrets.token_bytes(NUMBER)
        visit = replica.server.visit(route, name)
        # as with Ray, a request may be there before its visit
        ticket = replica.server.address.ticket(name) if known and self._requests % 2 else await anext(visit)
        try:
            yield ticket
        except BaseException:
            await visit.aclose()
            raise
        finally:
            self.table.end(number)
            self._ending.append(asyncio.ensure_future(_drain(visit)))

    def ending_with(self, app: Any) -> Any:
        """Return the app with a lifespan that ends the replicas, in their event loop."""

        async def ending(scope: Any, receive: Any, send: Any) -> None:
            async def closing(message: Any) -> None:
                if message["type"].startswith("lifespan.shutdown."):
                    for each in self.replicas:
                        if each.name in self._started:
                            await each.server.close()
                    await asyncio.gather(*self._ending, return_exceptions=True)
                await send(message)

            await app(scope, receive, closing if scope["type"] == "lifespan" else send)

        return ending

    default = MODEL

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(each.model for each in self.replicas))

    async def ready(self) -> bool:
        return bool(await self.ask())

    async def ask(self, what: What = "") -> list[Told]:
        return [await each.server.tell(what) for each in self.replicas if each.alive and each.name in self._started]


async def _drain(visit: AsyncIterator[Ticket]) -> None:
    async for _ in visit:
        pass


class Cluster:
    """A running front with its replicas."""

    def __init__(
        self,
        url: str,
        http: httpx.Client,
        replicas: list[LocalReplica],
        placement: LocalCluster,
        stop: Callable[[], None],
    ) -> None:
        self.url = url
        self.stop = stop
        self.http = http
        self.replicas = replicas
        self.placement = placement

    def script(self, *steps: Any) -> None:
        """Set the steps that each engine plays for every request."""
        for each in self.replicas:
            each.engine.script = lambda prompt, params: list(steps)

    def busy(self) -> LocalReplica:
        """Return the replica that has a request."""
        [found] = [each for each in self.replicas if each.engine._running]
        return found


@contextlib.contextmanager
def cluster_in(
    folder: Path,
    count: int = 2,
    engine: dict[str, Any] | None = None,
    others: tuple[str, ...] = (),
    stops: bool = False,
    **settings: Any,
) -> Iterator[Cluster]:
    """Run a front in front of so many replicas, and one of each of the `others`. Its keys are in folder / "keys.json". One that
    `stops` does so as `locallab serve`, without a grace."""
    server = ServerSettings(**{"rate_limit": False, **settings})
    replicas = [LocalReplica(folder / f"replica-{at}", f"r{at}", server, engine or {}) for at in range(count)]
    replicas += [LocalReplica(folder / f"other-{at}", f"o{at}", server, engine or {}, name) for at, name in enumerate(others)]
    placement = LocalCluster(replicas)
    models = registry(folder)
    keyring = Keyring(server, KeyStore(folder / "keys.json"))
    app = front_app(
        models, naming(models, {name: models.get(name).id for name in (MODEL, *others)}), server, keyring, placement
    )
    try:
        with contextlib.ExitStack() as running_front, contextlib.ExitStack() as clients:
            url = running_front.enter_context((running_as_served if stops else running)(placement.ending_with(app)))
            client = clients.enter_context(httpx.Client(base_url=url, timeout=30))
            yield Cluster(url, client, replicas, placement, running_front.close)
    finally:
        for each in replicas:
            each.server._pool.close()  # again, for those that were never asked
