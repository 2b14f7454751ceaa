"""Prompts that are computed together: from text or messages to tokens, from events to answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any

from locallab.chat import normalize
from locallab.chat.control_tokens import guarded, pieces
from locallab.engine.request import SamplingParams, TokenEvent, TokenLogprob, Usage
from locallab.errors import EngineClosed, EngineFailure, InvalidField
from locallab.pool import Loaded
from locallab.server.inference.prompt import tokenize

Messages = Sequence[Mapping[str, Any]]
"""A conversation as OpenAI's API takes it: [{"role": "user", "content": "Hello!"}]."""

LONGEST = 512
"""Tokens of the answer to a plain text, unless `max_tokens` says otherwise. A chat goes on until the model ends it."""


class Answer(str):
    """An answer's text; besides, why it ended ("stop" or "length") and its token counts; with the keyword `logprobs` how
    likely its tokens were, with `prompt_logprobs` those of its prompt but the first."""

    finish_reason: str
    usage: Usage
    logprobs: tuple[TokenLogprob, ...]
    prompt_logprobs: tuple[TokenLogprob, ...]

    @classmethod
    def of(cls, events: Sequence[TokenEvent]) -> Answer:
        """From all its events."""
        end = events[-1]
        answer = cls("".join(event.text for event in events))
        answer.finish_reason, answer.usage = end.finish_reason or "stop", end.usage or Usage(0, 0, 0)
        answer.logprobs = tuple(told for event in events for told in event.logprobs)
        answer.prompt_logprobs = tuple(told for event in events for told in event.prompt_logprobs)
        return answer


class Requests:
    """Submits every prompt, or none; `answers` are their results in the same order. Leaving it cancels what is unfinished.

    Raises InvalidField, ContextLengthExceeded, Overloaded, EngineClosed. `hear` is called with each event, in another thread.
    """

    def __init__(
        self,
        loaded: Loaded,
        prompts: Sequence[str | Messages],
        sampling: Mapping[str, Any],
        hear: Callable[[TokenEvent], object] = lambda event: None,
    ) -> None:
        self._engine = loaded.engine
        self._hear = hear
        self._ids: list[int] = []
        self.answers: list[Future[Answer]] = []
        jobs = [(tokens(loaded, prompt), params(sampling, isinstance(prompt, str))) for prompt in prompts]
        try:
            for prompt, how in jobs:
                self._submit(prompt, how)
        except BaseException:
            self._cancel()
            raise

    def __enter__(self) -> Requests:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._cancel()

    def _submit(self, prompt: list[int], how: SamplingParams) -> None:
        answer: Future[Answer] = Future()
        answer.set_running_or_notify_cancel()  # from now on nobody but the engine ends it
        events: list[TokenEvent] = []

        def listen(event: TokenEvent) -> None:
            events.append(event)
            if event.finish_reason is not None:
                _settle(answer, events)
            self._hear(event)

        self._ids.append(self._engine.submit(prompt, how, listen))
        self.answers.append(answer)

    def _cancel(self) -> None:
        for request_id, answer in zip(self._ids, self.answers, strict=True):
            if not answer.done():
                self._engine.cancel(request_id)


def tokens(loaded: Loaded, prompt: str | Messages) -> list[int]:
    """Of a text as it stands, where markup counts, or of a conversation, where what people wrote is never taken for markup."""
    if isinstance(prompt, str):
        return tokenize(loaded.engine, [prompt])
    messages = guarded(normalize(list(prompt)), loaded.markup)
    return tokenize(loaded.engine, pieces(loaded.template.render(messages)))


def params(sampling: Mapping[str, Any], plain: bool) -> SamplingParams:
    """Keyword arguments as SamplingParams; None counts as not given. The engine checks the ranges."""
    known = [field.name for field in dataclasses.fields(SamplingParams)]
    for name in sampling:
        if name not in known:
            raise InvalidField(name, f"unknown; known: {', '.join(known)}")
    given = {name: _frozen(value) for name, value in sampling.items() if value is not None}
    if isinstance(given.get("stop"), str):
        given["stop"] = (given["stop"],)
    if given.get("max_tokens", 1) < 1:
        raise InvalidField("max_tokens", f"must be at least 1, got {given['max_tokens']}")
    return SamplingParams(**({"max_tokens": LONGEST} if plain else {}) | given)


def failure(event: TokenEvent) -> Exception | None:
    """What ended the answer before its time, if anything did."""
    if event.finish_reason == "error":
        return event.error or EngineFailure("the engine failed")
    if event.finish_reason == "cancelled":
        return EngineClosed("the engine was closed before the answer was complete")
    return None


def _settle(answer: Future[Answer], events: Sequence[TokenEvent]) -> None:
    if error := failure(events[-1]):
        answer.set_exception(error)
    else:
        answer.set_result(Answer.of(events))


def _frozen(value: Any) -> Any:
    """Lists and dicts as SamplingParams holds them."""
    if isinstance(value, Mapping):
        return tuple(value.items())
    return tuple(value) if isinstance(value, list) else value
