"""Refuses requests that name a host which is not this one: see `locallab.server.hosts`."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from locallab.errors import Forbidden
from locallab.keys import Keyring
from locallab.server.hosts import Hosts
from locallab.tunnel import Tunnel


class HostCheck:
    """Raises Forbidden for a Host that `hosts` does not allow, and that is not the one of `tunnel`. Where a key is required any
    will do, unless the user set some."""

    def __init__(self, app: ASGIApp, hosts: Hosts, keyring: Keyring, tunnel: Tunnel | None = None) -> None:
        self._app = app
        self._hosts = hosts
        self._keyring = keyring
        self._tunnel = tunnel

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan" and (self._hosts.given or not self._keyring.required):
            host = Headers(scope=scope).get("host", "")
            if not self._hosts.allow(host) and not self._is_tunnelled(host):
                raise Forbidden(f"this server does not go by the name {host!r}; --allowed-hosts sets names it goes by")
        await self._app(scope, receive, send)

    def _is_tunnelled(self, host: str) -> bool:
        return self._tunnel is not None and self._tunnel.carries(host.encode("latin-1"))
