"""Log probabilities in the shapes of the dialects."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from locallab.engine.request import TokenLogprob
from locallab.server.inference.generation import FinishedAnswer
from locallab.server.inference.reader import TextPosition

LEAST = -9999.0
"""Stands for an impossible token: JSON has no infinity."""


def chat_logprobs(logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Return the `logprobs` of a chat's choice."""
    return {"content": token_logprobs(logprobs), "refusal": None}


def token_logprobs(logprobs: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """Return an object for each token, as in OpenAI's chats and in the text parts of its responses."""
    return [
        {**_entry(each.piece, each.logprob), "top_logprobs": [_entry(piece, logprob) for _, piece, logprob in each.top]}
        for each in logprobs
    ]


def event_logprobs(logprobs: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """Return the same without bytes, as in the events of a response."""

    def bare(entry: Mapping[str, Any]) -> dict[str, Any]:
        return {"token": entry["token"], "logprob": entry["logprob"]}

    return [{**bare(each), "top_logprobs": [bare(top) for top in each["top_logprobs"]]} for each in token_logprobs(logprobs)]


def _entry(piece: bytes, logprob: float) -> dict[str, Any]:
    """Return a token's object; bytes that are not UTF-8 by themselves are escaped."""
    return {"token": piece.decode("utf-8", "backslashreplace"), "logprob": max(logprob, LEAST), "bytes": list(piece)}


def limited(logprobs: Sequence[TokenLogprob], count: int | None) -> list[TokenLogprob]:
    """Return the logprobs with no more than `count` alternatives each; more were computed for another use."""
    return [dataclasses.replace(each, top=each.top[: count or 0]) for each in logprobs]


def prompt_logprobs(logprobs: Sequence[TokenLogprob], count: int) -> list[dict[str, Any] | None]:
    """Return vLLM's `prompt_logprobs` from the logprobs of all tokens but the first: of each token and `count` alternatives."""
    found: list[dict[str, Any] | None] = [None]
    for each in logprobs:
        ranked = [(each.token, each.piece, each.logprob, each.rank)]
        ranked += [(*top, rank) for rank, top in enumerate(each.top[:count], 1)]
        found.append(
            {
                str(token): {
                    "logprob": max(logprob, LEAST),
                    "rank": rank,
                    "decoded_token": piece.decode("utf-8", "replace"),
                }
                for token, piece, logprob, rank in ranked
            }
        )
    return found


class Echo:
    """A prompt that is returned ahead of its answer, with the `pieces` of its tokens.

    The text lacks what the tokenizer puts in front by itself, an opening token or a space.
    """

    def __init__(self, text: str, pieces: Sequence[bytes] = ()) -> None:
        self.text = text
        self._pieces = pieces

    def logprobs(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        """Return the columns of the whole prompt from the logprobs of all tokens but the first, which has none."""
        position = TextPosition()
        starts = [position.passed(piece) for piece in self._pieces]
        surplus = position.end - len(self.text)
        first = {"tokens": [_name(self._pieces[0])], "token_logprobs": [None], "top_logprobs": [None], "text_offset": [0]}
        return joined(first, _columns(logprobs, [max(0, start - surplus) for start in starts[1:]]))


def text_logprobs(position: TextPosition, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Return the `logprobs` of a completion's choice for the next tokens. Moves `position` behind them."""
    return _columns(logprobs, [position.passed(b"" if each.hidden else each.piece) for each in logprobs])


def joined(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Concatenate the columns of two texts."""
    return {name: first[name] + second[name] for name in first}


def mean(answer: FinishedAnswer) -> float:
    """Return the mean log probability of the tokens of an answer's text; an empty answer is the least likely."""
    logprobs = [each.logprob for each in answer.logprobs if not each.hidden]
    return sum(logprobs) / len(logprobs) if logprobs else -float("inf")


def _columns(logprobs: Sequence[TokenLogprob], offsets: list[int]) -> dict[str, Any]:
    alternatives = []
    for each in logprobs:
        found: dict[str, float] = {}
        # The token itself is one of them; of two that look the same the likelier one counts.
        for piece, logprob in [*((piece, logprob) for _, piece, logprob in each.top), (each.piece, each.logprob)]:
            found.setdefault(_name(piece), max(logprob, LEAST))
        alternatives.append(found)
    return {
        "tokens": [_name(each.piece) for each in logprobs],
        "token_logprobs": [max(each.logprob, LEAST) for each in logprobs],
        "top_logprobs": alternatives,
        "text_offset": offsets,
    }


def _name(piece: bytes) -> str:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)
