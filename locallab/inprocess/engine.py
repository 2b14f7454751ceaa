"""A model inside a program, without HTTP: single prompts or batches, whole answers or streams, blocking or async."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import queue
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, overload

from locallab.engine import ModelInfo
from locallab.engine.request import TokenEvent
from locallab.inprocess.launch import check, engine_layers, open_pool
from locallab.inprocess.requests import Answer, Image, Messages, Requests, failure
from locallab.models import Progress, Registry, adhoc
from locallab.pool import Loaded
from locallab.settings import EngineSettings, ServerSettings, environment

WHERE = "Engine()"
ANY_NUMBER = 1_000_000
"""Maximum queued requests: a list of prompts may be of any length."""


class Engine:
    """One loaded model. `sampling` are fields of SamplingParams: temperature, top_p, max_tokens, seed, stop, ...

    Use it in a `with` statement, or end it with `close`. Callable from any thread; overlapping requests are batched.
    """

    def __init__(
        self,
        model: str = "smollm2:135m",
        *,
        registry: str | None = None,
        lora: Sequence[str] | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> None:
        """Fetch and load `model`: an id of the registry, perhaps with an adapter of it, hf:owner/repo:Q4_K_M or the path
        of a .gguf file. `lora` has more adapters for it, each NAME=FILE or NAME=FILE:SCALE, by default those of LOCALLAB_LORA;
        requests choose them by the keyword `lora`, such as {"NAME": 0.5}. `options` are EngineSettings. Raises ConfigError,
        UnknownModel, SourceError, ModelLoadError."""
        check(WHERE, options, EngineSettings)
        known = Registry.discover(registry)
        more = environment(ServerSettings).get("lora") if lora is None else lora
        self._spec = known.adapt(known.resolve(model), adhoc.adapters(more))
        self._pool = open_pool(known, ServerSettings(), engine_layers(WHERE, options, {"queue": ANY_NUMBER}))
        try:
            self._loaded = self._load(progress)
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
        """End running requests and free the memory. May be called again."""
        self._pool.close()

    def _load(self, progress: Progress | None = None) -> Loaded:
        loaded = self._pool.load_now(self._spec.id, progress)
        return dataclasses.replace(loaded, spec=self._spec)

    def _model(self) -> Loaded:
        """Return the model; load it again if its engine has ended by an error. Raises EngineClosed, ModelLoadError."""
        if self._pool.failures.reasons:
            self._loaded = self._load()
        return self._loaded

    async def _amodel(self) -> Loaded:
        return await asyncio.to_thread(self._model) if self._pool.failures.reasons else self._loaded

    @overload
    def generate(self, prompt: str, **sampling: Any) -> Answer: ...
    @overload
    def generate(self, prompt: Sequence[str], **sampling: Any) -> list[Answer]: ...
    def generate(self, prompt: str | Sequence[str], **sampling: Any) -> Answer | list[Answer]:
        """Complete a text without a template; a list of texts is batched and returned in the same order."""
        prompts, single = ([prompt], True) if isinstance(prompt, str) else (prompt, False)
        with Requests(self._model(), prompts, sampling) as requests:
            answers = [each.result() for each in requests.answers]
        return answers[0] if single else answers

    @overload
    async def agenerate(self, prompt: str, **sampling: Any) -> Answer: ...
    @overload
    async def agenerate(self, prompt: Sequence[str], **sampling: Any) -> list[Answer]: ...
    async def agenerate(self, prompt: str | Sequence[str], **sampling: Any) -> Answer | list[Answer]:
        """Complete as `generate` without blocking the event loop; cancelling it ends the requests."""
        prompts, single = ([prompt], True) if isinstance(prompt, str) else (prompt, False)
        with Requests(await self._amodel(), prompts, sampling) as requests:
            answers = await asyncio.gather(*map(asyncio.wrap_future, requests.answers))
        return answers[0] if single else answers

    @overload
    def chat(self, messages: Messages, *, images: Sequence[Image] = (), **sampling: Any) -> Answer: ...
    @overload
    def chat(self, messages: Sequence[Messages], **sampling: Any) -> list[Answer]: ...
    def chat(
        self, messages: Messages | Sequence[Messages], *, images: Sequence[Image] = (), **sampling: Any
    ) -> Answer | list[Answer]:
        """Answer a conversation through the model's chat template; a list of conversations is batched. `images`, of a single
        one, come ahead of the user's last message."""
        conversations, single = _conversations(messages)
        with Requests(self._model(), conversations, sampling, images=images) as requests:
            answers = [each.result() for each in requests.answers]
        return answers[0] if single else answers

    @overload
    async def achat(self, messages: Messages, *, images: Sequence[Image] = (), **sampling: Any) -> Answer: ...
    @overload
    async def achat(self, messages: Sequence[Messages], **sampling: Any) -> list[Answer]: ...
    async def achat(
        self, messages: Messages | Sequence[Messages], *, images: Sequence[Image] = (), **sampling: Any
    ) -> Answer | list[Answer]:
        """Answer as `chat` without blocking the event loop; cancelling it ends the requests."""
        conversations, single = _conversations(messages)
        with Requests(await self._amodel(), conversations, sampling, images=images) as requests:
            answers = await asyncio.gather(*map(asyncio.wrap_future, requests.answers))
        return answers[0] if single else answers

    def stream(self, prompt: str | Messages, *, images: Sequence[Image] = (), **sampling: Any) -> Iterator[str]:
        """Yield the pieces of the answer to a text or a conversation, with `images` as `chat` has them. Leaving the loop
        ends the request."""
        events: queue.SimpleQueue[TokenEvent] = queue.SimpleQueue()
        with Requests(self._model(), [prompt], sampling, events.put, images):
            while True:
                event = events.get()
                if event.text:
                    yield event.text
                if event.finish_reason is not None:
                    if error := failure(event):
                        raise error
                    return

    async def astream(self, prompt: str | Messages, *, images: Sequence[Image] = (), **sampling: Any) -> AsyncIterator[str]:
        """Yield as `stream` without blocking the event loop."""
        loop, events = asyncio.get_running_loop(), asyncio.Queue[TokenEvent]()

        def hear(event: TokenEvent) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: no reader is left
                loop.call_soon_threadsafe(events.put_nowait, event)

        with Requests(await self._amodel(), [prompt], sampling, hear, images):
            while True:
                event = await events.get()
                if event.text:
                    yield event.text
                if event.finish_reason is not None:
                    if error := failure(event):
                        raise error
                    return


def _conversations(messages: Any) -> tuple[list[Any], bool]:
    """Return the list of conversations, and whether `messages` is a single one; an empty list is one, rejected later."""
    single = all(isinstance(each, Mapping) for each in messages)
    return ([messages] if single else list(messages)), single
