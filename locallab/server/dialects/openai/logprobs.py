"""Logprobs as each dialect tells them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from locallab.engine.request import TokenLogprob
from locallab.server.inference.generation import FinishedAnswer
from locallab.server.inference.reader import TextPosition

LEAST = -9999.0
"""Stands for an impossible token: JSON has no infinity."""


def chat_logprobs(told: Sequence[TokenLogprob]) -> dict[str, Any]:
    """The `logprobs` of a chat's choice."""
    return {"content": token_logprobs(told), "refusal": None}


def token_logprobs(told: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """As OpenAI tells them of each token; so does the part of a response that has a text."""
    return [_weighed(each) for each in told]


def event_logprobs(told: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """The same without bytes, as the events of a response have them."""
    return [{**_bare(each), "top_logprobs": [_bare(top) for top in each["top_logprobs"]]} for each in token_logprobs(told)]


def _weighed(told: TokenLogprob) -> dict[str, Any]:
    top = [_entry(piece, logprob) for _, piece, logprob in told.top]
    return {**_entry(told.piece, told.logprob), "top_logprobs": top}


def _entry(piece: bytes, logprob: float) -> dict[str, Any]:
    """Bytes that are no text by themselves are written as escapes."""
    return {"token": piece.decode("utf-8", "backslashreplace"), "logprob": max(logprob, LEAST), "bytes": list(piece)}


def _bare(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {"token": entry["token"], "logprob": entry["logprob"]}


class Echo:
    """A prompt that comes back ahead of its answer. `pieces` are those of its tokens; its text lacks what a tokenizer puts in
    front by itself, an opening token or a space."""

    def __init__(self, text: str, pieces: Sequence[bytes] = ()) -> None:
        self.text = text
        self._pieces = pieces

    def logprobs(self, told: Sequence[TokenLogprob]) -> dict[str, Any]:
        """Of the whole prompt: of its first token there is nothing to tell."""
        place = TextPosition()
        starts = [place.passed(piece) for piece in self._pieces]
        surplus = place.end - len(self.text)
        first = {"tokens": [_name(self._pieces[0])], "token_logprobs": [None], "top_logprobs": [None], "text_offset": [0]}
        return joined(first, _columns(told, [max(0, start - surplus) for start in starts[1:]]))


def text_logprobs(place: TextPosition, told: Sequence[TokenLogprob]) -> dict[str, Any]:
    """The `logprobs` of a completion's choice, for the tokens that come next. Mutates `place`: it goes on behind them."""
    return _columns(told, [place.passed(b"" if each.hidden else each.piece) for each in told])


def joined(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """The logprobs of a text and of the one behind it."""
    return {name: first[name] + second[name] for name in first}


def mean(answer: FinishedAnswer) -> float:
    """How likely the model finds an answer, whatever its length; one that says nothing is the least likely."""
    told = answer.logprobs
    return sum(each.logprob for each in told) / len(told) if told else -float("inf")


def _columns(told: Sequence[TokenLogprob], offsets: list[int]) -> dict[str, Any]:
    return {
        "tokens": [_name(each.piece) for each in told],
        "token_logprobs": [max(each.logprob, LEAST) for each in told],
        "top_logprobs": [_by_name(each) for each in told],
        "text_offset": offsets,
    }


def _by_name(told: TokenLogprob) -> dict[str, float]:
    """The alternatives, and the token itself if it is none of them; of two that look the same the likelier."""
    found: dict[str, float] = {}
    for piece, logprob in [*((piece, logprob) for _, piece, logprob in told.top), (told.piece, told.logprob)]:
        found.setdefault(_name(piece), max(logprob, LEAST))
    return found


def _name(piece: bytes) -> str:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)
