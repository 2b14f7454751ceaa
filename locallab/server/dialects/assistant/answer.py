"""The assistant's answers: read as they come, told whole or in events, the same over HTTP and WebSocket."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from locallab.chat.deltas import Parser, Plain
from locallab.engine.request import Usage
from locallab.errors import Overloaded, RateLimited
from locallab.server.dialects.answer_fields import FinishReason, ModelName, UsageFigures, usage_body
from locallab.server.dialects.assistant.code_blocks import Block, Fences
from locallab.server.dialects.assistant.request import PreparedQuestion
from locallab.server.errors import message_of
from locallab.server.inference.generation import Item
from locallab.server.inference.reader import plain_text
from locallab.server.streaming import event


class AssistantAnswer(msgspec.Struct, kw_only=True):
    """What the assistant answers. Of a continuation, `response` and `code` are the prompt and what follows it."""

    response: Annotated[str, Meta(description="the whole answer")]
    task: str
    tokens_used: Annotated[int, Meta(description="tokens of the answer", ge=0)]
    model: ModelName
    finish_reason: FinishReason
    usage: UsageFigures
    code: Annotated[str | None, Meta(description="the answer's code by itself: what its fenced block holds; null without one")]
    result: Annotated[Any, Meta(description="with format json: the answer as a value; null if it was cut off")] = UNSET
    detail: Annotated[str | UnsetType, Meta(description="why result is null")] = UNSET


class AnswerReader:
    """Reads one answer as it comes, and says what there is to send. What a model thinks first is no part of it."""

    def __init__(self, asked: PreparedQuestion) -> None:
        self._asked = asked
        self._parser: Parser = asked.turn.parser() if asked.turn else Plain()
        self._fences = Fences()
        self._parts: list[str] = []
        self._opening = asked.opening or ""
        self._reason, self._usage = "stop", Usage(0, 0, 0)

    def feed(self, text: str, last: bool = False) -> str:
        """The next piece of what the model says; returns what of it can be shown."""
        deltas = [*self._parser.feed(text), *(self._parser.finish() if last else ())]
        shown, self._opening = self._opening + plain_text(deltas), ""
        self._parts.append(shown)
        self._fences.feed(shown)
        return shown

    def read(self, items: Iterable[Item]) -> str:
        """The same for news of a generation, which may be its end."""
        shown = []
        for _, news in items:
            shown.append(self.feed(news.text, news.finish_reason is not None))
            if news.finish_reason is not None:
                self.end(news.finish_reason, news.usage)
        return "".join(shown)

    def end(self, reason: str, usage: Usage | None) -> None:
        """Why the answer has ended, and what it took."""
        self._reason, self._usage = reason, usage or Usage(0, 0, 0)

    def answer(self) -> dict[str, Any]:
        """The whole, once it has ended: an AssistantAnswer."""
        return {"response": "".join(self._parts), **self.summary()}

    def summary(self) -> dict[str, Any]:
        """The whole without its text."""
        asked = self._asked
        figures = {
            "task": asked.question.task,
            "tokens_used": self._usage.completion_tokens,
            "model": asked.model,
            "finish_reason": self._reason,
            "usage": usage_body([self._usage]),
        }
        return figures | (self._result() if asked.question.as_json else {"code": self._code()})

    def _code(self) -> str | None:
        if self._asked.opening is not None:
            return "".join(self._parts)
        return code_of(self._asked.question.task, self._fences.finish())

    def _result(self) -> dict[str, Any]:
        try:
            result = msgspec.json.decode("".join(self._parts))
        except ValueError:
            advice = "; set a larger max_tokens, or none" if self._reason == "length" else ""
            why = f"the answer ended ({self._reason}) before its JSON was complete{advice}"
            return {"code": None, "result": None, "detail": why}
        return {"code": result.get("code"), "result": result}


class AssistantFormatter:
    """The answer as server-sent events: `{"type": "token", "text"}`, and `{"type": "done", ...}` with all that is not text."""

    def __init__(self, asked: PreparedQuestion) -> None:
        self._reader = AnswerReader(asked)

    def take(self, items: list[Item]) -> None:
        self._reader.read(items)

    def whole(self) -> dict[str, Any]:
        return self._reader.answer()

    def encode(self, items: list[Item]) -> bytes:
        text = self._reader.read(items)
        return event(token(text)) if text else b""

    def end(self) -> bytes:
        return event(done(self._reader.summary()))

    def fail(self, error: Exception) -> bytes:
        return event(problem(error))

    def ping(self) -> bytes:
        return event(token(""))


def token(text: str) -> dict[str, Any]:
    return {"type": "token", "text": text}


def done(summary: dict[str, Any]) -> dict[str, Any]:
    return {"type": "done", **summary}


def problem(error: Exception) -> dict[str, Any]:
    """An error as an event; `retry_after` is seconds after which to try again."""
    later = {"retry_after": error.retry_after} if isinstance(error, (Overloaded, RateLimited)) else {}
    return {"type": "error", "detail": message_of(error), **later}


def code_of(task: str, blocks: Sequence[Block]) -> str | None:
    """The code that an answer to `task` brings: its first block, of debug its last, which comes after the diagnosis. An audit
    brings none: what it quotes is the user's own."""
    found = [block.code for block in blocks if block.code.strip()]
    if not found or task == "audit":
        return None
    return found[-1] if task == "debug" else found[0]
