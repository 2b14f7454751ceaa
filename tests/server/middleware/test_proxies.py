"""Clients behind proxies: X-Forwarded-For is trusted as far as the proxies that wrote it."""

from __future__ import annotations

import asyncio
import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallab.errors import ConfigError
from locallab.server.middleware import Proxies, networks

inside = st.ip_addresses(network="10.0.0.0/8").map(str)
outside = st.ip_addresses(v=4).map(str).filter(lambda address: not address.startswith("10."))


def client(peer: str, *forwarded: str, trusted: str = "10.0.0.0/8") -> str:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["client"][0])

    seen: list[str] = []
    headers = [(b"x-forwarded-for", value.encode()) for value in forwarded]
    scope = {"type": "http", "scheme": "http", "client": (peer, 1), "headers": headers}
    asyncio.run(Proxies(app, networks(trusted))(scope, None, None))  # type: ignore[arg-type]
    return seen[0]


@given(inside, st.lists(st.text("0123456789.:, abcx", max_size=30)), outside, st.lists(inside))
def test_the_last_address_that_no_proxy_has_is_the_client(peer: str, made_up: list[str], real: str, between: list[str]) -> None:
    assert client(peer, ", ".join([*made_up, real, *between])) == real
    assert client(peer, *made_up, real, *between) == real, "in headers of their own"


@given(outside, st.lists(st.one_of(inside, outside)))
def test_nobody_else_is_believed(peer: str, forwarded: list[str]) -> None:
    assert client(peer, ", ".join(forwarded)) == peer
    assert client(peer, ", ".join(forwarded), trusted="") == peer


def test_without_the_header_the_proxy_is_the_client() -> None:
    assert client("10.1.1.1") == client("10.1.1.1", "") == "10.1.1.1"


@pytest.mark.parametrize("peer", ["10.1.1.1", "::ffff:10.1.1.1"])
def test_proxies_on_a_socket_for_both_protocols(peer: str) -> None:
    assert client(peer, "1.2.3.4") == "1.2.3.4"
    assert client("::ffff:11.1.1.1", "1.2.3.4") == "::ffff:11.1.1.1"


@pytest.mark.parametrize("address", ["[2001:db8::7]:443", "2001:db8::7"])
def test_clients_with_ports_and_of_ipv6(address: str) -> None:
    assert client("fd00::1", address, trusted="fd00::/8") == "2001:db8::7"
    assert client("fd00::1", "9.9.9.9:1234", trusted="fd00::/8") == "9.9.9.9"


@given(st.lists(st.one_of(st.ip_addresses().map(str), st.just("10.1.2.3/8"), st.just("fd00::/8"))))
def test_addresses_and_networks_are_read(entries: list[str]) -> None:
    found = [ipaddress.ip_network(entry) for entry in networks(" , ".join(entries) + ",")]
    assert all(any(ipaddress.ip_network(entry, strict=False) == network for network in found) for entry in entries)


@pytest.mark.parametrize("entry", ["*", "localhost", "10.0.0.0/33", "10.0.0", "1.2.3.4:80"])
def test_anything_else_is_refused(entry: str) -> None:
    with pytest.raises(ConfigError, match=r"^trusted_proxies: .* is not an address or network"):
        networks(f"127.0.0.1, {entry}")
