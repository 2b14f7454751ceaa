"""Answers of LocalLab's own generating routes: whole, or as events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from locallab.chat.turn import Turn
from locallab.engine.request import Usage
from locallab.server.dialects.answer_fields import Created, FinishReason, ModelName, NativeChoice, UsageFigures, usage_body
from locallab.server.dialects.openai.chat import message_body
from locallab.server.dialects.openai.stream import ChatFormatter
from locallab.server.errors import detail_body
from locallab.server.inference.generation import Collector, FinishedAnswer, Item
from locallab.server.inference.reader import Reader, plain_text, read_whole
from locallab.server.streaming import DONE, dumps, event


class Generated(msgspec.Struct):
    """The answer of /generate."""

    response: Annotated[str, Meta(description="the text that follows the prompt")]
    model: ModelName
    finish_reason: FinishReason
    usage: UsageFigures


class GeneratedBatch(msgspec.Struct):
    """The answer of /generate/batch, in the order of the prompts."""

    responses: Annotated[list[str], Meta(description="the texts that follow the prompts")]
    model: ModelName
    finish_reasons: list[FinishReason]
    usage: UsageFigures


class NativeChatAnswer(msgspec.Struct):
    """The answer of /chat: OpenAI's shape with one choice."""

    id: str
    object: Literal["chat.completion"]
    created: Created
    model: ModelName
    choices: list[NativeChoice]
    finish_reason: FinishReason
    usage: UsageFigures


class NativeFormatter(Collector):
    """Formats `{"response": text}`; the last event has the finish reason and the usage instead of text."""

    def __init__(self, model: str, turn: Turn | None = None) -> None:
        """`turn` is that of a prompt sent as a message: reasoning is left out of its answer."""
        super().__init__()
        self._model = model
        self._turn = turn
        self._end: dict[str, Any] = {}
        self._reader = None if turn is None or turn.is_plain else Reader(turn)

    def whole(self) -> dict[str, Any]:
        [answer] = self.finished()
        end = {"finish_reason": answer.finish_reason, "usage": usage_body([answer.usage])}
        return {"response": _text(answer, self._turn), "model": self._model, **end}

    def texts(self, items: list[Item]) -> list[str]:
        """Return the new texts, some of them empty."""
        if self._reader is None:
            return [news.text for _, news in items]
        return [plain_text(news.deltas) for news in self._reader.read(items)]

    def encode(self, items: list[Item]) -> bytes:
        for _, news in items:
            if news.finish_reason is not None:
                self._end = {"finish_reason": news.finish_reason, "usage": usage_body([news.usage or Usage(0, 0, 0)])}
        return b"".join([b'data: {"response":' + dumps(text) + b"}\n\n" for text in self.texts(items) if text])

    def end(self) -> bytes:
        return event({"response": "", "model": self._model, **self._end}) + DONE

    def fail(self, error: Exception) -> bytes:
        return event(detail_body(error))

    def ping(self) -> bytes:
        return event({"response": ""})


class BatchFormatter(Collector):
    """Formats the answers to several prompts, each with its turn if it is sent as a message; no stream."""

    def __init__(self, model: str, turns: Sequence[Turn | None]) -> None:
        super().__init__(len(turns))
        self._model = model
        self._turns = turns

    def whole(self) -> dict[str, Any]:
        answers = self.finished()
        return {
            "responses": [_text(answer, turn) for answer, turn in zip(answers, self._turns, strict=True)],
            "model": self._model,
            "finish_reasons": [answer.finish_reason for answer in answers],
            "usage": usage_body([answer.usage for answer in answers]),
        }


class NativeChatFormatter(ChatFormatter):
    """Formats OpenAI's chat; the usage is in the chunk that ends the answer, the finish reason also beside the choices."""

    def whole(self) -> dict[str, Any]:
        [answer] = self.finished()
        whole, end = read_whole(self.turn, answer)
        choice = {"index": 0, "message": message_body(whole), "finish_reason": end.finish_reason}
        ending = {"finish_reason": end.finish_reason, "usage": usage_body([answer.usage])}
        return self.head.body("chat.completion", [choice], **ending)

    def opening(self, index: int) -> list[dict[str, Any]]:
        return [{**self.choice(index, "", None), "delta": {"role": "assistant", "content": ""}}]

    def choice(self, index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
        return {"index": index, "delta": {"content": text} if text else {}, "finish_reason": finish_reason}

    def last(self, index: int, finish_reason: str, usage: Usage) -> bytes:
        return self.chunk(self.choice(index, "", finish_reason), usage=usage_body([usage]))


def _text(answer: FinishedAnswer, turn: Turn | None) -> str:
    return answer.text if turn is None else read_whole(turn, answer)[0].text
