from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallab.engine.text_stream import TextStream

texts = st.text(alphabet="ab<|>é\U0001f600 ", max_size=24)
stops = st.lists(st.text(alphabet="ab<|é", min_size=1, max_size=4), max_size=4)


def feed(data: bytes, cuts: list[int], stop: list[str]) -> str:
    """The text of `data` fed in pieces, as a request sees it: after a stop nothing more is fed."""
    stream = TextStream(stop)
    text = ""
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for start, end in itertools.pairwise(edges):
        text += stream.feed(data[start:end])
        if stream.stopped:
            break
    return text + stream.finish()


@given(st.binary(max_size=24) | texts.map(str.encode), st.lists(st.integers(0, 100), max_size=24), stops)
def test_any_split_gives_the_same_text(data, cuts, stop):
    assert feed(data, cuts, stop) == feed(data, [], stop)


@given(texts, st.lists(st.integers(0, 200), max_size=12))
def test_without_stop_strings_nothing_is_lost_or_changed(text, cuts):
    assert feed(text.encode(), cuts, []) == text


@given(texts, stops)
def test_no_stop_string_is_leaked(text, stop):
    got = feed(text.encode(), list(range(40)), stop)
    assert text.startswith(got)
    assert not any(s in got for s in stop)
    assert got == text or any(text[len(got) :].startswith(s) for s in stop)


@given(texts, stops)
def test_an_included_stop_string_ends_the_text(text, stop):
    ends = [text.index(s) + len(s) for s in stop if s in text]
    stream = TextStream(stop, include_stop=True)
    got = "".join(stream.feed(letter.encode()) for letter in text) + stream.finish()
    assert got == (text[: min(ends)] if ends else text)
    assert stream.stopped == bool(ends) and (not ends or got.endswith(stream.stop or "never"))


@given(texts, texts, stops)
def test_only_what_ends_later_stops_a_text_that_was_not_armed(before, after, stop):
    stream = TextStream(stop)
    stream.armed = False
    got = stream.feed(before.encode())
    stream.armed = True
    got += stream.feed(after.encode()) + stream.finish()
    text = before + after
    ends = [end for s in stop for end in range(len(before) + 1, len(text) + 1) if text[:end].endswith(s)]
    begins = [min(ends) - len(s) for s in stop if ends and text[: min(ends)].endswith(s)]
    assert got == (text[: min(begins)] if ends else text)


@pytest.mark.parametrize(
    ("pieces", "stop", "expected"),
    [
        pytest.param(["Hello wor", "ld"], ["\n"], ["Hello wor", "ld"], id="nothing held without need"),
        pytest.param(["a\n", "\nb"], ["\n\n"], ["a", ""], id="across pieces"),
        pytest.param(["a\n", "b"], ["\n\n"], ["a", "\nb"], id="held back, then let go"),
        pytest.param(["xab"], ["b", "ab"], ["x"], id="complete at once: the one that begins first"),
        pytest.param(["abc"], ["abcd", "b"], ["a"], id="complete first wins"),
        pytest.param(["aaab"], ["aab"], ["a"], id="overlapping beginnings"),
    ],
)
def test_stop_strings(pieces, stop, expected):
    stream = TextStream(stop)
    assert [stream.feed(piece.encode()) for piece in pieces] == expected


def test_an_unfinished_character_at_the_end_is_shown_as_such():
    stream = TextStream()
    assert stream.feed("é".encode()[:1]) == ""
    assert stream.finish() == "�"


def test_what_was_held_for_a_stop_string_comes_at_the_end():
    stream = TextStream(["END"])
    assert stream.feed(b"the EN") == "the "
    assert stream.finish() == "EN"
