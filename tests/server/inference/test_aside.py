"""Long texts beside the event loop: they hold up nobody, and stop when nobody waits."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
from starlette.requests import Request

from locallab.server.inference.aside import INLINE, JSON, LONG, RECEIVE, Stopped, aside, read_aside
from locallab.server.inference.generation import ClientGone
from tests.support.wait import PATIENCE


def test_what_is_short_stays_in_the_event_loop() -> None:
    async def thread(length: int) -> threading.Thread:
        return await aside(length, lambda _: threading.current_thread())

    assert asyncio.run(thread(INLINE)) is threading.current_thread()
    assert asyncio.run(thread(INLINE + 1)) is not threading.current_thread()


def test_what_is_short_does_not_wait_for_what_is_long() -> None:
    async def requests() -> None:
        go = threading.Event()
        long = [asyncio.ensure_future(aside(LONG, lambda _: go.wait(PATIENCE))) for _ in range(8)]
        await asyncio.sleep(0)
        assert await aside(LONG - 1, lambda _: "at once") == "at once"
        assert not any(each.done() for each in long)
        go.set()
        assert all(await asyncio.gather(*long))

    asyncio.run(requests())


@pytest.mark.parametrize("leaves", [True, False], ids=["the client leaves", "the caller is cancelled"])
def test_the_work_stops_when_nobody_waits(leaves: bool) -> None:
    started, stopped = threading.Event(), threading.Event()

    def work(stop: Stopped) -> None:
        started.set()
        deadline = time.monotonic() + PATIENCE
        while not stop() and time.monotonic() < deadline:
            time.sleep(0.001)
        if stop():
            stopped.set()

    async def request() -> None:
        gone = asyncio.Event()

        async def receive() -> Any:
            await gone.wait()
            return {"type": "http.disconnect"}

        RECEIVE.set(receive)
        waiting = asyncio.ensure_future(aside(LONG, work))
        assert await asyncio.to_thread(started.wait, PATIENCE)
        if leaves:
            gone.set()
        else:
            waiting.cancel()
        with pytest.raises(ClientGone if leaves else asyncio.CancelledError):
            await waiting
        assert await asyncio.to_thread(stopped.wait, PATIENCE)

    asyncio.run(request())


def test_what_goes_wrong_is_raised() -> None:
    def work(stopped: Stopped) -> None:
        raise KeyError(1)

    with pytest.raises(KeyError):
        asyncio.run(aside(LONG, work))


@pytest.mark.parametrize("long", [False, True])
def test_a_long_body_is_read_off_the_event_loop(long: bool) -> None:
    body = b"x" * (JSON * (INLINE + long))

    async def receive() -> Any:
        return {"type": "http.request", "body": body}

    async def threads() -> tuple[threading.Thread, threading.Thread]:
        return threading.current_thread(), await read_aside(Request({"type": "http"}, receive), threading.current_thread)

    loop, reader = asyncio.run(threads())
    assert (reader is not loop) == long
