"""Texts of a request as tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest

from locallab.engine import SamplingParams
from locallab.engine.text_stream import TextStream
from locallab.engine.token_rules import RuleBook


class Words:
    """A vocabulary of words, with and without a space; other texts are letters. The control tokens are <a> and <ab>."""

    vocabulary = 0
    suppressed_tokens: frozenset[int] = frozenset({90})
    words: Mapping[str, list[int]] = {
        "bad": [1],
        " bad": [2],
        "worse": [3, 4],
        " worse": [5, 4],
        "long": [6],
        " long": [6, 7, 8],
        "same": [9],
        " same": [9],
    }
    control_tokens: Mapping[str, int] = {"<a>": 50, "<ab>": 51}

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        assert not add_special and not parse_special
        return list(self.words[text])


def rules(**params: object) -> object:
    return RuleBook(Words(), 64).rules(SamplingParams(**params))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("word", "tokens"),
    [
        ("bad", ((1,), (2,))),
        (" bad", ((1,), (2,))),
        ("worse", ((3, 4), (5, 4))),
        ("long", ((6,),)),
        ("same", ((9,),)),
    ],
)
def test_a_bad_word_is_bad_behind_a_space_too(word, tokens):
    assert rules(bad_words=(word,)).bad_words == tokens


def test_biases_are_of_tokens_and_of_texts():
    found = rules(logit_bias=((7, 1.0), ("worse", 2.0), ("bad", -math.inf)))
    assert found.bias == ((7, 1.0), (3, 2.0), (4, 2.0)) and found.banned == {1, 90} and rules().banned == {90}


def read(stop: tuple[str, ...], *pieces: str | int, **options: bool) -> tuple[str, str | None]:
    """Feed texts and control tokens; return the text and the stop string."""
    found = rules(stop=stop)
    stream = TextStream(found.stop, **options)
    text = "".join(
        stream.mark(found.marks.get(each, "")) if isinstance(each, int) else stream.feed(each.encode()) for each in pieces
    )
    return text + stream.finish(), stream.stop


@pytest.mark.parametrize(
    ("stop", "pieces", "expected"),
    [
        (("<a>",), ("one", 50, "two"), ("one", "<a>")),
        (("<a>",), ("one<", "a>two"), ("one", "<a>")),
        (("<a>",), ("one", 51, "two"), ("onetwo", None)),
        (("<ab>",), ("one", 51, "two"), ("one", "<ab>")),
        (("<ab>", "<a>"), ("one", 51, 50, "two"), ("one", "<ab>")),
        (("\n<a>user",), ("one\n", 50, "us", "er two"), ("one", "\n<a>user")),
        (("\n<a>user",), ("one\n", 50, "us", "age"), ("one\nusage", None)),
        (("<a><ab>",), ("one", 50, "x", 50, 51), ("onex", "<a><ab>")),
        ((">",), ("one", 50, "two"), ("onetwo", None)),
        (("<a>", "e"), ("on", "e", 50), ("on", "e")),
    ],
)
def test_the_name_of_a_control_token_stops_at_it(stop, pieces, expected):
    assert read(stop, *pieces) == expected


def test_an_included_stop_string_is_as_it_was_asked_for():
    assert read(("<a>!",), "one", 50, "!two", include_stop=True) == ("one<a>!", "<a>!")


def test_rules_are_remembered():
    book = RuleBook(Words(), 64)
    params = SamplingParams(stop=("<a>",), bad_words=("bad",))
    assert book.rules(params).stop is book.rules(params).stop
