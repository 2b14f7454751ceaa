"""The cluster as Ray Serve runs it: a deployment for each model, whose replicas have an engine, and one of fronts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import msgspec
import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from locallab import logs
from locallab.cluster import choices
from locallab.cluster.config import ClusterConfig, ModelConfig, as_dict, parse
from locallab.cluster.replica import Address, ReplicaServer, Ticket
from locallab.cluster.request_router import ADDRESS, STATS, PrefixRouter, packed
from locallab.cluster.routing import Route
from locallab.cluster.scaling import FIGURE, QueuedTokens
from locallab.cluster.wire import NUMBER
from locallab.errors import EngineFailure, ReplicaGone
from locallab.inprocess.launch import engine_layers, open_pool
from locallab.models import Registry, adhoc
from locallab.server.cluster import Told, What
from locallab.settings import ServerSettings, resolve, variable

PUBLISHED_EVERY = 1.0
"""Seconds from one publication of a replica to the next."""

HEALTH_EVERY, HEALTH_PATIENCE = 2.0, 20.0
"""Seconds between checks of a replica, and for its answer: a step of a busy CPU may hold the interpreter for a while."""

AT_ONCE = 1024
"""Requests that a replica may have, in its engine's queue too: that refuses what is too much, as that of a server does."""

FIRST_TICKET = 600.0
"""Seconds that a request waits for a replica that is started for it."""

TELLING = 3.0
"""Seconds for replicas to describe themselves."""

QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)

log = logging.getLogger(__name__)


class EngineReplica:
    """A process with a model."""

    async def __init__(self, model: str, config: Mapping[str, Any]) -> None:  # type: ignore[misc]
        cluster = parse(config, "the cluster's configuration")
        mine = next(each for each in cluster.models if each.model == model)
        server = resolve(ServerSettings, ("server", {**cluster.server, "on_demand": "refuse"}))
        self._ending = contextlib.ExitStack()
        self._ending.enter_context(logs.configured(server.log_level, server.log_format))
        registry = Registry.discover(server.registry)
        spec = registry.adapt(registry.resolve(model), adhoc.adapters(mine.lora))
        self._pool = open_pool(registry, server, engine_layers(f"models: {model}: settings", {}, mine.settings))
        await asyncio.to_thread(self._pool.load_now, spec.id)
        context = serve.get_replica_context()
        name = context.replica_id.unique_id
        host = "127.0.0.1" if cluster.ray is None else ray.util.get_node_ip_address()
        self._server = ReplicaServer(self._pool, server, name, spec.id, host)
        await self._server.start()

    async def visit(self, route: Route, number: bytes) -> AsyncIterator[Ticket]:
        """Yield a ticket for a request, and end with that."""
        async for ticket in self._server.visit(route, number):
            yield ticket

    async def tell(self, what: What) -> bytes:
        return msgspec.msgpack.encode(await self._server.tell(what))

    async def record_routing_stats(self) -> dict[str, Any]:
        return {STATS: packed(self._server.publish()), ADDRESS: msgspec.msgpack.encode(self._server.address)}

    async def record_autoscaling_stats(self) -> dict[str, float]:
        return {FIGURE: float(self._server.work)}

    async def check_health(self) -> None:
        if not self._server.well:
            raise EngineFailure("no model is loaded")

    async def __del__(self) -> None:
        if server := getattr(self, "_server", None):
            await server.close()


def engine(model: ModelConfig, config: ClusterConfig, server: ServerSettings, name: str) -> serve.Application:
    """Return the application of one model, whose root is the deployment of its replicas, with this name."""
    scaling = model.scaling
    resources: dict[str, Any] = {"num_cpus": model.cpus, "num_gpus": model.gpus}
    if model.memory_gib:
        resources["memory"] = int(model.memory_gib * 2**30)
    count: dict[str, Any] = {"num_replicas": scaling.max}
    if scaling.min != scaling.max:
        policy = AutoscalingPolicy(policy_function=QueuedTokens, policy_kwargs={"queued_tokens": scaling.queued_tokens})
        bounds = AutoscalingConfig(
            min_replicas=scaling.min,
            max_replicas=scaling.max,
            upscale_delay_s=scaling.start_seconds,
            downscale_delay_s=scaling.idle_seconds,
            look_back_period_s=max(2.0, min(30.0, scaling.start_seconds)),
            policy=policy,
        )
        count = {"autoscaling_config": bounds}
    deployment = serve.deployment(EngineReplica).options(
        name=name,
        ray_actor_options={**resources, "runtime_env": {"env_vars": _environment(server)}},
        max_ongoing_requests=AT_ONCE,
        health_check_period_s=HEALTH_EVERY,
        health_check_timeout_s=HEALTH_PATIENCE,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=server.grace,
        request_router_config=RequestRouterConfig(
            request_router_class=f"{PrefixRouter.__module__}:{PrefixRouter.__name__}",
            request_routing_stats_period_s=PUBLISHED_EVERY,
        ),
        logging_config=QUIET,
        **count,
    )
    shared = {"redis_url": server.redis_url} if server.redis_url else {}  # a flag or the environment may have it
    return deployment.bind(model.model, as_dict(msgspec.structs.replace(config, server={**config.server, **shared})))


def sleeps(config: ClusterConfig) -> bool:
    """Return whether the default model may have no replica while nobody asks."""
    return not config.models[0].scaling.min


def label(model: str) -> str:
    """Return the id of a model without the characters that Ray Serve gives a meaning in names."""
    return "".join(each if each.isalnum() or each in "-_." else "-" for each in model)


def _environment(server: ServerSettings) -> dict[str, str]:
    """Return what replicas get of the environment: settings, with the OpenMP runtime that is read when llama.cpp is loaded."""
    given = {name: value for name, value in os.environ.items() if name.startswith("LOCALLAB_") or name == "HF_HOME"}
    return {**given, variable("openmp"): server.openmp}


class Handles:
    """The replicas of each model, by its id in the registry, the default one's first, through Ray Serve's handles.

    `sleeps`: there may be none, until a request comes.
    """

    sleeps = False

    def __init__(self, handles: Mapping[str, DeploymentHandle[Any]]) -> None:
        self._handles = dict(handles)
        self._ending: set[asyncio.Task[None]] = set()

    def set(self, model: str, handle: DeploymentHandle[Any] | None) -> None:
        """Reach the replicas of a model by this handle from now on, None: there are none any more. For any thread."""
        changed: dict[str, Any] = {**self._handles, model: handle}
        self._handles = {name: each for name, each in changed.items() if each is not None}

    @property
    def models(self) -> Sequence[str]:
        return list(self._handles)

    @property
    def default(self) -> str:
        return next(iter(self._handles), "")

    async def ready(self) -> bool:
        return self.sleeps or bool(await self.ask())

    @contextlib.asynccontextmanager
    async def place(self, model: str, route: Route, *, known: bool) -> AsyncIterator[Ticket]:
        """Yield a ticket of the replica that the router chooses. Raises ReplicaGone.

        With `known` it is the one chosen first, as soon as that is: what Ray Serve counts follows a few milliseconds later.
        """
        if (handle := self._handles.get(model)) is None:
            raise ReplicaGone(f"{model} is served no more")
        number = secrets.token_bytes(NUMBER)
        choice = choices.expect(number) if known else None
        stream = handle.visit.options(stream=True).remote(route, number)
        first = asyncio.ensure_future(anext(stream))
        try:
            waits = {first} if choice is None else {first, asyncio.wrap_future(choice)}
            if not (await asyncio.wait(waits, timeout=FIRST_TICKET, return_when=asyncio.FIRST_COMPLETED))[0]:
                raise ReplicaGone(f"none of {model} came up in {FIRST_TICKET:g} s", retry_after=10)
            if choice is not None and choice.done() and not first.done():
                ticket = msgspec.msgpack.decode(choice.result(), type=Address).ticket(number)
            else:
                ticket = await first
        except (ReplicaGone, asyncio.CancelledError):
            _given_up(stream, first)
            raise
        except Exception as error:  # of many kinds, and none of them says anything to a client
            raise ReplicaGone(str(error).partition("\n")[0]) from None
        finally:
            choices.forget(number)
        try:
            yield ticket
        except BaseException:
            _given_up(stream, first)  # the ticket may never have been used
            raise
        finally:
            task = asyncio.ensure_future(_drained(stream, first))  # its replica sees the end of the request by itself
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def ask(self, what: What = "") -> list[Told]:
        answers = await asyncio.gather(*(_told(each, what) for each in self._handles.values()))
        return sorted((told for each in answers for told in each), key=lambda each: (each.replica.model, each.replica.id))


async def _told(handle: DeploymentHandle[Any], what: What) -> list[Told]:
    """Return what the replicas of one model tell that answer in time."""
    try:
        answers = await handle.broadcast("tell", what).results_async(timeout_s=TELLING, return_exceptions=True)
    except Exception as error:  # there are none, or they are about to be others
        log.debug("no replica tells of itself: %s", error)
        return []
    return [msgspec.msgpack.decode(each, type=Told) for each in answers if isinstance(each, bytes)]


async def _drained(stream: Any, first: asyncio.Future[Any]) -> None:
    with contextlib.suppress(Exception, asyncio.CancelledError):
        await first
        async for _ in stream:
            pass


def _given_up(stream: Any, first: asyncio.Future[Any]) -> None:
    stream.cancel()
    first.cancel()
