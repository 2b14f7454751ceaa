"""Answers of llama.cpp's completion and infill: whole, or in events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from locallab.engine.request import TokenLogprob
from locallab.server.dialects.answer_fields import progress_body
from locallab.server.dialects.openai.errors import openai_body
from locallab.server.dialects.openai.logprobs import LEAST
from locallab.server.inference.generation import Collector, FinishedAnswer, Item
from locallab.server.streaming import event

STOPPED = {"length": "limit", "stop": "eos"}
SILENT = {"index": 0, "content": "", "tokens": [], "stop": False}
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
    tokens: Annotated[list[int], Meta(description="tokens of the answer, including the one that ended it")]
    stop: Annotated[bool, Meta(description="whether the answer has ended: true in the last event of a stream")]
    model: str
    tokens_predicted: int
    tokens_evaluated: Annotated[int, Meta(description="tokens of the prompt")]
    tokens_cached: Annotated[int, Meta(description="tokens of the prompt that were in the prefix cache")]
    truncated: bool
    stop_type: Annotated[str, Meta(description="eos, limit, or word: the stop string in stopping_word")]
    stopping_word: str
    completion_probabilities: list[TokenProbability] | msgspec.UnsetType = msgspec.UNSET


def probability(scored: TokenLogprob) -> dict[str, Any]:
    """Return a TokenProbability."""
    return {**_likely(scored.token, scored.piece, scored.logprob), "top_logprobs": [_likely(*each) for each in scored.top]}


def _likely(token: int, piece: bytes, logprob: float) -> dict[str, Any]:
    text = piece.decode("utf-8", "replace")
    return {"id": token, "token": text, "bytes": list(piece), "logprob": max(logprob, LEAST)}


class LlamaFormatter(Collector):
    """Formats an event for each piece of text, and a last one with the figures. `scored`: with logprobs."""

    def __init__(self, model: str, *, scored: bool) -> None:
        super().__init__()
        self._model = model
        self._scored = scored
        self._last = b""

    def whole(self) -> dict[str, Any]:
        [answer] = self.finished()
        return {**self._body(answer), **self._probabilities(answer.logprobs)}

    def encode(self, items: list[Item]) -> bytes:
        events = []
        for _, news in items:
            if news.progress is not None:
                events.append(event({**SILENT, "prompt_progress": progress_body(news.progress)}))
            if news.text or news.logprobs:
                piece = {"index": 0, "content": news.text, "tokens": list(news.token_ids), "stop": False}
                events.append(event({**piece, **self._probabilities(news.logprobs)}))
            if news.finish_reason is not None and news.usage is not None:
                self._last = event(self._body(FinishedAnswer("", news.finish_reason, news.usage, news.stop)))
        return b"".join(events)

    def end(self) -> bytes:
        return self._last

    def fail(self, error: Exception) -> bytes:
        return event(openai_body(error))

    def ping(self) -> bytes:
        return event(SILENT)

    def _body(self, answer: FinishedAnswer) -> dict[str, Any]:
        """Return a LlamaAnswer without its probabilities."""
        return {
            "index": 0,
            "content": answer.text,
            "tokens": list(answer.tokens),
            "stop": True,
            "model": self._model,
            "tokens_predicted": answer.usage.completion_tokens,
            "tokens_evaluated": answer.usage.prompt_tokens,
            "tokens_cached": answer.usage.cached_tokens,
            "truncated": False,
            "stop_type": "word" if answer.stop else STOPPED[answer.finish_reason],
            "stopping_word": answer.stop or "",
        }

    def _probabilities(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        return {"completion_probabilities": [probability(each) for each in logprobs]} if self._scored else {}
