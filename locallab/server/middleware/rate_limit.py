"""Rate limits: the number of requests that a key, or an address, may send to each part of the API."""

from __future__ import annotations

import asyncio
import bisect
import functools
import ipaddress
import math
import time

import limits
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.storage.memory import Entry
from limits.aio.strategies import MovingWindowRateLimiter
from limits.errors import StorageError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from locallab import redis_link
from locallab.errors import ConfigError, RateLimited
from locallab.keys import Key
from locallab.server.areas import Area
from locallab.server.errors import rate_headers
from locallab.server.reply import RawHeaders, adding_headers
from locallab.settings import ServerSettings

Rate = tuple[limits.RateLimitItem, ...]
"""Limits that all apply, the shortest window first. Clients see the longest in their headers."""

SWEEP = 10.0
"""Seconds between removals of idle clients."""

_RATES = ("native_rate", "free_rate", "pro_rate", "dialect_rate")


def parse(name: str, rate: str) -> Rate:
    """Parse a setting such as "60/minute; 10/second". Raises ConfigError that names the setting."""
    try:
        items = limits.parse_many(rate)
    except ValueError:
        items = []
    if not items or any(item.amount < 1 for item in items):
        raise ConfigError(f"{name}: must be limits such as 60/minute or 60/minute; 10/second, got {rate!r}")
    return tuple(sorted(items, key=lambda item: item.get_expiry()))


def identity(key: Key | None, address: str) -> str:
    """Return what requests are counted by: the key, else the IPv4 address, else the IPv6 /64 network.

    A single IPv6 user has 2**64 addresses, which must not mean as many limits.
    """
    if key is not None:
        return f"key:{key.id}"
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return f"address:{address}"
    if isinstance(found, ipaddress.IPv4Address):
        return f"address:{found}"
    return f"address:{found.ipv4_mapped or ipaddress.ip_network((found, 64), strict=False)}"


class _Hit(Entry):
    def __init__(self, now: float, expiry: int) -> None:
        self.atime = now
        self.expiry = now + expiry


class _Memory(MemoryStorage):
    """The library's storage on a monotonic clock, so that a clock that is set changes no limit, and with a cheaper sweep: the
    library's runs in a thread after each hit and visits every client, 2 ms per request with a hundred clients."""

    def __init__(self) -> None:
        super().__init__()
        self._swept = time.monotonic()

    async def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        now = time.monotonic()
        if now > self._swept + SWEEP:
            self._swept = now
            for idle in [key for key, entries in self.events.items() if not entries or entries[0].expiry < now]:
                del self.events[idle]
        entries = self.events.setdefault(key, [])
        if amount > limit or (len(entries) > limit - amount and entries[limit - amount].atime >= now - expiry):
            return False
        entries[:0] = [_Hit(now, expiry) for _ in range(amount)]
        del entries[limit:]
        return True

    async def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        """Return the start of the window, in seconds since the epoch, and the number of hits in it."""
        now = time.monotonic()
        hits = self.events.get(key, [])
        count = bisect.bisect_right(hits, expiry - now, key=lambda hit: -hit.atime)
        return time.time() - now + (hits[count - 1].atime if count else now), count


def _redis(url: str) -> RedisStorage:
    redis_link.check(url)
    options = redis_link.options(awaits=True)
    return RedisStorage(f"async+{url}", wrap_exceptions=True, implementation="redispy", key_prefix=redis_link.PREFIX, **options)


async def _count(limiter: MovingWindowRateLimiter, rate: Rate, client: str, what: str) -> RawHeaders:
    """Count in the shortest window first: what it refuses does not count in the longer ones."""
    longest = rate[-1]
    for item in rate:
        if not await limiter.hit(item, client):
            wait = max(1, math.ceil((await limiter.get_window_stats(item, client)).reset_time - time.time()))
            raise RateLimited(f"{what}{item}", longest.amount, reset=math.ceil(time.time()) + wait, retry_after=wait)
    stats = await limiter.get_window_stats(longest, client)
    headers = rate_headers(longest.amount, max(0, stats.remaining), math.ceil(stats.reset_time))
    return [(name.encode(), value.encode()) for name, value in headers.items()]


class RateLimits:
    """Counts of requests, in memory or in a Redis that several servers share.

    While Redis fails, each server counts in its own memory: limits then apply per server, and no request fails. Raises
    ConfigError for an invalid rate or URL, or if the Redis client is not installed.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._on = settings.rate_limit
        self._rates = {name: parse(name, value) for name in _RATES if (value := getattr(settings, name)) is not None}
        self._memory = MovingWindowRateLimiter(_Memory())
        self._redis = _redis(settings.redis_url) if self._on and settings.redis_url else None
        self._shared = MovingWindowRateLimiter(self._redis) if self._redis else None
        self._outage = redis_link.Outage("rate limits", "this server counts requests alone")

    def rate(self, area: Area, key: Key | None) -> Rate | None:
        """Return the limit of requests with `key` to this part of the API; None if they are not counted."""
        if not self._on or area in ("open", "uncounted"):
            return None
        if area == "assistant":
            return self._rates["pro_rate" if key is not None and key.tier == "pro" else "free_rate"]
        return self._rates.get(f"{area}_rate")

    async def count(self, rate: Rate | None, client: str, what: str = "") -> RawHeaders:
        """Count one request, of the kind `what`, and return headers with the requests left. Raises RateLimited."""
        if rate is None:
            return []
        if self._shared is None or not self._outage.worth_asking():
            return await _count(self._memory, rate, client, what)
        try:
            headers = await asyncio.wait_for(_count(self._shared, rate, client, what), redis_link.PATIENCE)
        except RateLimited:
            self._outage.over()
            raise
        except (StorageError, OSError, asyncio.TimeoutError) as error:
            self._outage.failed(error)
            return await _count(self._memory, rate, client, what)
        self._outage.over()
        return headers

    async def close(self) -> None:
        """Close the connections to Redis, if any."""
        if self._redis is not None:
            await self._redis.bridge.get_connection().aclose()  # type: ignore[attr-defined]


class RateLimit:
    """Count a request and add the number left to its answer, or raise RateLimited.

    scope["state"]["count"] counts one more, for the messages of a WebSocket; opening a WebSocket is not counted.
    """

    def __init__(self, app: ASGIApp, limits: RateLimits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def closing(message: Message) -> None:
            if message["type"].startswith("lifespan.shutdown."):  # its receiver stops the event loop
                await self._limits.close()
            await send(message)

        if scope["type"] == "lifespan":
            await self._app(scope, receive, closing)
            return
        key, address = scope["state"]["key"], (scope.get("client") or ("-",))[0]
        rate = self._limits.rate(scope["state"]["area"], key)
        count = functools.partial(self._limits.count, rate, identity(key, address))
        scope["state"]["count"] = count
        if scope["type"] == "http" and scope["method"] != "OPTIONS" and rate is not None:
            send = adding_headers(send, await count())
        await self._app(scope, receive, send)
