"""The answers of one request while the engine computes them, read in the event loop."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

from starlette.types import Receive

from locallab.engine import LOCAL, Caller, TextEngine
from locallab.engine.request import CacheUse, FinishReason, SamplingParams, Tier, TokenEvent, TokenLogprob, Usage
from locallab.errors import EngineClosed, EngineFailure, SlowReader

Job = tuple[Sequence[int], SamplingParams]
"""A prompt and its parameters."""

SUBMITTED: ContextVar[Callable[[TextEngine, Sequence[Job], Caller], None] | None] = ContextVar("submitted", default=None)
"""Called with the jobs of this request once the engine has them; None: nobody wants to know."""

Item = tuple[int, TokenEvent]
"""An event of the answer with this index."""

UNREAD_BYTES = 64 << 10
"""Maximum of what an answer holds for a client that does not read; what its connection holds comes on top."""

UNREAD_TIME = 5.0
"""Seconds that a reader may be late with more than that: the event loop itself may have been busy."""

_CHECK = 256

_EVENT_BYTES = 64
"""What an event is counted as beside its text: about what its line in a stream takes."""


class ClientGone(Exception):
    """The client has closed its connection before the answer was complete."""


@dataclasses.dataclass(frozen=True, slots=True)
class FinishedAnswer:
    """One complete answer. `stop` is the stop string that ended it, if any; logprobs are present if requested."""

    text: str
    finish_reason: str
    usage: Usage
    stop: str | None = None
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class GenerationUsage(Usage):
    """What the answers of a request took together; durations are the longest, since all are computed at once.

    All of it took `seconds` from the submission on, the first `queue_seconds` before the first step. `reasons` tells how each
    answer ended.
    """

    seconds: float = 0.0
    queue_seconds: float = 0.0
    reasons: tuple[FinishReason, ...] = ()


def _size(event: TokenEvent) -> int:
    tokens = (*event.logprobs, *event.prompt_logprobs)
    return len(event.text) + _EVENT_BYTES * (1 + sum(1 + len(token.top) for token in tokens))


class Generation:
    """The answers of one request while they are computed, one for each job: an iterator over lists of new items.

    Made and read in the event loop, and used as a context manager: leaving it cancels what is unfinished. Making it submits
    every job, or none: it raises what `TextEngine.submit` does. `urgent` jobs go ahead of others. Events wait in one list with
    one future to wake the reader, so a token costs no queue and no lock, and a slow reader gets all new items at once. One
    that does not read ends the answers with SlowReader, once UNREAD_BYTES for each wait for UNREAD_TIME seconds. After
    `seconds`, what is unfinished ends as at its limit of tokens. `spent` is called once, with what all answers took, when the
    last one has ended, however it ended.
    """

    def __init__(
        self,
        engine: TextEngine,
        jobs: Sequence[Job],
        *,
        caller: Caller = LOCAL,
        urgent: bool = False,
        seconds: float | None = None,
        spent: Callable[[GenerationUsage], None] = lambda spent: None,
    ) -> None:
        self._engine = engine
        self._spent = spent
        self._usages: list[tuple[int, Usage]] = []  # with the prompt
        self._reasons: list[FinishReason] = []
        self._submitted = time.perf_counter()
        self._began: float | None = None  # the first step, as far as it is told
        self._loop = asyncio.get_running_loop()
        self._prompts = [id(prompt) for prompt, _ in jobs]
        self._uses: dict[int, CacheUse] = {}  # by prompt, that of its first answer, in the order in which they began
        self._items: list[Item] = []
        self._waiter: asyncio.Future[None] | None = None
        self._running: dict[int, int] = {}  # index -> request id of the engine
        self._unfinished = len(jobs)
        self._stopped: FinishReason | None = None
        self._failure: Exception | None = None
        self._since = 0.0  # when _CHECK events waited
        try:
            for index, (prompt, params) in enumerate(jobs):
                take = functools.partial(self._take, index)
                if params.max_tokens == 0 and not params.prompt_logprobs:  # a probe: the engine only checks the rest
                    engine.check(prompt, params)
                    take(TokenEvent("", finish_reason="length", usage=Usage(len(prompt), 0, 0)))
                else:
                    self._running[index] = engine.submit(prompt, params, take, caller=caller, urgent=urgent)
        except BaseException:
            self._cancel()
            raise
        if (submitted := SUBMITTED.get()) is not None:
            submitted(engine, jobs, caller)
        self._timer = None if seconds is None else self._loop.call_later(seconds, self.stop, "length")

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._cancel()
        self._running.clear()

    @property
    def done(self) -> bool:
        """True once every answer has ended without an error and has been read."""
        return not self._unfinished and not self._items and self._failure is None

    @property
    def cache(self) -> CacheUse | None:
        """What the prompts that have begun got from the prefix cache: summed up, with the tier of the first that got anything
        and the reason of the first. None before one has begun, and for prompts of which none is looked up."""
        uses = list(self._uses.values())
        if not uses:
            return None
        tier: Tier = next((use.tier for use in uses if use.hit), "none")
        return dataclasses.replace(uses[0], hit=sum(use.hit for use in uses), total=sum(use.total for use in uses), tier=tier)

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> list[Item]:
        """Return all items that have come, in order; wait for some. Empty only after `wake`.

        Raises what ended an answer before its time.
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

    def stop(self, reason: FinishReason = "cancelled") -> None:
        """End the answers within a step of the engine: their last items have this reason, and how many tokens they took."""
        self._stopped = reason
        self._cancel()

    def _take(self, index: int, event: TokenEvent) -> None:
        if event.cache is not None:
            self._uses.setdefault(self._prompts[index], event.cache)
            self._began = self._began or time.perf_counter()
            return
        reason = event.finish_reason
        if reason == "error":
            self._failure = self._failure or event.error or EngineFailure("the engine failed")
        elif reason == "cancelled" and not self._stopped:
            self._failure = self._failure or EngineClosed("the engine was closed before the answer was complete")
        else:
            if reason == "cancelled":
                event = dataclasses.replace(event, finish_reason=self._stopped)
            self._items.append((index, event))
            if not len(self._items) % _CHECK:
                self._check_reader()
        if reason is not None:
            self._running.pop(index, None)
            self._unfinished -= 1
            self._reasons.append(reason)
            if event.usage is not None:
                self._usages.append((self._prompts[index], event.usage))
            if not self._unfinished:
                self._spent(self._total())
        self.wake()

    def _total(self) -> GenerationUsage:
        total, now = _total(self._usages), time.perf_counter()
        seconds = now - self._submitted
        queue = (self._began or now) - self._submitted
        if total.prompt_seconds:  # the engine's own times are exact
            queue = max(0.0, seconds - total.prompt_seconds - total.answer_seconds)
        return GenerationUsage(
            total.prompt_tokens,
            total.completion_tokens,
            total.cached_tokens,
            total.prompt_seconds,
            total.answer_seconds,
            seconds=seconds,
            queue_seconds=queue,
            reasons=tuple(self._reasons),
        )

    def _check_reader(self) -> None:
        """End the answers if their reader is late. Called at every _CHECK events that wait: a token costs one comparison."""
        now = self._loop.time()
        if len(self._items) == _CHECK:
            self._since = now
        elif now - self._since > UNREAD_TIME and self._failure is None:
            unread = sum(_size(event) for _, event in self._items)
            if unread > UNREAD_BYTES * len(self._prompts):
                self._failure = SlowReader(unread)
                self._cancel()

    def _cancel(self) -> None:
        for request_id in self._running.values():
            self._engine.cancel(request_id)


def _total(usages: Iterable[tuple[int, Usage]]) -> Usage:
    """Return what answers took together: a prompt counts once, as for the answer that computed most of it. Durations are the
    longest."""
    prompts: dict[int, Usage] = {}
    completion, longest = 0, (0.0, 0.0)
    for prompt, usage in usages:
        completion += usage.completion_tokens
        longest = max(longest[0], usage.prompt_seconds), max(longest[1], usage.answer_seconds)
        best = prompts.setdefault(prompt, usage)
        if (usage.prompt_tokens, -usage.cached_tokens) > (best.prompt_tokens, -best.cached_tokens):
            prompts[prompt] = usage
    read = prompts.values()
    return Usage(sum(each.prompt_tokens for each in read), completion, sum(each.cached_tokens for each in read), *longest)


class Collector:
    """Collects the events of `n` answers."""

    def __init__(self, n: int = 1) -> None:
        self._taken: list[list[TokenEvent]] = [[] for _ in range(n)]

    def take(self, items: list[Item]) -> None:
        for index, event in items:
            self._taken[index].append(event)

    def finished(self) -> list[FinishedAnswer]:
        """Return every answer in full, once all have ended."""
        return [
            FinishedAnswer(
                "".join(event.text for event in events),
                events[-1].finish_reason or "stop",
                events[-1].usage or Usage(0, 0, 0),
                events[-1].stop,
                tuple(token for event in events for token in event.token_ids),
                tuple(each for event in events for each in event.logprobs),
                tuple(each for event in events for each in event.prompt_logprobs),
            )
            for events in self._taken
        ]


Result = TypeVar("Result")


async def unless_gone(work: Coroutine[Any, Any, Result], receive: Receive) -> Result:
    """Return or raise what `work` does. When the client leaves first, cancel it and raise ClientGone.

    For requests whose body has been read.
    """

    async def disconnect() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass  # the rest of a body without meaning

    waiting, gone = asyncio.ensure_future(work), asyncio.ensure_future(disconnect())
    try:
        await asyncio.wait((waiting, gone), return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return waiting.result()
        gone.result()
        raise ClientGone
    finally:
        waiting.cancel()
        gone.cancel()
