"""Text to tokens and back for one vocabulary, in time and memory that grow with the text, whatever it holds."""

from __future__ import annotations

import contextlib
import dataclasses
import string
import threading
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Seq
from itertools import pairwise

import llama_cpp
import numpy as np

from locallab.engine import stacks
from locallab.engine.llama import Model
from locallab.engine.text_cuts import KNOWN, PIECE, Cuts, Rule, Special
from locallab.errors import ContextLengthExceeded, EngineClosed, RequestError

RECURSION = 512
"""Bytes of stack for each character of a word: libstdc++'s std::regex takes 210 to 419 on x86-64."""
STACK = 4 << 20
"""Bytes of stack besides; a thread of any system has as much for PIECE characters."""
LONGEST_WORD = 1 << 20
"""Maximum bytes of a word, or of whitespace, in BPE vocabularies, whose pre-tokenizers recurse."""

_TYPE_RULES: Mapping[int, Rule] = {
    llama_cpp.LLAMA_VOCAB_TYPE_SPM: "pairs",
    llama_cpp.LLAMA_VOCAB_TYPE_BPE: "words",
    llama_cpp.LLAMA_VOCAB_TYPE_RWKV: "pairs",
    llama_cpp.LLAMA_VOCAB_TYPE_PLAMO2: "pairs",
}
"""How texts may be cut; before control tokens alone where a vocabulary normalizes them (WPM, UGM)."""
_LINES = ("gemma4", "granite-embed-multi-311m", "sarvam-moe")
"""Pre-tokenizers that have no words: merges span a whole line."""
_OPAQUE = ("hybriddna", "whitespace")
"""Tokenizers of type BPE that treat some texts in another way, or drop them."""
_SPECIAL = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN


class Tokenizer:
    """The vocabulary of a model. Thread-safe; nothing waits for another's text, and `close` waits for all."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._type = model.vocabulary_type
        self._is_bpe = self._type == llama_cpp.LLAMA_VOCAB_TYPE_BPE
        self._pre = (model.meta("tokenizer.ggml.pre") or "") if self._is_bpe else ""
        self._opaque = self._is_bpe and model.meta("tokenizer.ggml.model") in _OPAQUE
        self._rule = self._rule_of()
        self._pieces = _Pieces(model)
        self._users = threading.Condition()
        self._running = 0
        self._closed = False
        self._learning = threading.Lock()
        self._facts: _Facts | None = None

    def tokenize(
        self,
        text: str,
        *,
        add_special: bool,
        parse_special: bool,
        context: int | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> list[int]:
        """Return the token ids of `text`: `add_special` adds what the model wants around it, `parse_special` reads markup as
        tokens. Blocks; a text that is long is tokenized in pieces, which releases the GIL.

        Raises ContextLengthExceeded for more than `context` tokens, most often before any work; Abandoned between two pieces
        once `stopped` says so; EngineClosed; RequestError for a word that is too long.
        """
        data = text.encode("utf-8", "replace")
        with self.using():
            if len(data) <= PIECE:
                tokens = self._model.tokenize(data, add_special=add_special, parse_special=parse_special)
                if context is not None and len(tokens) > context:
                    raise ContextLengthExceeded(len(tokens), context)
                return tokens
            work = _Work(data, parse_special, context, stopped)
            facts = self._learned()
            if context is not None and facts.least(data) > context:
                raise ContextLengthExceeded(facts.least(data), context, at_least=True)
            tokens = self._in_pieces(work, facts)
            return [*facts.opening, *tokens, *facts.closing] if add_special else tokens

    def pieces(self, tokens: Seq[int]) -> list[bytes]:
        """Return the text of each token, markup included. The tokens must be in the vocabulary. Raises EngineClosed."""
        with self.using():
            return [piece for some in self._texts(tokens) for piece in some]

    def detokenize(self, tokens: Seq[int]) -> str:
        """Return the text of `tokens`, markup included; invalid UTF-8 becomes U+FFFD. Raises as `pieces`."""
        with self.using():
            return b"".join([b"".join(some) for some in self._texts(tokens)]).decode("utf-8", "replace")

    def _texts(self, tokens: Seq[int]) -> Iterator[list[bytes]]:
        """Yield the tokens' texts, some thousands at a time: in between, other threads get the GIL."""
        for start in range(0, len(tokens), PIECE):
            yield list(map(self._pieces.__getitem__, tokens[start : start + PIECE]))

    def refuse(self) -> None:
        """Refuse all calls from now on; those that run end after their next piece."""
        self._closed = True

    def close(self) -> None:
        """Refuse all calls, and wait until those that run have ended: the model may then be freed."""
        with self._users:
            self._closed = True
            self._users.wait_for(lambda: not self._running)

    @contextlib.contextmanager
    def using(self) -> Iterator[None]:
        """Keep the model from being freed. Raises EngineClosed."""
        with self._users:
            if self._closed:
                raise EngineClosed()
            self._running += 1
        try:
            yield
        finally:
            with self._users:
                self._running -= 1
                self._users.notify_all()

    def _rule_of(self) -> Rule:
        if self._opaque or (self._is_bpe and self._pre not in KNOWN | {"", *_LINES}):
            return "markup"
        return "pairs" if self._pre in _LINES else _TYPE_RULES.get(self._type, "markup")

    def _learned(self) -> _Facts:
        with self._learning:
            if self._facts is None:
                self._facts = self._learn()
            return self._facts

    def _learn(self) -> _Facts:
        """Read the vocabulary: 0.1 s for 49,152 tokens."""
        model = self._model
        tokens = [model.name(token) for token in range(model.n_vocab)]
        specials = [found for token, text in enumerate(tokens) if (found := _special(text, model.attributes(token)))]
        prefixed = self._type == llama_cpp.LLAMA_VOCAB_TYPE_SPM
        around = model.tokenize(b"", add_special=True, parse_special=False)
        opening = int(bool(around) and (model.add_bos or self._type == llama_cpp.LLAMA_VOCAB_TYPE_WPM))
        counts = self._type in _TYPE_RULES and not self._opaque
        dropped = set(range(256)) - {token[0] for token in tokens if len(token) == 1} if self._is_bpe else set()
        if any(special.lstrip or special.rstrip for special in specials):
            dropped |= set(_WHITESPACE)
        return _Facts(
            Cuts(self._rule, specials, tokens if self._rule == "pairs" else (), self._pre, prefixed),
            around[:opening],
            around[opening:],
            prefixed,
            max(map(len, tokens)) if counts else 0,
            bytes(dropped),
        )

    def _in_pieces(self, work: _Work, facts: _Facts) -> list[int]:
        places = [(0, True), *facts.cuts.places(work.data, work.parse_special), (len(work.data), True)]
        word = self._longest_word(work.data, [at for at, _ in places]) if self._is_bpe else 0
        if word <= PIECE:
            return self._run(work, facts, places)
        if word > LONGEST_WORD:
            raise RequestError(
                f"a text has {word} bytes without a break between words; at most {LONGEST_WORD} can be tokenized"
            )
        with stacks.executor(STACK + word * RECURSION, "tokenize") as thread:
            return thread.submit(self._run, work, facts, places).result()

    def _longest_word(self, data: bytes, places: Seq[int]) -> int:
        """Return an upper bound of the bytes that a match of the pre-tokenizer spans. Short pieces do not count."""
        kinds = _KINDS.get(self._pre, _DEFAULT_KINDS)
        long = [data[start:end] for start, end in pairwise(places) if end - start > PIECE]
        return max((_longest_stretch(piece.translate(kinds)) for piece in long), default=0)

    def _run(self, work: _Work, facts: _Facts, places: Seq[tuple[int, bool]]) -> list[int]:
        tokens: list[int] = []
        for (start, clean), (end, _) in pairwise(places):
            if self._closed:
                raise EngineClosed()
            if work.stopped():
                raise Abandoned
            tokens += self._piece(work, start, end, carry=facts.prefixed and not clean)
            if work.context is not None and len(tokens) > work.context:
                is_end = end == len(work.data)
                raise ContextLengthExceeded(len(tokens) + facts.least(work.data[end:]), work.context, at_least=not is_end)
        return tokens

    def _piece(self, work: _Work, start: int, end: int, *, carry: bool) -> list[int]:
        """Return the tokens of a piece. `carry` tokenizes it behind the character before it, which takes the place of the space
        that the vocabulary would put there."""
        begin = start
        while carry:
            begin -= 1
            carry = work.data[begin] & 0xC0 == 0x80
        tokens = self._model.tokenize(work.data[begin:end], add_special=False, parse_special=work.parse_special)
        if begin == start:
            return tokens
        carried = self._model.tokenize(work.data[begin:start], add_special=False, parse_special=work.parse_special)
        return tokens[len(carried) :]


class Abandoned(Exception):
    """Nobody wants the tokens any more."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Work:
    data: bytes
    parse_special: bool
    context: int | None
    stopped: Callable[[], bool]


@dataclasses.dataclass(frozen=True, slots=True)
class _Facts:
    """What a vocabulary has: where its texts may be cut, the tokens around a text, whether a space is put in front of one, and
    the bytes of its longest token, 0 where a text may have fewer tokens than that says. The `dropped` bytes may be left out
    of a text: BPE leaves out those that are no token, and some special tokens strip whitespace."""

    cuts: Cuts
    opening: list[int]
    closing: list[int]
    prefixed: bool
    longest: int
    dropped: bytes

    def least(self, data: bytes) -> int:
        """Return a lower bound of the tokens of a text."""
        return -(-len(data.translate(None, self.dropped)) // self.longest) if self.longest else 0


class _Pieces(dict[int, bytes]):
    """The text of each token, markup included, once it was asked for."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self._model = model

    def __missing__(self, token: int) -> bytes:
        found = self[token] = self._model.piece(token) or self._model.markup(token)
        return found


def _special(text: bytes, attributes: int) -> Special | None:
    if not text or not attributes & _SPECIAL:
        return None
    return Special(
        text,
        control=bool(attributes & llama_cpp.LLAMA_TOKEN_ATTR_CONTROL),
        lstrip=bool(attributes & llama_cpp.LLAMA_TOKEN_ATTR_LSTRIP),
        rstrip=bool(attributes & llama_cpp.LLAMA_TOKEN_ATTR_RSTRIP),
    )


def _longest_stretch(kinds: bytes) -> int:
    """Return the length of the longest two stretches of one kind each that stand next to each other."""
    changes = np.flatnonzero(np.diff(np.frombuffer(kinds, np.uint8))) + 1
    lengths = np.diff(np.concatenate(([0], changes, [len(kinds)])))
    return int((lengths[:-1] + lengths[1:]).max()) if len(lengths) > 1 else int(lengths[0])


def _kinds(letters: bytes, digits: bytes) -> bytes:
    """Return a table of the bytes' kinds: whitespace, letters, digits, others. Those beyond ASCII count as letters."""
    kinds = bytearray(b"o" * 128 + b"l" * 128)
    for kind, members in ((b"w", _WHITESPACE), (b"d", digits), (b"l", letters)):
        for byte in members:
            kinds[byte : byte + 1] = kind
    return bytes(kinds)


_WHITESPACE = b" \t\n\r\v\f"
_LETTERS, _DIGITS = string.ascii_letters.encode(), string.digits.encode()
_DEFAULT_KINDS = _kinds(_LETTERS, _DIGITS)
_UNBROKEN = _kinds(bytes(set(range(256)) - set(_WHITESPACE)), b"")
_KINDS = {
    "exaone-moe": _kinds(_LETTERS + b" ", _DIGITS),
    **dict.fromkeys(("bloom", "gpt3-finnish", "poro-chat", "viking"), _UNBROKEN),
}
"""The kinds for pre-tokenizers whose words have spaces in them, or end at whitespace alone."""
