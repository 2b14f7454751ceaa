"""JSON of clients: halves of surrogate pairs, and nesting."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallab.chat.json_text import MOST_LEVELS, dumps, loads, without_halves

HALVES = {
    "high": (b'"a\\ud83d b"', "a\ufffd b"),
    "low": (b'"a\\ude00"', "a\ufffd"),
    "two highs": (b'"\\uD83D\\uD83D"', "\ufffd\ufffd"),
    "low behind a pair": (b'"\\ud83d\\ude00\\ude00"', "😀\ufffd"),
    "high ahead of a pair": (b'"\\ud83d\\ud83d\\ude00"', "\ufffd😀"),
    "pair": (b'"\\ud83d\\ude00"', "😀"),
    "escaped backslash": (b'"\\\\ud83d"', "\\ud83d"),
    "behind an escaped backslash": (b'"\\\\\\ud83d"', "\\\ufffd"),
    "as bytes": (b'"\xed\xa0\xbd"', "\ufffd"),
}


@pytest.mark.parametrize(("data", "text"), HALVES.values(), ids=HALVES)
def test_halves_of_pairs_are_replaced(data: bytes, text: str) -> None:
    assert msgspec.json.decode(without_halves(data)) == text


@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from('\ud83d\ude00\\u"d8'))))
def test_any_text_can_be_decoded_and_no_other_is_changed(text: str) -> None:
    data = json.dumps({text: [text]}).encode()
    clean = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    decoded = msgspec.json.decode(without_halves(data))
    assert decoded == loads(data.decode()) and len(decoded) == 1
    if clean == text:
        assert decoded == {text: [text]}


def test_nesting_is_bounded() -> None:
    assert loads("[" * MOST_LEVELS + "]" * MOST_LEVELS) is not None
    for levels in (MOST_LEVELS + 1, 5000, 100_000):
        with pytest.raises(ValueError, match="nested too deeply"):
            loads("[" * levels + "]" * levels)
    value: list[object] = []
    for _ in range(5000):
        value = [value]
    assert "too deeply" in dumps(value)
