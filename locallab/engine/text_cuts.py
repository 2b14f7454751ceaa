"""Where a long text may be cut so that its pieces have the tokens of the whole. Pure: knows a vocabulary's tokens as bytes.

A cut is exact if nothing that llama.cpp does spans it: no control token or user-defined token, no stripping of whitespace
around one, no word of the pre-tokenizer, and no merge. It is exact, too, right before a control token, which ends any word.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt

PIECE = 4096
"""Bytes that a piece has at least where the text can be cut at will."""

WINDOW = 65_536
"""Bytes looked through at once for a place to cut."""

SPACE = b" "
ESCAPED_SPACE = "▁".encode()
_WHITESPACE = frozenset(b" \t\n\r\v\f")
_MARKUP = re.compile(rb"<[^<>\s]{1,64}>|\[[^\[\]\s]{1,64}\]")
_HAN = rb"[\xe5-\xe8][\x80-\xbf][\x80-\xbf]"

_LINES = rb"[A-Za-z](?=\n[A-Za-z])"
_WORDS = rb"[A-Za-z](?=[ \n][A-Za-z])|" + _HAN + rb"(?=(?:\xef\xbc\x8c|\xe3\x80\x82)" + _HAN + rb")"
_DIGITS = rb"[A-Za-z](?=[0-9])"

_NAMES = """
a.x-4.0 afmoe bailingmoe bailingmoe2 bloom chameleon chatglm-bpe codeshell cohere2moe command-r dbrx deepseek-coder
deepseek-llm deepseek-r1-qwen deepseek-v3 default exaone exaone-moe exaone4 f2llmv2 falcon falcon-h1 falcon3 gigachat glm4
glm5 gpt-2 gpt-4o gpt3-finnish granite-docling granite-embed-multi-97m grok-2 hunyuan hunyuan-dense hy_v4 jais jais-2
jina-de jina-es jina-v1-en jina-v2-code jina-v2-de jina-v2-es jina-v5-nano joyai-llm kanana2 kimi-k2 kormo laguna lfm2
llada-moe llama-bpe llama-v3 llama3 llama4 megrez mellum mellum2 midm-2.0 minerva-7b minicpm5 minimax-m2 modern-bert mpt
olmo phi-2 pixtral poro-chat qwen2 qwen35 refact roberta-bpe seed-coder smaug-bpe smollm solar-open spark2_5 stablelm2
starcoder superbpe talkie tekken tiny_aya trillion ufakzeka viking youtu
"""
KNOWN = frozenset(_NAMES.split())
"""The pre-tokenizers of llama.cpp that begin a word at `BREAKS` or, if it has none for them, at `_WORDS`, whatever stands
around. What a later llama.cpp adds is cut before control tokens alone."""
BREAKS = {"exaone-moe": _LINES, "superbpe": _DIGITS}

Rule = Literal["words", "pairs", "markup"]
"""How a vocabulary's text may be cut besides before control tokens: between words of its pre-tokenizer, between bytes that no
token has next to each other, or not at all."""


@dataclasses.dataclass(frozen=True, slots=True)
class Special:
    """A token that is cut out of a text before anything else."""

    text: bytes
    control: bool = True
    lstrip: bool = False
    rstrip: bool = False


class Cuts:
    """The cuts of one vocabulary's texts."""

    def __init__(
        self, rule: Rule, specials: Collection[Special], tokens: Iterable[bytes] = (), pre: str = "", prefixed: bool = False
    ) -> None:
        """`tokens` are the bytes of all tokens, for the rule "pairs"; `pre` names the pre-tokenizer, for "words". A vocabulary
        is `prefixed` that puts a space in front of the text behind a special token."""
        self._specials = _pairs(special.text for special in specials)
        self._lstrip = {special.text[0] for special in specials if special.lstrip}
        self._rstrip = {special.text[-1] for special in specials if special.rstrip}
        self._closing = {special.text[-1] for special in specials} if prefixed else set()
        self._markup = _unmistakable(specials)
        self._breaks = re.compile(BREAKS.get(pre, _WORDS))
        self._joined = _pairs(tokens) if rule == "pairs" else None
        self._find: Callable[[bytes, int, int], int | None] = {
            "words": self._between_words,
            "pairs": self._between_pairs,
            "markup": lambda data, start, end: None,
        }[rule]

    def places(self, data: bytes, parse_special: bool) -> Iterator[tuple[int, bool]]:
        """Yield where to cut, in order, and whether a control token follows: if possible every PIECE bytes or a little more."""
        start = PIECE
        while start < len(data):
            end = min(start + WINDOW, len(data))
            marked = self._before_markup(data, start, end) if parse_special else None
            found = self._find(data, start, end if marked is None else marked)
            at = marked if found is None else found
            if at is not None:
                yield at, at == marked
            start = end if at is None else at + PIECE

    def _before_markup(self, data: bytes, start: int, end: int) -> int | None:
        for match in _MARKUP.finditer(data, start, min(end + 66, len(data))):
            if match.start() < end and match[0] in self._markup and self._is_outside(data, match.start()):
                return match.start()
        return None

    def _between_words(self, data: bytes, start: int, end: int) -> int | None:
        for match in self._breaks.finditer(data, start, min(end + 8, len(data))):
            at = match.end()
            if at < end and self._is_outside(data, at):
                return at
        return None

    def _between_pairs(self, data: bytes, start: int, end: int) -> int | None:
        assert self._joined is not None
        around = np.frombuffer(data, np.uint8, end - start + 1, start - 1).astype(np.uint16)
        pairs = around[:-1] << 8 | around[1:]
        begins = (around[1:] & 0xC0) != 0x80  # not within a character
        for index in np.flatnonzero(begins & ~self._joined[pairs]):
            at = start + int(index)
            if self._is_outside(data, at) and data[at - 1] not in self._closing and not data.startswith(b"\xef\xbb\xbf", at):
                return at
        return None

    def _is_outside(self, data: bytes, at: int) -> bool:
        """Return whether no special token spans the place, and none strips whitespace across it."""
        before, after = data[at - 1], data[at]
        if self._specials[before << 8 | after]:
            return False
        if not self._lstrip and not self._rstrip:
            return True
        blank, follows = before in _WHITESPACE, after in _WHITESPACE
        if follows:
            return not blank and before not in self._rstrip
        return not blank or not (after in self._lstrip or (self._closing and self._rstrip))


def _pairs(tokens: Iterable[bytes]) -> npt.NDArray[np.bool_]:
    """Return which bytes stand next to each other in a token, as 65,536 flags. A space may be spelled as U+2581."""
    texts = [token for token in tokens if token]
    found = np.zeros(1 << 16, bool)
    for old, new in ((b"", b""), (ESCAPED_SPACE, SPACE), (SPACE, ESCAPED_SPACE)):
        spelled = [text.replace(old, new) for text in texts] if old else texts
        data = np.frombuffer(b"".join(spelled), np.uint8).astype(np.uint16)
        inside = np.ones(len(data), bool)
        inside[np.cumsum([len(text) for text in spelled], dtype=np.intp) - 1] = False
        found[(data[:-1] << 8 | data[1:])[inside[:-1]]] = True
    found[ESCAPED_SPACE[-1] << 8 | SPACE[0]] = found[SPACE[0] << 8 | ESCAPED_SPACE[0]] = True
    return found


def _unmistakable(specials: Collection[Special]) -> frozenset[bytes]:
    """Return the texts of the control tokens within which no special token begins: where one stands, it is found."""
    texts = {special.text for special in specials}
    heads = {text[:length] for text in texts for length in range(1, len(text) + 1)}

    def is_clear(text: bytes) -> bool:
        return not any(text[start:] in heads or _begins(texts, text[start:]) for start in range(1, len(text)))

    return frozenset(special.text for special in specials if special.control and is_clear(special.text))


def _begins(texts: Collection[bytes], text: bytes) -> bool:
    """Return whether one of the texts is a beginning of `text`."""
    return any(text[:length] in texts for length in range(1, len(text)))
