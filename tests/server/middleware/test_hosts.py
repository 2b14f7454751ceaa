"""Allowed hosts: a foreign name that resolves to this machine (DNS rebinding) reads nothing."""

from __future__ import annotations

import ipaddress
import json
import socket
import types
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from locallab.errors import ConfigError
from locallab.keys import KeyStore
from locallab.server.middleware.hosts import Hosts, matches, without_port
from tests.support.echo_model import PATH, ROUTES
from tests.support.http_server import Serve, Served

OWN = ["localhost", "localhost:8000", "LocalHost.", "me.localhost:1", "127.0.0.1", "127.0.0.1:80", "[::1]:8000", "[::1]", "::1"]
OWN += ["host.docker.internal:8000", "host.containers.internal", "gateway.docker.internal", "other.local:1", "Ray.Internal."]
OWN += ["10.0.0.5:8000", "[fe80::1]:8000", "box", "BOX:8000", "box.local", ""]
FOREIGN = [
    "evil.example",
    "evil.example:8000",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "xlocalhost",
    "notbox",
    "box.example",
    "internal",
    "host.docker.internal.evil.example",
    "xinternal",
]
FOREIGN += ["127.0.0.1@evil.example", "1.2.3.4.5", "[::1].evil.example]", "local", "box.local.example", ".localhost.x"]

labels = st.text("abcxyz0189", min_size=1, max_size=8)
names = st.lists(labels, min_size=1, max_size=4).map(".".join)


@pytest.mark.parametrize("host", OWN)
def test_names_of_this_machine(host: str) -> None:
    assert Hosts(None, "box").allow(host)


@pytest.mark.parametrize("host", FOREIGN)
def test_names_of_others(host: str) -> None:
    assert not Hosts(None, "box").allow(host)


def test_the_machines_own_name() -> None:
    assert Hosts(None).allow(socket.gethostname())
    full = Hosts(None, "box.lan")
    assert full.allow("box.lan") and not full.allow("box") and not full.allow("other.lan")


@pytest.mark.parametrize(
    ("setting", "host", "allowed"),
    [
        ("example.com", "example.com:8000", True),
        ("example.com", "EXAMPLE.com", True),
        ("example.com", "www.example.com", False),
        ("*.example.com", "www.example.com", True),
        ("*.example.com", "a.b.example.com", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", "badexample.com", False),
        (" a.example , b.example,", "b.example", True),
        ("a.example", "localhost", True),
        ("*", "anything.example", True),
        ("", "anything.example", False),
    ],
)
def test_names_by_setting(setting: str, host: str, allowed: bool) -> None:
    assert Hosts(setting, "box").allow(host) is allowed


@pytest.mark.parametrize("entry", ["https://example.com", "example.com:8000", "a b", "*.*", "ex*mple.com", "/", "a..b/"])
def test_invalid_names_are_refused(entry: str) -> None:
    with pytest.raises(ConfigError, match=r"^allowed_hosts: .* is not a host name"):
        Hosts(f"fine.example,{entry}")


@given(names, st.integers(0, 65535))
def test_a_name_is_found_with_and_without_a_port(name: str, port: int) -> None:
    hosts = Hosts(name, "box")
    assert hosts.allow(name) and hosts.allow(f"{name}:{port}") and hosts.allow(name.upper())


@given(names, names)
def test_a_pattern_stands_for_what_lies_below_and_nothing_else(name: str, root: str) -> None:
    assert matches(f"{name}.{root}", f"*.{root}") and not matches(root, f"*.{root}")
    assert matches(name, root) == (name == root)
    assert matches(name, f"*.{root}") == (name.endswith(f".{root}"))


@given(st.ip_addresses())
def test_every_address_is_allowed(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    host = f"[{address}]" if address.version == 6 else str(address)
    assert Hosts(None, "box").allow(f"{host}:8000") and Hosts(None, "box").allow(host)


@given(st.text())
def test_any_host_can_be_read(host: str) -> None:
    assert Hosts(None, "box").allow(host) in (True, False)
    assert host.startswith((without_port(host), f"[{without_port(host)}]"))


def post(served: Served, host: str, path: str = "/generate", **headers: str) -> httpx.Response:
    return served.http.post(path, json={"prompt": "hi"}, headers={"host": host, **headers})


def test_another_name_is_refused_in_the_dialect_of_the_path(serve: Serve) -> None:
    reason = "host 'evil.example:1' is not allowed; add it with --allowed-hosts"
    with serve() as served:
        native = post(served, "evil.example:1")
        assert (native.status_code, native.json()) == (403, {"detail": reason})
        other = post(served, "evil.example:1", "/v1/completions")
        error = {"message": reason, "type": "invalid_request_error", "param": None, "code": "forbidden"}
        assert (other.status_code, other.json()) == (403, {"error": error})
        assert served.http.get("/health", headers={"host": "evil.example"}).status_code == 403
        for host in ("localhost", "127.0.0.1:99", "[::1]", "a.localhost"):
            assert post(served, host).status_code == 200


def test_where_a_key_is_required_any_name_will_do(serve: Serve, tmp_path: Path) -> None:
    _, secret = KeyStore(tmp_path / "keys.json").create("a", "free")
    with serve() as served:
        assert post(served, "public.example").status_code == 401
        assert post(served, "public.example", authorization=f"Bearer {secret}").status_code == 200


def test_the_users_names_hold_with_a_key_too(serve: Serve) -> None:
    with serve(api_key="k", allowed_hosts="public.example") as served:
        for host, status in (("public.example", 200), ("localhost", 200), ("evil.example", 403)):
            assert post(served, host, authorization="Bearer k").status_code == status


def test_without_auth_names_are_looked_at(serve: Serve) -> None:
    with serve(public=True, auth=False, allowed_hosts="*.tunnel.example") as served:
        assert post(served, "evil.example").status_code == 403
        assert post(served, "a.tunnel.example").status_code == 200


class FakeTunnel:
    """The part of a tunnel that the app uses."""

    url = "https://abc.tunnel.example"
    usage = types.SimpleNamespace(add=lambda **amounts: None)

    def facts(self) -> None:
        return None

    def carries(self, host: bytes) -> bool:
        return host == b"abc.tunnel.example"


def test_a_tunnel_adds_its_host_and_reports_the_client(serve: Serve) -> None:
    with serve(public=True, auth=False, tunnel=FakeTunnel(), rate_limit=True, native_rate="1/hour") as served:
        sent = [
            ("abc.tunnel.example", "1.1.1.1"),
            ("abc.tunnel.example", "2.2.2.2"),
            ("abc.tunnel.example", "9.9.9.9, 1.1.1.1"),
        ]
        statuses = [post(served, host, **{"x-forwarded-for": client}).status_code for host, client in sent]
        assert statuses == [200, 200, 429]
        assert post(served, "other.tunnel.example").status_code == 403
        assert post(served, "abc.tunnel.example", origin="https://abc.tunnel.example").status_code == 200
        assert post(served, "abc.tunnel.example", origin="https://evil.example").status_code == 403


def test_websockets_too(serve: Serve) -> None:
    with serve(routes=ROUTES) as served:
        address = (served.http.base_url.host, served.http.base_url.port)
        with socket.create_connection(address) as sock, pytest.raises(InvalidStatus) as refused:
            connect(f"ws://evil.example{PATH}", sock=sock)
        assert refused.value.response.status_code == 403
        assert "evil.example" in json.loads(refused.value.response.body or b"")["detail"]
        with connect(f"ws://localhost{PATH}", sock=socket.create_connection(address)) as opened:
            opened.send("hi")
            assert json.loads(opened.recv(10))["text"] == "hi"


def test_a_client_without_a_host_is_no_browser(served: Served) -> None:
    with socket.create_connection((served.http.base_url.host, served.http.base_url.port)) as sock:
        sock.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 200")
