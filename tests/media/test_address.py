"""Fetching of addresses: real servers on loopback, and a rule that takes some loopback addresses for public ones."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from locallab.media import address
from locallab.media.address import Fetcher, is_public
from locallab.settings import MediaSettings
from tests.support.media_files import png

BOUNDS = MediaSettings(media_bytes=10_000)
PICTURE = png()
INSIDE = ipaddress.ip_address("127.0.0.2")


def no_inside(found: address.Address) -> bool:
    return found != INSIDE


def answered(body: bytes = PICTURE, status: str = "200 OK", length: int | None = None, **headers: str) -> bytes:
    """Return an answer of HTTP."""
    fields = {"content-type": "image/png", "content-length": str(len(body) if length is None else length)}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value)
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body


@asynccontextmanager
async def serving(answer: Callable[[str], bytes | None], host: str = "127.0.0.1") -> AsyncIterator[tuple[str, list[str]]]:
    """Serve what `answer` returns for a path, nothing at all for None; yield the address, and the paths that were asked for."""
    asked: list[str] = []
    tasks = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        try:
            asked.append((await reader.readuntil(b"\r\n\r\n")).decode().split(" ")[1])
            found = answer(asked[-1])
            if found is None:
                await asyncio.sleep(60)
            writer.write(found or b"")
            await writer.drain()
        finally:
            writer.close()

    server = await asyncio.start_server(handle, host, 0)
    try:
        yield f"http://{host}:{server.sockets[0].getsockname()[1]}", asked
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def fetched(answer: Callable[[str], bytes | None], path: str = "/a.png", **rules: Any) -> bytes | str:
    async def one() -> bytes | str:
        async with serving(answer) as (url, _):
            found = await Fetcher(**{"allowed": no_inside, **rules}).fetch([url + path], BOUNDS)
            return found[url + path]

    return asyncio.run(one())


def test_a_file_is_fetched() -> None:
    assert fetched(lambda path: answered()) == PICTURE


def test_each_address_once() -> None:
    async def several() -> None:
        async with serving(lambda path: answered()) as (url, asked):
            found = await Fetcher(allowed=no_inside).fetch([f"{url}/a", f"{url}/b", f"{url}/a"], BOUNDS)
            assert sorted(asked) == ["/a", "/b"] and set(found.values()) == {PICTURE}

    asyncio.run(several())


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "2130706433", "0x7f.1", "127.1", "[::ffff:127.0.0.1]", "169.254.169.254"],
)
def test_nothing_of_this_machine_or_its_network(host: str) -> None:
    async def one() -> None:
        async with serving(lambda path: answered()) as (url, asked):
            target = f"http://{host}:{url.rpartition(':')[2]}/secret"
            found = await Fetcher(seconds=5).fetch([target], BOUNDS)
            assert "outside the public internet" in str(found[target]) or "is not found" in str(found[target])
            assert asked == []

    asyncio.run(one())


PUBLIC = ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "64:ff9b::8.8.8.8", "::ffff:8.8.8.8"]
NOT_PUBLIC = [
    *("127.0.0.1", "127.8.9.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.0.1", "169.254.169.254"),
    *("100.64.0.1", "100.100.100.200", "192.0.0.1", "198.18.0.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255"),
    *("168.63.129.16", "192.0.2.1", "203.0.113.1", "::1", "::", "fe80::1", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1"),
    *(
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::169.254.169.254",
        "2002:7f00:1::1",
        "2002:a9fe:a9fe::",
        "::7f00:1",
    ),
    *("2001:db8::1", "2001:0:4136:e378:8000:63bf:5601:5601"),
]


@pytest.mark.parametrize("text", PUBLIC)
def test_public(text: str) -> None:
    assert is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", NOT_PUBLIC)
def test_not_public(text: str) -> None:
    assert not is_public(ipaddress.ip_address(text))


def test_a_redirect_is_followed_and_checked_anew() -> None:
    async def one() -> None:
        async with serving(lambda path: answered(b"secret"), "127.0.0.2") as (inside, asked):
            answers = {
                "/once": answered(b"", "302 Found", location="/a.png"),
                "/a.png": answered(),
                "/inside": answered(b"", "307 Temporary Redirect", location=f"{inside}/secret"),
                "/loop": answered(b"", "301 Moved", location="/loop"),
                "/file": answered(b"", "302 Found", location="file:///etc/passwd"),
                "/nowhere": answered(b"", "302 Found"),
            }
            async with serving(lambda path: answers[path]) as (url, _):
                found = await Fetcher(allowed=no_inside).fetch([url + path for path in answers], BOUNDS)
            of = {path: found[url + path] for path in answers}
            assert of["/once"] == of["/a.png"] == PICTURE
            assert "outside the public internet" in str(of["/inside"]) and asked == []
            assert "redirected more than 3 times" in str(of["/loop"]) and "redirected more" in str(of["/nowhere"])
            assert "something else than an http or https address" in str(of["/file"])

    asyncio.run(one())


def test_the_address_that_was_checked_is_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that leads elsewhere the next time is asked for once."""
    turns: Iterator[str] = iter(["127.0.0.1", "127.0.0.2"])
    resolve = socket.getaddrinfo

    def rebinding(host: Any, *rest: Any, **more: Any) -> Any:
        return resolve(next(turns) if host == "rebinding.test" else host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)

    async def one() -> None:
        async with serving(lambda path: answered()) as (url, _):
            target = f"http://rebinding.test:{url.rpartition(':')[2]}/a.png"
            assert (await Fetcher(allowed=no_inside).fetch([target], BOUNDS))[target] == PICTURE

    asyncio.run(one())
    assert next(turns) == "127.0.0.2"


def test_a_name_with_one_address_inside_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve = socket.getaddrinfo

    def both(host: Any, *rest: Any, **more: Any) -> Any:
        if host != "both.test":
            return resolve(host, *rest, **more)
        return [*resolve("127.0.0.1", *rest, **more), *resolve("127.0.0.2", *rest, **more)]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    found = asyncio.run(Fetcher(allowed=no_inside).fetch(["http://both.test/a"], BOUNDS))
    assert "outside the public internet" in str(found["http://both.test/a"])


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (answered(bytes(20_000)), "is larger than 10 kB (--media-bytes)"),
        (answered(bytes(20_000), content_length=""), "is larger than 10 kB (--media-bytes)"),
        (answered(b"", "404 Not Found"), "is answered with the status 404"),
        (answered(b"<html>", content_type="text/html; charset=utf-8"), "has the content type text/html, which is neither"),
        (answered(content_type=""), "has the content type (none)"),
        (answered(content_encoding="gzip"), "in an encoding that was not asked for"),
        (answered(length=5000), "cannot be fetched: "),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "cannot be fetched: "),
        (b"", "cannot be fetched: "),
    ],
)
def test_what_is_not_taken(answer: bytes, reason: str) -> None:
    assert reason in str(fetched(lambda path: answer))


def test_a_server_that_does_not_answer() -> None:
    began = time.monotonic()
    assert fetched(lambda path: None, seconds=0.2) == "does not answer within 0.2 s"
    assert time.monotonic() - began < 10


def test_the_files_of_a_request_have_a_bound_together() -> None:
    async def several() -> None:
        async with serving(lambda path: answered(bytes(9000))) as (url, _):
            found = await Fetcher(allowed=no_inside, files=2).fetch([f"{url}/{index}" for index in range(5)], BOUNDS)
            refused = [each for each in found.values() if isinstance(each, str)]
            assert len(refused) >= 3 and all("too large together" in each for each in refused)

    asyncio.run(several())


@pytest.mark.parametrize(
    "url", ["http://", "https:///a", "http://[::1", "http://a b/", "http://\x00/", "http://example.invalid/"]
)
def test_what_is_no_address(url: str) -> None:
    found = asyncio.run(Fetcher(seconds=5).fetch([url], BOUNDS))
    assert isinstance(found[url], str)


def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.2:1")
    assert fetched(lambda path: answered()) == PICTURE
