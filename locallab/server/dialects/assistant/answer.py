"""The assistant's answers, whole or in events, the same over HTTP and WebSocket."""

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
    """The assistant's answer. In a continuation, `response` and `code` begin with the prompt."""

    response: Annotated[str, Meta(description="the whole answer")]
    task: str
    tokens_used: Annotated[int, Meta(description="tokens of the answer", ge=0)]
    model: ModelName
    finish_reason: FinishReason
    usage: UsageFigures
    code: Annotated[str | None, Meta(description="the code of the answer's fenced block; null without one")]
    result: Annotated[Any, Meta(description="with format json: the answer as a value; null if it was cut off")] = UNSET
    detail: Annotated[str | UnsetType, Meta(description="why result is null")] = UNSET


class AnswerReader:
    """Reads one answer as it comes, without its reasoning."""

    def __init__(self, prepared: PreparedQuestion) -> None:
        self._prepared = prepared
        self._parser: Parser = prepared.turn.parser() if prepared.turn else Plain()
        self._fences = Fences()
        self._parts: list[str] = []
        self._opening = prepared.opening or ""
        self._reason, self._usage = "stop", Usage(0, 0, 0)

    def feed(self, text: str, last: bool = False) -> str:
        """Take the next text of the model, and return the part of it to show."""
        deltas = [*self._parser.feed(text), *(self._parser.finish() if last else ())]
        shown, self._opening = self._opening + plain_text(deltas), ""
        self._parts.append(shown)
        self._fences.feed(shown)
        return shown

    def read(self, items: Iterable[Item]) -> str:
        """Take items of a generation, and return the text to show."""
        shown = []
        for _, news in items:
            included = self._prepared.job[1].include_stop and news.stop in self._prepared.closing
            text = news.text.removesuffix(news.stop or "") if included else news.text
            shown.append(self.feed(text, news.finish_reason is not None))
            if news.finish_reason is not None:
                self.end(news.finish_reason, news.usage)
        return "".join(shown)

    def end(self, reason: str, usage: Usage | None) -> None:
        """Note why the answer has ended, and its token counts."""
        self._reason, self._usage = reason, usage or Usage(0, 0, 0)

    def answer(self) -> dict[str, Any]:
        """Return the finished answer: an AssistantAnswer."""
        return {"response": "".join(self._parts), **self.summary()}

    def summary(self) -> dict[str, Any]:
        """Return the finished answer without its text."""
        prepared = self._prepared
        figures = {
            "task": prepared.question.task,
            "tokens_used": self._usage.completion_tokens,
            "model": prepared.model,
            "finish_reason": self._reason,
            "usage": usage_body([self._usage]),
        }
        if not prepared.question.as_json:
            is_program = prepared.opening is not None
            code = "".join(self._parts) if is_program else code_of(prepared.question.task, self._fences.finish())
            return {**figures, "code": code}
        try:
            result = msgspec.json.decode("".join(self._parts))
        except ValueError:
            advice = "; set a larger max_tokens, or none" if self._reason == "length" else ""
            reason = f"the answer ended ({self._reason}) before its JSON was complete{advice}"
            return {**figures, "code": None, "result": None, "detail": reason}
        return {**figures, "code": result.get("code"), "result": result}


class AssistantFormatter:
    """Formats server-sent events: `{"type": "token", "text"}`, and at the end `{"type": "done", ...}` with the figures."""

    def __init__(self, prepared: PreparedQuestion) -> None:
        self._reader = AnswerReader(prepared)

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
    """Return an error as an event; `retry_after` is in seconds."""
    later = {"retry_after": error.retry_after} if isinstance(error, (Overloaded, RateLimited)) else {}
    return {"type": "error", "detail": message_of(error), **later}


def code_of(task: str, blocks: Sequence[Block]) -> str | None:
    """Return the code of an answer to `task`: its first block, or for debug the last, which comes after the diagnosis.

    An audit has none: its quotes are the user's own code.
    """
    found = [block.code for block in blocks if block.code.strip()]
    if not found or task == "audit":
        return None
    return found[-1] if task == "debug" else found[0]
