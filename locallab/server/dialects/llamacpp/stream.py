"""Answers of llama.cpp's completion and infill: whole, or in events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

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
    id: int
    token: str
    bytes: list[int]
    logprob: Annotated[float, Meta(le=0)]


class TokenProbability(Probability):
    top_logprobs: list[Probability]


class LlamaAnswer(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The answer of /completion and /infill."""

    index: int
    content: str
    tokens: Annotated[list[int], Meta(description="with return_tokens, those of the answer and the one that ended it")]
    stop: Annotated[bool, Meta(description="whether the answer has ended: true in the last event of a stream")]
    model: str
    tokens_predicted: int
    tokens_evaluated: Annotated[int, Meta(description="tokens of the prompt")]
    tokens_cached: Annotated[int, Meta(description="tokens of the prompt that were in the prefix cache")]
    prompt: Annotated[str, Meta(description="the prompt as the model read it, markup included")]
    generation_settings: dict[str, Any]
    has_new_line: bool
    truncated: Annotated[bool, Meta(description="whether the end of the context ended the answer")]
    timings: Timings
    stop_type: Annotated[str, Meta(description="eos, limit, or word: the stop string in stopping_word")]
    stopping_word: str
    completion_probabilities: list[TokenProbability] | msgspec.UnsetType = msgspec.UNSET


LlamaAnswers = LlamaAnswer | list[LlamaAnswer]
"""One answer, or those to several prompts in their order."""


def probability(scored: TokenLogprob) -> dict[str, Any]:
    """Return a TokenProbability."""
    return {**_likely(scored.token, scored.piece, scored.logprob), "top_logprobs": [_likely(*each) for each in scored.top]}


def _likely(token: int, piece: bytes, logprob: float) -> dict[str, Any]:
    text = piece.decode("utf-8", "replace")
    return {"id": token, "token": text, "bytes": list(piece), "logprob": max(logprob, LEAST)}


class LlamaFormatter(Collector):
    """Formats the answers to `prompts`, one for each: an event for each piece of text, and a last one with the figures.

    `settings` are returned, `context` is the model's. `scored`: with logprobs; `tokens`: whole answers with their tokens.
    """

    def __init__(
        self, model: str, prompts: Sequence[str], settings: Mapping[str, Any], *, context: int, scored: bool, tokens: bool
    ) -> None:
        super().__init__(len(prompts))
        self._model = model
        self._prompts = prompts
        self._settings = settings
        self._context = context
        self._scored = scored
        self._tokens = tokens
        self._new_lines = [False] * len(prompts)

    def whole(self) -> dict[str, Any] | list[dict[str, Any]]:
        found = []
        for index, answer in enumerate(self.finished()):
            self._new_lines[index] = "\n" in answer.text
            found.append({**self._body(index, answer), **self._probabilities(answer.logprobs)})
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
                events.append(event(self._body(index, last)))
        return b"".join(events)

    def end(self) -> bytes:
        return b""

    def fail(self, error: Exception) -> bytes:
        return event(openai_body(error))

    def ping(self) -> bytes:
        return event({"index": 0, **SILENT})

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
        return {"completion_probabilities": [probability(each) for each in logprobs]} if self._scored else {}
