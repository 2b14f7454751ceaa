"""Fetching pictures and sounds that a request names by their address, on behalf of whoever sent it.

The server may reach more than its clients do, so the address that is connected to is checked: no private, loopback, link-local,
shared, reserved or multicast one, and none under which clouds keep their credentials. It is resolved once, checked, and
connected to as it was checked; each redirect begins anew. Proxies of the environment are not used: they would resolve names
themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
import socket
from collections.abc import Callable, Iterable, Mapping

import httpcore
import httpx

from locallab.settings import MediaSettings
from locallab.units import decimal_bytes

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

TYPES = ("image/", "audio/", "application/octet-stream", "binary/octet-stream")
METADATA = frozenset({ipaddress.ip_address("168.63.129.16")})
"""Public addresses behind which a cloud answers its own machines only."""
NAT64 = ipaddress.ip_network("64:ff9b::/96")
REDIRECTS = frozenset({301, 302, 303, 307, 308})
HEADERS: Mapping[bytes | str, bytes | str] = {
    "accept": "image/*, audio/*",
    "accept-encoding": "identity",
    "user-agent": "locallab",
}


class Refused(Exception):
    """The address is not fetched; the message is a predicate of it."""


def is_public(address: Address) -> bool:
    """Return whether an address belongs to the public internet, also one that is wrapped in an IPv6 address."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if inner is None and address in NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
        if address.is_site_local:
            return False
    refused = (address.is_multicast, address.is_reserved, address.is_unspecified, address in METADATA)
    return address.is_global and not any(refused)


class _CheckedNetwork(httpcore.AsyncNetworkBackend):
    """Connects to addresses that `allowed` allows."""

    def __init__(self, allowed: Callable[[Address], bool]) -> None:
        self._allowed = allowed
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise Refused("names a host that is not found") from None
        addresses = [ipaddress.ip_address(place[0]) for _, _, _, _, place in found]
        if not addresses or not all(map(self._allowed, addresses)):
            raise Refused("leads to a host outside the public internet, which is not fetched from")
        for address in addresses[:-1]:
            with contextlib.suppress(httpcore.ConnectError):
                return await self._network.connect_tcp(str(address), port, timeout, local_address, socket_options)
        return await self._network.connect_tcp(str(addresses[-1]), port, timeout, local_address, socket_options)

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None
    ) -> httpcore.AsyncNetworkStream:
        raise Refused("is no address of the web")

    async def sleep(self, seconds: float) -> None:
        await self._network.sleep(seconds)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fetcher:
    """Rules for fetching. `seconds` are for one file with its redirects, `files` of maximal size for a request in all."""

    allowed: Callable[[Address], bool] = is_public
    seconds: float = 15.0
    redirects: int = 3
    files: int = 4

    async def fetch(self, addresses: Iterable[str], bounds: MediaSettings) -> Mapping[str, bytes | str]:
        """Return the file at each address, or the reason why there is none, a predicate of the address."""
        wanted = list(dict.fromkeys(addresses))
        left = [self.files * bounds.media_bytes]
        async with httpcore.AsyncConnectionPool(network_backend=_CheckedNetwork(self.allowed), max_connections=8) as pool:
            found = await asyncio.gather(*(self._one(pool, address, bounds, left) for address in wanted))
        return dict(zip(wanted, found, strict=True))

    async def _one(
        self, pool: httpcore.AsyncConnectionPool, address: str, bounds: MediaSettings, left: list[int]
    ) -> bytes | str:
        try:
            return await asyncio.wait_for(self._follow(pool, address, bounds, left), self.seconds)
        except Refused as error:
            return str(error)
        except asyncio.TimeoutError:  # before Python 3.11 another one than TimeoutError
            return f"does not answer within {self.seconds:g} s"
        except (httpx.InvalidURL, ValueError):
            return "is no valid address"
        except Exception as error:  # httpcore's, ssl's and the system's: whatever the other side makes happen
            return f"cannot be fetched: {(str(error) or type(error).__name__)[:200]}"

    async def _follow(self, pool: httpcore.AsyncConnectionPool, address: str, bounds: MediaSettings, left: list[int]) -> bytes:
        url = httpx.URL(address)
        for _ in range(self.redirects + 1):
            if url.scheme not in ("http", "https") or not url.host:
                raise Refused("leads to something else than an http or https address")
            target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
            async with pool.stream("GET", target, headers=HEADERS) as response:
                headers = {name.lower(): value.decode("latin-1") for name, value in response.headers}
                if response.status not in REDIRECTS:
                    return await _body(response, headers, bounds, left)
                url = url.join(headers.get(b"location", ""))
        raise Refused(f"is redirected more than {self.redirects} times")


async def _body(response: httpcore.Response, headers: Mapping[bytes, str], bounds: MediaSettings, left: list[int]) -> bytes:
    """Return the body of an answer. Raises Refused; takes what it reads from what is `left` for the request."""
    if response.status != 200:
        raise Refused(f"is answered with the status {response.status}")
    found = headers.get(b"content-type", "").partition(";")[0].strip().lower()
    if not found.startswith(TYPES):
        raise Refused(f"has the content type {found[:80] or '(none)'}, which is neither a picture nor a sound")
    if headers.get(b"content-encoding", "identity").lower() != "identity":
        raise Refused("is answered in an encoding that was not asked for")
    large = Refused(f"is larger than {decimal_bytes(bounds.media_bytes)} (--media-bytes)")
    declared = headers.get(b"content-length", "")
    if declared.isdecimal() and int(declared[:20]) > bounds.media_bytes:
        raise large
    body = bytearray()
    async for chunk in response.aiter_stream():
        body += chunk
        left[0] -= len(chunk)
        if len(body) > bounds.media_bytes:
            raise large
        if left[0] < 0:
            raise Refused("is too much: the files that this request names by address are too large together")
    return bytes(body)
