"""Random conversations that share prefixes, what scripts/soak sends: the more of them, the less a cache can keep."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

from benchlib.prompts import SPARE_TOKENS, WORDS

SYSTEMS = 3  # system prompts, each of which many conversations begin with
NEW, EDITED, SAMPLED, LEFT, SEVERAL = 0.2, 0.4, 0.25, 0.15, 0.2  # shares of requests
FEWEST, MOST = 8, 64  # tokens of an answer
TOP = 5  # likeliest tokens that are asked for at each place of a greedy answer
MARKUP_TOKENS = 8  # of a message, at most


@dataclass(frozen=True, slots=True)
class Request:
    """One chat; its messages are spoken by system (the first), user and assistant in turn.

    A greedy answer comes with logprobs. The client leaves after `leave_after` events with text, if that is not None.
    `size` bounds the tokens of the messages.
    """

    messages: tuple[str, ...]
    size: int
    max_tokens: int
    n: int = 1
    greedy: bool = True
    leave_after: int | None = None
    edited: bool = False

    def body(self) -> dict[str, Any]:
        """The request's fields, without those that every request has."""
        roles = ["system", *(("user", "assistant")[place % 2] for place in range(len(self.messages) - 1))]
        chosen = {"temperature": 0, "logprobs": True, "top_logprobs": TOP} if self.greedy else {"temperature": 1}
        messages = [{"role": role, "content": text} for role, text in zip(roles, self.messages, strict=True)]
        return {"messages": messages, "max_tokens": self.max_tokens, "n": self.n, "ignore_eos": True, **chosen}


class Traffic:
    """Makes requests that fit `context`; what was answered goes on later, now and then with another end of the answer."""

    def __init__(self, seed: int, context: int) -> None:
        self._random = random.Random(seed)
        self._context, self._longest = context, context // 8
        self._systems = [self._words(self._longest, self._longest) for _ in range(SYSTEMS)]
        self._heard: list[Request] = []

    def next(self) -> Request:
        """A new conversation, or the next turn of one that was heard: nobody else takes that one at the same time."""
        chance = self._random.random
        messages, size, edited = self._begun()
        question = self._words(10, self._longest)
        return Request(
            messages=(*messages, question),
            size=size + _bound(question),
            max_tokens=(tokens := self._random.randint(FEWEST, MOST)),
            n=self._random.randint(2, 4) if chance() < SEVERAL else 1,
            greedy=chance() >= SAMPLED,
            leave_after=self._random.randrange(1, tokens) if chance() < LEFT else None,
            edited=edited,
        )

    def heard(self, request: Request, text: str) -> None:
        """Keeps the conversation with this answer for later, if another turn still fits."""
        size = request.size + request.max_tokens + MARKUP_TOKENS
        if text and size + _most(self._longest) + MOST + SPARE_TOKENS <= self._context:
            self._heard.append(replace(request, messages=(*request.messages, text), size=size))

    def _begun(self) -> tuple[tuple[str, ...], int, bool]:
        if not self._heard or self._random.random() < NEW:
            system = self._random.choice(self._systems)
            return (system,), _bound(system), False
        last = self._heard.pop(self._random.randrange(len(self._heard)))
        if self._random.random() >= EDITED:
            return last.messages, last.size, False
        answer = last.messages[-1]
        end = self._words(1, FEWEST)
        kept = answer[: self._random.randrange(len(answer))]
        return (*last.messages[:-1], f"{kept} {end}"), last.size + _bound(end), True

    def _words(self, fewest: int, most: int) -> str:
        return " ".join(self._random.choices(WORDS, k=self._random.randint(fewest, most)))


def _bound(text: str) -> int:
    return _most(len(text.split()))


def _most(words: int) -> int:
    return words * 115 // 100 + MARKUP_TOKENS
