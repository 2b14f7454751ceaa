"""Limits on connections: how many there may be, from one address and in all, and what a silent one may hold.

Reading the requests on them is the work of `http_protocol` and `websocket_protocol`.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import ipaddress
import logging
import os
from collections.abc import Iterable
from typing import Any, Protocol

from locallab.settings import ServerSettings

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

STOPPING = "stopping"
"""Key, in the state of a request's scope, of the asyncio.Event that is set when the server stops. A stream without an end of
its own must end then, since the server waits for streams that run."""

ALL = 4096
"""Maximum connections in all, if the process may have so many file descriptors."""

RESERVE = 24
"""File descriptors left for all that is no connection: weights, key files, downloads."""

UNIX = ("unix", 0)
"""The address, as logs and rate limits have it, of a client that comes through a Unix socket and says no other."""

UNREAD = 60.0
"""Seconds after which a connection is cut whose client reads nothing of what is sent to it."""

log = logging.getLogger(__name__)


def group(address: str) -> str:
    """Return what connections are counted by: the IPv4 address, or the IPv6 /64 network, which is one user's."""
    if ":" not in address:
        return address
    try:
        found = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    return str(found.ipv4_mapped or ipaddress.ip_network((found, 64), strict=False))


def capacity() -> int:
    """Return how many connections the process has file descriptors for, after raising its limit as far as it may.

    Logs a warning if that is less than ALL.
    """
    if resource is None:
        return 256
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * ALL
    if soft != resource.RLIM_INFINITY and soft < wanted:
        raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, raised), hard))
            soft = max(soft, raised)
    free = wanted if soft == resource.RLIM_INFINITY else soft - _open() - RESERVE
    if free < ALL:
        log.warning("%d file descriptors (ulimit -n) are enough for %d connections at once", soft, max(1, free))
    return max(1, min(ALL, free))


def _open() -> int:
    try:
        return len(os.listdir("/dev/fd"))
    except OSError:
        return 64


class Connection(Protocol):
    """The part of both protocols that the limits read."""

    client: tuple[str, int] | None
    peer: str
    since: float
    transport: asyncio.Transport

    @property
    def idle(self) -> bool: ...
    def check(self, now: float) -> None: ...


class ConnectionLimits:
    """Admits connections. One beyond a limit takes the place of an idle one, so that silent connections keep nobody out.

    Proxies in `settings.trusted_proxies`, and what comes through a Unix socket, have no limit of their own.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._each = settings.connections_per_address
        self._all = capacity()
        trusted = filter(None, (entry.strip() for entry in settings.trusted_proxies.split(",")))
        self._trusted = [ipaddress.ip_network(entry, strict=False) for entry in trusted]

    def admit(self, new: Connection, connections: set[Any]) -> bool:
        """Return whether `new`, already one of `connections`, may stay; may cut an idle one and remove it from them."""
        if len(connections) > self._all and not _make_room(connections, connections, new):
            return False
        if len(connections) <= self._each or self._is_proxy(new):
            return True
        mine = [each for each in connections if each.peer == new.peer]
        return len(mine) <= self._each or _make_room(mine, connections, new)

    def _is_proxy(self, new: Connection) -> bool:
        if new.client == UNIX:
            return True
        if not self._trusted or new.client is None:
            return False
        address = ipaddress.ip_address(new.client[0].partition("%")[0])
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address in network for network in self._trusted)


def _make_room(among: Iterable[Connection], connections: set[Any], new: Connection) -> bool:
    """Cut those that have been idle for longest; return False if none is idle.

    A sixteenth at a time: a client that opens thousands costs no search for each.
    """
    idle = [each for each in among if each.idle and each is not new]
    for oldest in heapq.nsmallest(len(idle) // 16 + 1, idle, key=lambda each: each.since):
        connections.discard(oldest)
        oldest.transport.abort()
    return bool(idle)


class UnreadWatch:
    """Notices a client that reads nothing of what is in the send buffer of its connection."""

    def __init__(self) -> None:
        self._size = 0
        self._since = 0.0

    def stuck(self, size: int, now: float) -> bool:
        """Return whether a buffer that now has `size` bytes has only grown for UNREAD seconds."""
        if not size or size < self._size or not self._size:
            self._since = now
        self._size = size
        return now - self._since > UNREAD
