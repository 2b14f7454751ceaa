"""Answers of OpenAI's chats, completions and fill-in-the-middle: whole, or as chunks, with and without logprobs."""

from __future__ import annotations

import abc
import dataclasses
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from locallab.chat.deltas import CallArguments, CallStart, Delta, Reasoning, Text
from locallab.chat.turn import Turn
from locallab.engine.logprobs import MOST_LOGPROBS
from locallab.engine.request import TokenEvent, Usage
from locallab.server.dialects.answer_fields import progress_body, timings_body, usage_body
from locallab.server.dialects.openai.chat import call_body, message_body
from locallab.server.dialects.openai.completions import Completion, CompletionBody
from locallab.server.dialects.openai.errors import openai_body
from locallab.server.dialects.openai.logprobs import chat_logprobs, joined, limited, mean, prompt_logprobs, text_logprobs
from locallab.server.inference.generation import Collector, FinishedAnswer, Item
from locallab.server.inference.reader import Reader, TextPosition, read_whole
from locallab.server.streaming import DONE, dumps, event


@dataclasses.dataclass(frozen=True, slots=True)
class Head:
    """The fields that all chunks of one answer, and its whole, have in common; `service` has those of OpenAI's service."""

    id: str
    created: int
    model: str
    service: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def make(cls, prefix: str, model: str, service: Mapping[str, str] | None = None) -> Head:
        return cls(f"{prefix}-{secrets.token_hex(12)}", int(time.time()), model, service or {})

    def body(self, kind: str, choices: list[Any], **more: Any) -> dict[str, Any]:
        """Return an object of OpenAI's shape."""
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return {**head, **self.service, "choices": choices, **more}


Prompts = Sequence[Sequence[int]]


class OpenAIFormatter(Collector, abc.ABC):
    """Formats `n` answers to each of `total / n` prompts as objects of OpenAI's shape.

    A stream has the opening of each choice, its text and its end; then the usage if requested, and [DONE]. With `prompts`, one
    for each answer, the token ids are returned, in the shape of vLLM's server.
    """

    kind: ClassVar[str]
    """The `object` of a chunk."""

    def __init__(
        self,
        head: Head,
        total: int = 1,
        *,
        n: int = 1,
        include_usage: bool = False,
        prompts: Prompts | None = None,
        lengths: Sequence[int] | None = None,
    ) -> None:
        """`lengths` are those of the prompts of all answers, if every chunk is to have the usage of its answer so far."""
        super().__init__(total)
        self._continuous = lengths is not None
        self.head = head
        self._prompts = prompts
        self._n = n
        self._include_usage = include_usage
        self._usages = [Usage(length, 0, 0) for length in lengths or [0] * total]
        self._opened = [False] * total
        mark = secrets.token_hex(16)
        # The bytes around the text of a chunk: a sample, cut at a text that occurs nowhere else.
        self._around = [self.chunk(self.choice(index, mark, None)).split(dumps(mark)) for index in range(total)]

    @abc.abstractmethod
    def opening(self, index: int) -> list[dict[str, Any]]:
        """Return the choices to send before the first text of an answer, one chunk each."""

    @abc.abstractmethod
    def choice(self, index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
        """Return a choice with text, or one without that ends the answer."""

    @abc.abstractmethod
    def whole_choices(self, answers: Sequence[FinishedAnswer]) -> list[dict[str, Any]]:
        """Return the choices of the whole body."""

    def whole(self) -> dict[str, Any]:
        answers = self.finished()
        usages = [answer.usage for answer in answers]
        more = {"usage": usage_body(usages, self._n), "timings": timings_body(usages, self._n)}
        return self.head.body(self.kind.removesuffix(".chunk"), self.whole_choices(answers), **more)

    def encode(self, items: list[Item]) -> bytes:
        chunks: list[bytes] = []
        progressed = [(index, event.progress) for index, event in items if event.progress is not None]
        if progressed:
            items = [item for item in items if item[1].progress is None]
            for index, progress in progressed:
                more = {"prompt_progress": progress_body(progress)}
                chunks += self._open(index, **more) or [self.chunk(self.choice(index, "", None), **more)]
        for each in [[item] for item in items] if self._continuous else [items]:
            if self._continuous:
                self._count(*each[0])
            chunks += self._events(each)
        return b"".join(chunks)

    def end(self) -> bytes:
        if not self._include_usage:
            return DONE
        more = {"usage": usage_body(self._usages, self._n), "timings": timings_body(self._usages, self._n)}
        return event(self.head.body(self.kind, [], **more)) + DONE

    def fail(self, error: Exception) -> bytes:
        return event(openai_body(error))

    def ping(self) -> bytes:
        return b"".join(self._open(0)) or self.chunk(self.choice(0, "", None))

    def chunk(self, choice: dict[str, Any], **more: Any) -> bytes:
        if self._continuous:
            more["usage"] = usage_body([self._usages[choice["index"]]])
        elif self._include_usage:
            more.setdefault("usage", None)
        return event(self.head.body(self.kind, [choice], **more))

    def last(self, index: int, finish_reason: str, usage: Usage) -> bytes:
        """Return the chunk that ends an answer, with its timings unless those of all follow, and keep the usage."""
        self._usages[index] = usage
        more = {} if self._include_usage else {"timings": timings_body([usage])}
        return self.chunk(self.choice(index, "", finish_reason), **more)

    def _events(self, items: list[Item]) -> Iterable[bytes]:
        for index, news in items:
            yield from self._open(index)
            if self._prompts is not None and news.token_ids:
                yield self.chunk({**self.choice(index, news.text, None), **self._ids(news.token_ids)})
            elif news.text and not self._continuous:
                yield dumps(news.text).join(self._around[index])
            elif news.text:
                yield self.chunk(self.choice(index, news.text, None))
            if news.finish_reason is not None:
                yield self.last(index, news.finish_reason, news.usage or Usage(0, 0, 0))

    def _count(self, index: int, news: TokenEvent) -> None:
        """Keep the usage up to this event."""
        before = self._usages[index]
        so_far = dataclasses.replace(before, completion_tokens=before.completion_tokens + len(news.token_ids))
        self._usages[index] = news.usage or so_far

    def _ids(self, tokens: Sequence[int]) -> dict[str, Any]:
        """Return the fields of a choice with the ids of its tokens, if requested."""
        return {} if self._prompts is None else {"token_ids": list(tokens)}

    def _of_vllm(self, answer: FinishedAnswer) -> dict[str, Any]:
        """Return the fields of a whole choice that vLLM's clients look for: they are null rather than absent."""
        return {"stop_reason": answer.stop, "token_ids": None, **self._ids(answer.tokens)}

    def _open(self, index: int, **more: Any) -> list[bytes]:
        """Return the chunks that open an answer, once, with `more` fields."""
        if self._opened[index]:
            return []
        self._opened[index] = True
        return [self.chunk(choice, **more) for choice in self.opening(index)]


class ChatFormatter(OpenAIFormatter):
    """Formats `n` answers to one turn. An answer that is all text takes the short way, without a parser.

    `scored`: with logprobs; they come with the step that brought the token, even where its text is held back.
    """

    kind = "chat.completion.chunk"

    def __init__(
        self,
        head: Head,
        turn: Turn,
        n: int = 1,
        *,
        scored: bool = False,
        include_usage: bool = False,
        prompts: Prompts | None = None,
        alternatives: int | None = MOST_LOGPROBS,
        prompt_alternatives: int | None = None,
        lengths: Sequence[int] | None = None,
    ) -> None:
        """`alternatives` of a token are returned; `prompt_alternatives` of one of the prompt,
        None for no logprobs of it."""
        super().__init__(head, n, n=n, include_usage=include_usage, prompts=prompts, lengths=lengths)
        self._alternatives = alternatives
        self._prompt_alternatives = prompt_alternatives
        self.turn = turn
        self._scored = scored
        self._reader = None if turn.is_plain and not scored else Reader(turn, n)

    def opening(self, index: int) -> list[dict[str, Any]]:
        return [{**self.choice(index, "", None), "delta": {"role": "assistant", "content": "", "refusal": None}}]

    def whole(self) -> dict[str, Any]:
        scored = {}
        if self._prompt_alternatives is not None:
            [first, *_] = self.finished()
            scored["prompt_logprobs"] = prompt_logprobs(first.prompt_logprobs, self._prompt_alternatives)
        return {**super().whole(), "prompt_token_ids": None, "prompt_logprobs": None, **self._prompt_ids(), **scored}

    def _open(self, index: int, **more: Any) -> list[bytes]:
        if not any(self._opened):
            more |= self._prompt_ids()
        return super()._open(index, **more)

    def _prompt_ids(self) -> dict[str, Any]:
        return {} if self._prompts is None else {"prompt_token_ids": list(self._prompts[0])}

    def choice(self, index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
        delta = {"content": text} if text else {}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}

    def whole_choices(self, answers: Sequence[FinishedAnswer]) -> list[dict[str, Any]]:
        choices = []
        for index, answer in enumerate(answers):
            whole, end = read_whole(self.turn, answer)
            logprobs = chat_logprobs(limited(answer.logprobs, self._alternatives)) if self._scored else None
            more = {"logprobs": logprobs, "finish_reason": end.finish_reason, **self._of_vllm(answer)}
            message = {**message_body(whole), "refusal": None, "annotations": []}
            choices.append({"index": index, "message": message, **more})
        return choices

    def _events(self, items: list[Item]) -> Iterable[bytes]:
        if self._reader is None:
            yield from super()._events(items)
            return
        for news in self._reader.read(items):
            yield from self._open(news.index)
            logprobs = chat_logprobs(news.event.logprobs) if news.event.logprobs else None
            ids = self._ids(news.event.token_ids) if news.event.token_ids else {}
            for delta in [delta_body(delta) for delta in news.deltas] or [{}] * bool(logprobs or ids):
                choice = {**self.choice(news.index, "", None), "delta": delta, **ids}
                ids = {}
                if self._scored:
                    choice["logprobs"], logprobs = logprobs, None
                yield self.chunk(choice)
            if news.end is not None:
                yield self.last(news.index, news.end.finish_reason, news.end.usage)


def delta_body(delta: Delta) -> dict[str, Any]:
    match delta:
        case Text(text):
            return {"content": text}
        case Reasoning(text):
            return {"reasoning_content": text}
        case CallStart(index):
            return {"tool_calls": [{"index": index, **call_body(delta, "")}]}
        case CallArguments(index, text, custom):
            piece = {"custom": {"input": text}} if custom else {"function": {"arguments": text}}
            return {"tool_calls": [{"index": index, **piece}]}


class CompletionFormatter(OpenAIFormatter):
    """Formats `body.per_prompt` answers to each prompt, its echo ahead of them; `echoes` has one for each prompt."""

    kind = "text_completion"

    def __init__(self, head: Head, body: CompletionBody, completion: Completion) -> None:
        self._body = body
        self._echoes = [echo for echo in completion.echoes for _ in range(body.per_prompt)]
        prompts = [prompt for prompt, _ in completion.jobs] if body.return_token_ids else None
        super().__init__(
            head,
            len(self._echoes),
            n=body.per_prompt,
            include_usage=body.include_usage,
            prompts=prompts,
            lengths=body.lengths(completion.jobs),
        )

    def opening(self, index: int) -> list[dict[str, Any]]:
        echo, ids = self._echoes[index], self._prompt_ids(index)
        text = echo.text if echo else ""
        return [{**self.choice(index, text, None), **ids}] if text or ids else []

    def _prompt_ids(self, index: int) -> dict[str, Any]:
        return {} if self._prompts is None else {"prompt_token_ids": list(self._prompts[index])}

    def choice(self, index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}

    def whole_choices(self, answers: Sequence[FinishedAnswer]) -> list[dict[str, Any]]:
        """Return the n likeliest answers to each prompt, or all in their order if that is as many."""
        n, per_prompt = self._body.count, self._body.per_prompt
        found: list[tuple[int, FinishedAnswer]] = []
        for at in range(0, len(answers), per_prompt):
            group = answers[at : at + per_prompt]
            best = sorted(group, key=mean, reverse=True)[:n] if per_prompt > n else group
            found += [(at, answer) for answer in best]
        choices = []
        for index, (at, answer) in enumerate(found):
            echo = self._echoes[at]
            text = (echo.text if echo else "") + answer.text
            none = {"prompt_token_ids": None, "prompt_logprobs": None}
            choice = {**self.choice(index, text, answer.finish_reason), **none, **self._of_vllm(answer)}
            if self._body.alternatives is not None:
                count = self._body.alternatives
                logprobs = text_logprobs(TextPosition(len(echo.text) if echo else 0), limited(answer.logprobs, count))
                of_prompt = limited(answer.prompt_logprobs, count)
                choice["logprobs"] = joined(echo.logprobs(of_prompt), logprobs) if echo else logprobs
            if self._body.prompt_logprobs is not None:
                choice["prompt_logprobs"] = prompt_logprobs(answer.prompt_logprobs, self._body.prompt_logprobs)
            choices.append({**choice, **self._prompt_ids(at)})
        return choices

    def fail(self, error: Exception) -> bytes:
        return event(openai_body(error, "prompt"))


class ScoredCompletionFormatter(CompletionFormatter):
    """The same with logprobs. In a stream an echo waits for the logprobs of the prompt."""

    def __init__(self, head: Head, body: CompletionBody, completion: Completion) -> None:
        super().__init__(head, body, completion)
        self._waiting = list(self._echoes)
        self._positions = [TextPosition(len(echo.text) if echo else 0) for echo in self._echoes]

    def opening(self, index: int) -> list[dict[str, Any]]:
        ids = self._prompt_ids(index)
        return [{**self.choice(index, "", None), **ids}] if ids else []

    def _events(self, items: list[Item]) -> Iterable[bytes]:
        for index, news in items:
            echo, self._waiting[index] = self._waiting[index], None
            yield from self._open(index)
            if echo is not None:
                yield self._piece(index, echo.text, echo.logprobs(news.prompt_logprobs))
            if news.text or news.logprobs:
                logprobs = text_logprobs(self._positions[index], news.logprobs)
                yield self._piece(index, news.text, logprobs, **self._ids(news.token_ids))
            if news.finish_reason is not None:
                yield self.last(index, news.finish_reason, news.usage or Usage(0, 0, 0))

    def _piece(self, index: int, text: str, logprobs: dict[str, Any], **more: Any) -> bytes:
        return self.chunk({**self.choice(index, text, None), "logprobs": logprobs, **more})
