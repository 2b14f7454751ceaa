"""From a request to its events: submits to the engine, waits in the event loop, cancels when the client has gone."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable, Coroutine, Iterator, Sequence
from types import TracebackType
from typing import Any, TypeVar

from starlette.types import Receive

from locallab.engine import Engine
from locallab.engine.request import Listener, SamplingParams, TokenEvent, TokenLogprob, Usage
from locallab.errors import EngineClosed, EngineFailure

Job = tuple[Sequence[int], SamplingParams]
"""A prompt and how to answer it."""

Item = tuple[int, TokenEvent]
"""News of the answer with this index."""


class ClientGone(Exception):
    """The client has closed its connection: nobody reads the answer."""


@dataclasses.dataclass(frozen=True, slots=True)
class FinishedAnswer:
    """One complete answer. `stop` is the stop string that ended it, if one did; logprobs are there if they were asked for."""

    text: str
    finish_reason: str
    usage: Usage
    stop: str | None = None
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()


class Generation:
    """The answers of one client request while they are computed, one for each job.

    To be made and read in the event loop, and used as a context manager: leaving it cancels what is unfinished. Making it
    submits every job, or none: it raises what `Engine.submit` raises. `urgent` ones go ahead of others. Events wait in one list
    with one future to wake the reader, so a token costs no queue and no lock, and a slow reader finds all that came meanwhile
    at once.
    """

    def __init__(self, engine: Engine, jobs: Sequence[Job], *, urgent: bool = False) -> None:
        self._engine = engine
        self._urgent = urgent
        self._loop = asyncio.get_running_loop()
        self._items: list[Item] = []
        self._waiter: asyncio.Future[None] | None = None
        self._running: dict[int, int] = {}  # index -> request id of the engine
        self._unfinished = len(jobs)
        self._stopped = False
        self._failure: Exception | None = None
        try:
            for index, (prompt, params) in enumerate(jobs):
                self._submit(index, prompt, params)
        except BaseException:
            self._cancel()
            raise

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._cancel()

    @property
    def done(self) -> bool:
        """Whether every answer has ended well and been read."""
        return not self._unfinished and not self._items and self._failure is None

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> list[Item]:
        """Return all items that have come, in order; wait for some. Empty only after `wake`.

        Raises ClientGone, or what ended an answer before its time.
        """
        if not self._items and self._failure is None:
            if not self._unfinished:
                raise StopAsyncIteration
            self._waiter = self._loop.create_future()
            await self._waiter
        if self._items:
            items, self._items = self._items, []
            return items
        if self._failure is not None:
            raise self._failure
        return []

    def wake(self) -> None:
        """Make a waiting `__anext__` return."""
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def stop(self) -> None:
        """Ends what runs within a step of the engine: the news to come say so, and how many tokens it has taken."""
        self._stopped = True
        for request_id in self._running.values():
            self._engine.cancel(request_id)

    @contextlib.contextmanager
    def watching(self, receive: Receive) -> Iterator[None]:
        """While inside, a client that closes its connection ends the generation."""
        watcher = self._loop.create_task(self._watch(receive))
        try:
            yield
        finally:
            watcher.cancel()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass  # the rest of a body that nobody asked for
        self._items.clear()
        self._fail(ClientGone())
        self._cancel()

    def _submit(self, index: int, prompt: Sequence[int], params: SamplingParams) -> None:
        if params.max_tokens == 0 and not params.prompt_logprobs:
            self._answer_empty(index, prompt, params)
        else:
            self._running[index] = self._engine.submit(prompt, params, self._listener(index), urgent=self._urgent)

    def _answer_empty(self, index: int, prompt: Sequence[int], params: SamplingParams) -> None:
        """Clients probe with a limit of 0; the engine has nothing to do for them but to say whether the rest is right."""
        self._engine.check(prompt, params)
        self._take(index, TokenEvent("", finish_reason="length", usage=Usage(len(prompt), 0, 0)))

    def _listener(self, index: int) -> Listener:
        return lambda event: self._take(index, event)

    def _take(self, index: int, event: TokenEvent) -> None:
        if event.finish_reason is None:
            self._items.append((index, event))
        else:
            self._end(index, event)
        self.wake()

    def _end(self, index: int, event: TokenEvent) -> None:
        self._running.pop(index, None)
        self._unfinished -= 1
        if event.finish_reason == "error":
            self._fail(event.error or EngineFailure("the engine failed"))
        elif event.finish_reason == "cancelled" and not self._stopped:
            self._fail(EngineClosed("the engine was closed before the answer was complete"))
        else:
            self._items.append((index, event))

    def _fail(self, error: Exception) -> None:
        self._failure = self._failure or error
        self.wake()

    def _cancel(self) -> None:
        for request_id in self._running.values():
            self._engine.cancel(request_id)
        self._running.clear()


async def follow(
    engine: Engine, jobs: Sequence[Job], receive: Receive, take: Callable[[list[Item]], None], *, urgent: bool = False
) -> None:
    """Gives all news to `take`, to the end. Raises ClientGone when the client leaves first."""
    with Generation(engine, jobs, urgent=urgent) as generation, generation.watching(receive):
        async for items in generation:
            take(items)


async def collect(engine: Engine, jobs: Sequence[Job], receive: Receive, *, urgent: bool = False) -> list[FinishedAnswer]:
    """Every answer in full. Raises ClientGone when the client leaves first."""
    events: list[list[TokenEvent]] = [[] for _ in jobs]

    def take(items: list[Item]) -> None:
        for index, event in items:
            events[index].append(event)

    await follow(engine, jobs, receive, take, urgent=urgent)
    return [_answer(each) for each in events]


def _answer(events: Sequence[TokenEvent]) -> FinishedAnswer:
    end = events[-1]
    return FinishedAnswer(
        "".join(event.text for event in events),
        end.finish_reason or "stop",
        end.usage or Usage(0, 0, 0),
        end.stop,
        tuple(token for event in events for token in event.token_ids),
        tuple(told for event in events for told in event.logprobs),
        tuple(told for event in events for told in event.prompt_logprobs),
    )


Result = TypeVar("Result")


async def unless_gone(work: Coroutine[Any, Any, Result], receive: Receive) -> Result:
    """What `work` returns or raises. When the client leaves first, cancels it and raises ClientGone.

    For requests whose body has been read.
    """
    waiting = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait((waiting, gone), return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return waiting.result()
        gone.result()
        raise ClientGone
    finally:
        waiting.cancel()
        gone.cancel()


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass  # the rest of a body that nobody asked for
