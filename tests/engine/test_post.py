from __future__ import annotations

import asyncio
import threading

from locallab.engine.post import LoopPost, call_each
from locallab.engine.request import TokenEvent


def test_each_listener_gets_its_event_in_order() -> None:
    got: list[tuple[str, str]] = []
    call_each([(lambda e: got.append(("a", e.text)), TokenEvent("1")), (lambda e: got.append(("b", e.text)), TokenEvent("2"))])
    assert got == [("a", "1"), ("b", "2")]


def test_without_a_loop_listeners_are_called_at_once() -> None:
    got: list[TokenEvent] = []
    LoopPost()([(got.append, TokenEvent("x"))])
    assert got == [TokenEvent("x")]


def test_with_a_loop_one_callback_calls_all_in_its_thread() -> None:
    async def main() -> None:
        post, done = LoopPost(), asyncio.Event()
        post.loop = asyncio.get_running_loop()
        threads: list[int] = []
        events = [(lambda e: threads.append(threading.get_ident()), TokenEvent(str(i))) for i in range(3)]
        await asyncio.to_thread(post, [*events, (lambda e: done.set(), TokenEvent(""))])
        await asyncio.wait_for(done.wait(), 20)
        assert threads == [threading.get_ident()] * 3

    asyncio.run(main())


def test_a_loop_that_is_closed_is_nobody_left_to_read() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    post = LoopPost()
    post.loop = loop
    post([(lambda e: None, TokenEvent("x"))])
