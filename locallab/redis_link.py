"""The Redis that several servers share (`--redis-url`): its address, its clients, and what one does while it is gone."""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from locallab.errors import ConfigError, LocalLabError

if TYPE_CHECKING:
    from redis import Redis
    from redis.asyncio import Redis as AsyncRedis

SCHEMES = ("redis://", "rediss://", "redis+unix://")

PREFIX = "locallab"
"""What the names of all keys in Redis begin with."""

SHARED = "keys, rate limits, usage and stored responses"
"""What servers share."""

PAUSE = 5.0
"""Seconds until a Redis that failed is asked again."""

PATIENCE = 0.5
"""Seconds that a request waits for Redis."""

COMMAND_PATIENCE = 5.0
"""Seconds that a command of a person waits for it."""

log = logging.getLogger(__name__)


def without_password(url: str) -> str:
    """Return the URL as it may be shown."""
    return re.sub(r"//[^@/]*@", "//***@", url)


def address(url: str) -> str:
    """Return the host and port, or the path of the socket, of a URL."""
    parts = urlsplit(url)
    return parts.netloc.rpartition("@")[2] or parts.path


def check(url: str) -> None:
    """Raise ConfigError for a URL that names no Redis, or if Redis's client is not installed."""
    if not url.startswith(SCHEMES):
        raise ConfigError(f"redis_url: must begin with {', '.join(SCHEMES)}, got {without_password(url)!r}")
    try:
        from redis import ConnectionPool
    except ImportError:
        raise ConfigError("redis_url: needs Redis's client: pip install redis") from None
    try:
        ConnectionPool.from_url(_plain(url))
    except ValueError:
        raise ConfigError(f"redis_url: must be a URL such as redis://host:6379/0, got {without_password(url)!r}") from None


def connect(url: str, patience: float = PATIENCE) -> Redis:
    """Return a client that blocks, `patience` seconds at most, and connects when it is used. Raises ConfigError."""
    check(url)
    from redis import Redis

    return Redis.from_url(_plain(url), **options(patience))


def connect_async(url: str) -> AsyncRedis:
    """Return a client for an event loop. It connects when it is used. Raises ConfigError."""
    check(url)
    from redis.asyncio import Redis

    return Redis.from_url(_plain(url), **options(awaits=True))


@contextlib.contextmanager
def asking(url: str) -> Iterator[Redis]:
    """Yield a client for a command of a person. Raises ConfigError, and LocalLabError when Redis fails."""
    with connect(url, COMMAND_PATIENCE) as client:
        try:
            yield client
        except failures() as error:
            raise LocalLabError(f"redis_url: Redis at {address(url)} fails: {error}") from None


def options(patience: float = PATIENCE, *, awaits: bool = False) -> dict[str, Any]:
    """Return the timeouts of a client, and that a connection which Redis closed while it was idle is no failure."""
    if awaits:
        from redis.asyncio.retry import Retry
    else:
        from redis.retry import Retry  # type: ignore[assignment]
    from redis.backoff import NoBackoff
    from redis.exceptions import ConnectionError

    retry = Retry(NoBackoff(), 1, supported_errors=(ConnectionError,))
    return {"socket_timeout": patience, "socket_connect_timeout": patience, "retry": retry}


def failures() -> tuple[type[Exception], ...]:
    """Return what clients raise when Redis does not answer, or refuses."""
    import asyncio

    from redis import RedisError

    return (RedisError, OSError, asyncio.TimeoutError)


class Outage:
    """Whether Redis is gone, for `what` servers share through it. `alone` says what a server does meanwhile.

    Each outage is one line in the log, and its end another. For one thread.
    """

    def __init__(self, what: str, alone: str) -> None:
        self._what = what
        self._alone = alone
        self._resume = 0.0
        self.lasts = False

    def worth_asking(self) -> bool:
        """Return whether to ask Redis: during an outage once in PAUSE seconds, so that one request finds out for all."""
        now = time.monotonic()
        if self.lasts and now < self._resume:
            return False
        self._resume = now + PAUSE
        return True

    def failed(self, error: Exception, alone: str | None = None) -> None:
        """Redis did not answer, or refused: it is left alone for PAUSE seconds. `alone` if this outage differs."""
        if not self.lasts:
            reason = str(error) or "it does not answer"
            log.warning("Redis fails (%s): %s; it is tried again every %g s", reason, alone or self._alone, PAUSE)
        self.lasts, self._resume = True, time.monotonic() + PAUSE

    def over(self) -> None:
        """Redis answered."""
        if self.lasts:
            log.warning("Redis is back: %s are shared again", self._what)
        self.lasts = False


def _plain(url: str) -> str:
    return url.replace("redis+unix://", "unix://", 1)
