"""Answers of llama.cpp's completion and infill: whole, or in events."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from locallab.engine.request import TokenLogprob, Usage
from locallab.server.dialects.answer_fields import Timings, progress_body, timings_body
from locallab.server.dialects.openai.errors import openai_body
from locallab.server.dialects.openai.logprobs import LEAST
from locallab.server.inference.generation import Collector, FinishedAnswer, Item
from locallab.server.streaming import event

STOPPED = {"length": "limit", "stop": "eos"}
SILENT = {"content": "", "tokens": [], "stop": False}
"""An event without text."""


class Probability(msgspec.Struct):
    """With post_sampling_probs, `prob` is the probability after the samplers."""

    id: int
    token: str
    bytes: list[int]
    logprob: Annotated[float, Meta(le=0)] | UnsetType = UNSET
    prob: Annotated[float, Meta(ge=0, le=1)] | UnsetType = UNSET


class TokenProbability(Probability):
    top_logprobs: list[Probability] | UnsetType = UNSET
    top_probs: list[Probability] | UnsetType = UNSET


class LlamaAnswer(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The answer of /completion and /infill, or what `response_fields` chose of it."""

    index: int | UnsetType = UNSET
    content: str | UnsetType = UNSET
    tokens: Annotated[list[int] | UnsetType, Meta(description="with return_tokens: those of the answer and its end")] = UNSET
    stop: Annotated[bool | UnsetType, Meta(description="true once the answer has ended: in the last event")] = UNSET
    model: str | UnsetType = UNSET
    tokens_predicted: int | UnsetType = UNSET
    tokens_evaluated: Annotated[int | UnsetType, Meta(description="tokens of the prompt")] = UNSET
    tokens_cached: Annotated[int | UnsetType, Meta(description="tokens of the prompt found in the prefix cache")] = UNSET
    prompt: Annotated[str | UnsetType, Meta(description="the prompt as the model read it, markup included")] = UNSET
    generation_settings: dict[str, Any] | UnsetType = UNSET
    has_new_line: bool | UnsetType = UNSET
    truncated: Annotated[bool | UnsetType, Meta(description="whether the end of the context ended the answer")] = UNSET
    timings: Timings | UnsetType = UNSET
    stop_type: Annotated[str | UnsetType, Meta(description="eos, limit, or word: the stop string in stopping_word")] = UNSET
    stopping_word: str | UnsetType = UNSET
    completion_probabilities: list[TokenProbability] | UnsetType = UNSET


LlamaAnswers = LlamaAnswer | list[LlamaAnswer]
"""One answer, or those to several prompts in their order."""


def probability(scored: TokenLogprob, drawn: bool = False) -> dict[str, Any]:
    """Return a TokenProbability; `drawn`: that after the samplers."""

    def likely(token: int, piece: bytes, logprob: float) -> dict[str, Any]:
        figure = {"prob": math.exp(logprob)} if drawn else {"logprob": max(logprob, LEAST)}
        return {"id": token, "token": piece.decode("utf-8", "replace"), "bytes": list(piece), **figure}

    top = [likely(*each) for each in scored.top]
    return {**likely(scored.token, scored.piece, scored.logprob), "top_probs" if drawn else "top_logprobs": top}


def chosen(body: Mapping[str, Any], paths: Sequence[str]) -> dict[str, Any]:
    """Return the fields at these paths, such as timings/prompt_n, under the path as their name; missing ones are left out."""
    found = {}
    for path in paths:
        value: Any = body
        for key in path.split("/"):
            value = value.get(key, UNSET) if isinstance(value, Mapping) else UNSET
        if value is not UNSET:
            found[path] = value
    return found


class LlamaFormatter(Collector):
    """Formats the answers to `prompts`, one for each: an event for each piece of text, and a last one with the figures.

    `settings` are returned, `context` is the model's. `scored`: with logprobs, those after the samplers if `drawn`; `tokens`:
    whole answers with their tokens. `fields` choose some of an answer's, if there are any.
    """

    def __init__(
        self,
        model: str,
        prompts: Sequence[str],
        settings: Mapping[str, Any],
        *,
        context: int,
        scored: bool,
        tokens: bool,
        drawn: bool = False,
        fields: Sequence[str] = (),
    ) -> None:
        super().__init__(len(prompts))
        self._model = model
        self._prompts = prompts
        self._settings = settings
        self._context = context
        self._scored = scored
        self._drawn = drawn
        self._fields = fields
        self._tokens = tokens
        self._new_lines = [False] * len(prompts)

    def whole(self) -> dict[str, Any] | list[dict[str, Any]]:
        found = []
        for index, answer in enumerate(self.finished()):
            self._new_lines[index] = "\n" in answer.text
            found.append(self._chosen({**self._body(index, answer), **self._probabilities(answer.logprobs)}))
        return found[0] if len(found) == 1 else found

    def encode(self, items: list[Item]) -> bytes:
        events = []
        for index, news in items:
            if news.progress is not None:
                events.append(event({"index": index, **SILENT, "prompt_progress": progress_body(news.progress)}))
            if news.text or news.logprobs:
                self._new_lines[index] |= "\n" in news.text
                piece = {"index": index, "content": news.text, "tokens": list(news.token_ids), "stop": False}
                events.append(event({**piece, **self._probabilities(news.logprobs)}))
            if news.finish_reason is not None:
                last = FinishedAnswer("", news.finish_reason, news.usage or Usage(0, 0, 0), news.stop)
                events.append(event(self._chosen(self._body(index, last))))
        return b"".join(events)

    def end(self) -> bytes:
        return b""

    def fail(self, error: Exception) -> bytes:
        return event(openai_body(error))

    def ping(self) -> bytes:
        return event({"index": 0, **SILENT})

    def _chosen(self, body: dict[str, Any]) -> dict[str, Any]:
        return chosen(body, self._fields) if self._fields else body

    def _body(self, index: int, answer: FinishedAnswer) -> dict[str, Any]:
        """Return a LlamaAnswer without its probabilities."""
        usage = answer.usage
        return {
            "index": index,
            "content": answer.text,
            "tokens": list(answer.tokens) if self._tokens else [],
            "stop": True,
            "model": self._model,
            "tokens_predicted": usage.completion_tokens,
            "tokens_evaluated": usage.prompt_tokens,
            "tokens_cached": usage.cached_tokens,
            "prompt": self._prompts[index],
            "generation_settings": self._settings,
            "has_new_line": self._new_lines[index],
            "truncated": answer.finish_reason == "length" and usage.prompt_tokens + usage.completion_tokens >= self._context,
            "timings": timings_body([usage]),
            "stop_type": "word" if answer.stop else STOPPED[answer.finish_reason],
            "stopping_word": answer.stop or "",
        }

    def _probabilities(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        return {"completion_probabilities": [probability(each, self._drawn) for each in logprobs]} if self._scored else {}
