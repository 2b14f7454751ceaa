"""A model inside a program, without HTTP: one prompt or many at once, whole answers or streams, blocking or not."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, overload

from locallab.engine import ModelInfo
from locallab.engine.request import TokenEvent
from locallab.inprocess.launch import check, engine_layers
from locallab.inprocess.requests import Answer, Messages, Requests, failure
from locallab.models import Progress, Registry, Store
from locallab.pool import Pool
from locallab.settings import EngineSettings

WHERE = "Engine()"
ANY_NUMBER = 1_000_000
"""Requests that may wait: a list of prompts is as long as its caller wants."""


class Engine:
    """One loaded model. `sampling` is what SamplingParams takes: temperature, top_p, max_tokens, seed, stop, ...

    To be used in a `with` statement, or closed with `close`. From any thread; requests that overlap are computed together.
    """

    def __init__(
        self,
        model: str = "smollm2:135m",
        *,
        registry: str | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> None:
        """Fetches and loads `model`: an id of the registry, hf:owner/repo:Q4_K_M or the path of a .gguf file. `options` are
        EngineSettings. Raises ConfigError, UnknownModel, SourceError, ModelLoadError."""
        check(WHERE, options, EngineSettings)
        known = Registry.discover(registry)
        spec = known.resolve(model)
        self._pool = Pool(known, Store(), engine_layers(WHERE, options, {"queue": ANY_NUMBER}))
        try:
            self._loaded = self._pool.load_now(spec.id, progress)
        except BaseException:
            self._pool.close()
            raise

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def info(self) -> ModelInfo:
        """Facts about the model."""
        return self._loaded.engine.info

    def close(self) -> None:
        """Ends what runs and frees the memory. May be called again."""
        self._pool.close()

    @overload
    def generate(self, prompt: str, **sampling: Any) -> Answer: ...
    @overload
    def generate(self, prompt: Sequence[str], **sampling: Any) -> list[Answer]: ...
    def generate(self, prompt: str | Sequence[str], **sampling: Any) -> Answer | list[Answer]:
        """Completes a text as it stands; a list of texts together, into a list in the same order."""
        prompts, single = ([prompt], True) if isinstance(prompt, str) else (prompt, False)
        with Requests(self._loaded, prompts, sampling) as requests:
            answers = [each.result() for each in requests.answers]
        return answers[0] if single else answers

    @overload
    async def agenerate(self, prompt: str, **sampling: Any) -> Answer: ...
    @overload
    async def agenerate(self, prompt: Sequence[str], **sampling: Any) -> list[Answer]: ...
    async def agenerate(self, prompt: str | Sequence[str], **sampling: Any) -> Answer | list[Answer]:
        """As `generate`, without blocking the event loop; cancelling it ends the answers."""
        prompts, single = ([prompt], True) if isinstance(prompt, str) else (prompt, False)
        with Requests(self._loaded, prompts, sampling) as requests:
            answers = await asyncio.gather(*map(asyncio.wrap_future, requests.answers))
        return answers[0] if single else answers

    @overload
    def chat(self, messages: Messages, **sampling: Any) -> Answer: ...
    @overload
    def chat(self, messages: Sequence[Messages], **sampling: Any) -> list[Answer]: ...
    def chat(self, messages: Messages | Sequence[Messages], **sampling: Any) -> Answer | list[Answer]:
        """Answers a conversation through the model's chat template; a list of conversations together."""
        conversations, single = _conversations(messages)
        with Requests(self._loaded, conversations, sampling) as requests:
            answers = [each.result() for each in requests.answers]
        return answers[0] if single else answers

    @overload
    async def achat(self, messages: Messages, **sampling: Any) -> Answer: ...
    @overload
    async def achat(self, messages: Sequence[Messages], **sampling: Any) -> list[Answer]: ...
    async def achat(self, messages: Messages | Sequence[Messages], **sampling: Any) -> Answer | list[Answer]:
        """As `chat`, without blocking the event loop; cancelling it ends the answers."""
        conversations, single = _conversations(messages)
        with Requests(self._loaded, conversations, sampling) as requests:
            answers = await asyncio.gather(*map(asyncio.wrap_future, requests.answers))
        return answers[0] if single else answers

    def stream(self, prompt: str | Messages, **sampling: Any) -> Iterator[str]:
        """The pieces of one answer as they are computed, to a text or a conversation. Leaving the loop ends the answer."""
        events: queue.SimpleQueue[TokenEvent] = queue.SimpleQueue()
        with Requests(self._loaded, [prompt], sampling, events.put):
            while True:
                event = events.get()
                if event.text:
                    yield event.text
                if event.finish_reason is not None:
                    if error := failure(event):
                        raise error
                    return

    async def astream(self, prompt: str | Messages, **sampling: Any) -> AsyncIterator[str]:
        """As `stream`, without blocking the event loop."""
        loop, events = asyncio.get_running_loop(), asyncio.Queue[TokenEvent]()

        def hear(event: TokenEvent) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to read
                loop.call_soon_threadsafe(events.put_nowait, event)

        with Requests(self._loaded, [prompt], sampling, hear):
            while True:
                event = await events.get()
                if event.text:
                    yield event.text
                if event.finish_reason is not None:
                    if error := failure(event):
                        raise error
                    return


def _conversations(messages: Any) -> tuple[list[Any], bool]:
    """The conversations, and whether it is one alone. An empty list is an empty conversation, which is refused as one."""
    alone = all(isinstance(each, Mapping) for each in messages)
    return ([messages] if alone else list(messages)), alone
