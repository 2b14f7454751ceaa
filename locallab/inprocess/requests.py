"""Batches of prompts: from text or messages to tokens, from events to answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

from locallab.chat import normalize
from locallab.chat.control_tokens import guarded, pieces
from locallab.chat.messages import with_system
from locallab.engine.request import SamplingParams, TokenEvent, TokenLogprob, Usage
from locallab.errors import EngineClosed, EngineFailure, InvalidField
from locallab.media.intake import Intake
from locallab.media.marker import placed
from locallab.pool import Loaded
from locallab.server.inference.media import markers, shown
from locallab.server.inference.prompt import tokenize
from locallab.settings import MediaSettings

Messages = Sequence[Mapping[str, Any]]
"""A conversation in the format of OpenAI's API: [{"role": "user", "content": "Hello!"}]."""

Image = str | Path | bytes
"""A picture: the path of its file, a data: URL, or the file itself."""

BOUNDS = MediaSettings()
"""Those of pictures and sounds."""

LONGEST = 512
"""Default `max_tokens` for a plain text. A chat answer runs until the model ends it."""


class Answer(str):
    """An answer's text with its finish reason ("stop" or "length") and token counts; with the keyword `logprobs` also the
    logprobs of its tokens, with `prompt_logprobs` those of the prompt's tokens except the first."""

    finish_reason: str
    usage: Usage
    logprobs: tuple[TokenLogprob, ...]
    prompt_logprobs: tuple[TokenLogprob, ...]

    @classmethod
    def of(cls, events: Sequence[TokenEvent]) -> Answer:
        """Build the answer from all its events."""
        end = events[-1]
        answer = cls("".join(event.text for event in events))
        answer.finish_reason, answer.usage = end.finish_reason or "stop", end.usage or Usage(0, 0, 0)
        answer.logprobs = tuple(each for event in events for each in event.logprobs)
        answer.prompt_logprobs = tuple(each for event in events for each in event.prompt_logprobs)
        return answer


class Requests:
    """Submits all prompts, or none on an error; `answers` are the results in the same order. On exit, unfinished requests are
    cancelled.

    `images` belong to the only one of the prompts, a conversation. Raises InvalidField, ContextLengthExceeded, Overloaded,
    EngineClosed. `hear` is called with each event, in another thread.
    """

    def __init__(
        self,
        loaded: Loaded,
        prompts: Sequence[str | Messages],
        sampling: Mapping[str, Any],
        hear: Callable[[TokenEvent], object] = lambda event: None,
        images: Sequence[Image] = (),
    ) -> None:
        self._engine = loaded.text_engine
        self._hear = hear
        self._ids: list[int] = []
        self.answers: list[Future[Answer]] = []
        defaults = loaded.engine.info.sampling
        if images and (len(prompts) != 1 or isinstance(prompts[0], str)):
            raise InvalidField("images", "belong to one conversation: send them with that alone")
        files = [_file(f"images[{index}]", each) for index, each in enumerate(images)]
        made = [(tokens(loaded, prompt, files), params(sampling, isinstance(prompt, str), defaults)) for prompt in prompts]
        jobs = [(prompt, loaded.adapted(how)) for prompt, how in made]
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
        answer.set_running_or_notify_cancel()  # from now on only the engine ends it
        events: list[TokenEvent] = []

        def listen(event: TokenEvent) -> None:
            events.append(event)
            if event.finish_reason is not None:
                if error := failure(event):
                    answer.set_exception(error)
                else:
                    answer.set_result(Answer.of(events))
            self._hear(event)

        self._ids.append(self._engine.submit(prompt, how, listen))
        self.answers.append(answer)

    def _cancel(self) -> None:
        for request_id, answer in zip(self._ids, self.answers, strict=True):
            if not answer.done():
                self._engine.cancel(request_id)


def tokens(loaded: Loaded, prompt: str | Messages, images: Sequence[str | bytes] = ()) -> list[int]:
    """Return the tokens of a text, whose control tokens count, or of a conversation, where those in contents are plain text,
    with `images` ahead of what the user has said last. Raises InvalidField, UnreadableMedia and MediaTooLarge.
    """
    if isinstance(prompt, str):
        return tokenize(loaded.engine, [prompt])
    kinds = loaded.engine.info.modalities - {"text"}
    intake = Intake(kinds, BOUNDS) if kinds else None
    said = normalize(list(prompt), media=intake)
    messages = with_system(shown(said, markers(intake, images)) if images else said, loaded.system)
    text = loaded.template.render(guarded(messages, loaded.markup))
    text, media = placed(text, intake.media if intake else {})
    return tokenize(loaded.engine, pieces(text), media=media)


def params(sampling: Mapping[str, Any], plain: bool, defaults: Mapping[str, Any] = MappingProxyType({})) -> SamplingParams:
    """Convert keyword arguments to SamplingParams; None is the default, and `defaults` are those of the model.

    Raises InvalidField; the engine checks the ranges.
    """
    known = [field.name for field in dataclasses.fields(SamplingParams)]
    for name in sampling:
        if name not in known:
            raise InvalidField(name, f"unknown; known: {', '.join(known)}")
    options: dict[str, Any] = {**defaults, "max_tokens": LONGEST} if plain else dict(defaults)
    for name, value in sampling.items():
        if value is not None:
            options[name] = _frozen(value)
    if isinstance(options.get("stop"), str):
        options["stop"] = (options["stop"],)
    if options.get("max_tokens", 1) < 1:
        raise InvalidField("max_tokens", f"must be at least 1, got {options['max_tokens']}")
    return SamplingParams(**options)


def failure(event: TokenEvent) -> Exception | None:
    """Return the error that ended the answer early, if any."""
    if event.finish_reason == "error":
        return event.error or EngineFailure("the engine failed")
    if event.finish_reason == "cancelled":
        return EngineClosed("the engine was closed before the answer was complete")
    return None


def _file(field: str, image: Image) -> str | bytes:
    """Return a file, or its data: URL. Raises InvalidField for one that cannot be read."""
    if isinstance(image, bytes) or (isinstance(image, str) and image[:5].lower() == "data:"):
        return image
    try:
        return Path(image).expanduser().read_bytes()
    except (OSError, ValueError) as error:
        raise InvalidField(field, f"cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _frozen(value: Any) -> Any:
    """Convert lists and dicts to the tuples of SamplingParams."""
    if isinstance(value, Mapping):
        return tuple(value.items())
    return tuple(value) if isinstance(value, list) else value
