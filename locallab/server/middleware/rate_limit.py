"""Rate limits: how many requests a key, or an address, may send to each part of the API."""

from __future__ import annotations

import functools
import ipaddress
import logging
import math
import re
import time
from collections.abc import Awaitable, Mapping

import limits
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.storage.memory import Entry
from limits.aio.strategies import MovingWindowRateLimiter
from limits.errors import ConfigurationError, StorageError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from locallab.errors import ConfigError, RateLimited
from locallab.keys import Key
from locallab.server.areas import Area
from locallab.server.errors import rate_headers
from locallab.settings import ServerSettings


class RateLimit:
    """Counts a request and adds to its answer how many are left, or raises RateLimited.

    scope["state"]["count"] counts one more, for the messages of a WebSocket; opening one is not counted.
    """

    def __init__(self, app: ASGIApp, limits: RateLimits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._serve(scope, receive, send)
            return
        key, address = scope["state"]["key"], (scope.get("client") or ("-",))[0]
        rate = self._limits.rate(scope["state"]["area"], key)
        count = functools.partial(self._limits.count, rate, identity(key, address))
        scope["state"]["count"] = count
        if scope["type"] == "http" and scope["method"] != "OPTIONS" and rate is not None:
            send = _adding(send, await count())
        await self._app(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def closing(message: Message) -> None:
            if message["type"].startswith("lifespan.shutdown."):  # whoever hears it stops the event loop
                await self._limits.close()
            await send(message)

        await self._app(scope, receive, closing)


def _adding(send: Send, headers: list[tuple[bytes, bytes]]) -> Send:
    def relay(message: Message) -> Awaitable[None]:  # no coroutine of its own: every token passes here
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *headers]
        return send(message)

    return relay


Rate = tuple[limits.RateLimitItem, ...]
"""Limits that all hold, the shortest window first. The longest is the one clients are told of."""

Headers = list[tuple[bytes, bytes]]

REDIS_SCHEMES = ("redis://", "rediss://", "redis+unix://")

PAUSE = 5.0
"""Seconds for which a Redis that failed is not asked again."""

PATIENCE = 0.5
"""Seconds that Redis may take to answer."""

SWEEP = 10.0
"""Seconds between two looks for clients that have not asked for long."""

log = logging.getLogger(__name__)


class RateLimits:
    """Counts requests, in memory or in a Redis that several servers share.

    While Redis fails each server counts in its own memory: limits go on to hold, a server at a time, and no request fails for
    it. Raises ConfigError for a rate that cannot be read, a URL that is none, or where Redis's client is not installed.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._on = settings.rate_limit
        self._rates = {name: parse(name, value) for name in _RATES if (value := getattr(settings, name)) is not None}
        self._memory = MovingWindowRateLimiter(_Memory())
        self._redis = _redis(settings.redis_url) if self._on and settings.redis_url else None
        self._shared = MovingWindowRateLimiter(self._redis) if self._redis else None
        self._resume = 0.0

    def rate(self, where: Area, key: Key | None) -> Rate | None:
        """The limit of requests for this part of the API with `key`; None: they are not counted."""
        if not self._on or where in ("open", "uncounted"):
            return None
        if where == "assistant":
            return self._rates["pro_rate" if key is not None and key.tier == "pro" else "free_rate"]
        return self._rates.get(f"{where}_rate")

    async def count(self, rate: Rate | None, who: str) -> Headers:
        """Counts one request of `who` and returns the headers that say how many are left. Raises RateLimited."""
        if rate is None:
            return []
        if self._shared is None or time.monotonic() < self._resume:
            return await _count(self._memory, rate, who)
        try:
            return await _count(self._shared, rate, who)
        except (StorageError, OSError) as error:
            self._resume = time.monotonic() + PAUSE
            log.warning("Redis fails (%s): this server counts requests alone, and asks again in %g s", error, PAUSE)
            return await _count(self._memory, rate, who)

    async def close(self) -> None:
        """Closes the connections to Redis, if any."""
        if self._redis is not None:
            await self._redis.bridge.get_connection().aclose()  # type: ignore[attr-defined]


def identity(key: Key | None, address: str) -> str:
    """Whose requests are counted together: those of a key, else of an address, else of an IPv6 network of one user."""
    return f"key:{key.id}" if key is not None else f"address:{_network(address)}"


def parse(name: str, rate: str) -> Rate:
    """The limits that a setting says, such as "60/minute; 10/second". Raises ConfigError that names the setting."""
    try:
        items = limits.parse_many(rate)
    except ValueError:
        items = []
    if not items or any(item.amount < 1 for item in items):
        raise ConfigError(f"{name}: must be limits such as 60/minute or 60/minute; 10/second, got {rate!r}")
    return tuple(sorted(items, key=lambda item: item.get_expiry()))


_RATES = ("native_rate", "free_rate", "pro_rate", "dialect_rate")


async def _count(limiter: MovingWindowRateLimiter, rate: Rate, who: str) -> Headers:
    """Shortest window first: what it refuses is not counted in the longer ones."""
    told = rate[-1]
    for item in rate:
        if not await limiter.hit(item, who):
            wait = max(1, math.ceil((await limiter.get_window_stats(item, who)).reset_time - time.time()))
            raise RateLimited(str(item), told.amount, reset=math.ceil(time.time()) + wait, retry_after=wait)
    stats = await limiter.get_window_stats(told, who)
    headers = rate_headers(told.amount, max(0, stats.remaining), math.ceil(stats.reset_time))
    return [(name.encode(), value.encode()) for name, value in headers.items()]


def _network(address: str) -> str:
    """An IPv6 user has 2**64 addresses, which must not mean as many limits."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    return str(found.ipv4_mapped or ipaddress.ip_network((found, 64), strict=False))


class _Memory(MemoryStorage):
    """The library's, but for its sweep: that one runs after each hit, with a thread's work for every client; 2 ms a request
    with a hundred clients."""

    def __init__(self) -> None:
        super().__init__()
        self._swept = time.time()

    async def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        now = time.time()
        if now > self._swept + SWEEP:
            self._sweep(now)
        entries = self.events.setdefault(key, [])
        if amount > limit or (len(entries) > limit - amount and entries[limit - amount].atime >= now - expiry):
            return False
        entries[:0] = [Entry(expiry) for _ in range(amount)]
        del entries[limit:]
        return True

    def _sweep(self, now: float) -> None:
        self._swept = now
        for key in [key for key, entries in self.events.items() if not entries or entries[0].expiry < now]:
            del self.events[key]


def _redis(url: str) -> RedisStorage:
    if not url.startswith(REDIS_SCHEMES):
        raise ConfigError(f"redis_url: must begin with {', '.join(REDIS_SCHEMES)}, got {_without_password(url)!r}")
    try:
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
    except ImportError:
        raise ConfigError("redis_url: needs Redis's client: pip install 'locallab[redis]'") from None
    options: Mapping[str, object] = {
        "socket_timeout": PATIENCE,
        "socket_connect_timeout": PATIENCE,
        "retry": Retry(NoBackoff(), 1),  # a connection that Redis closed meanwhile is no failure
    }
    try:
        return RedisStorage(
            f"async+{url}",
            wrap_exceptions=True,
            implementation="redispy",
            key_prefix="locallab",
            **options,  # type: ignore[arg-type]
        )
    except (ValueError, ConfigurationError):
        raise ConfigError(f"redis_url: must be such as redis://host:6379/0, got {_without_password(url)!r}") from None


def _without_password(url: str) -> str:
    return re.sub(r"//[^@/]*@", "//***@", url)
