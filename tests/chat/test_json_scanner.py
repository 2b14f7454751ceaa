from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallab.chat.json_scanner import Malformed, ObjectScanner

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def scan(pieces: Iterable[str]) -> tuple[dict[str, str], ObjectScanner]:
    scanner = ObjectScanner()
    found: dict[str, str] = {}
    for text in pieces:
        for piece in scanner.feed(text):
            found[piece.key] = found.get(piece.key, "") + piece.text
    return found, scanner


@given(st.dictionaries(st.text(), values, max_size=4), st.sampled_from([None, 1]), st.text(), st.integers(1, 7))
def test_every_member_comes_whole_however_the_text_is_cut(
    members: dict[str, Any], indent: int | None, after: str, size: int
) -> None:
    raw = json.dumps(members, indent=indent, ensure_ascii=False)
    pieces = [(raw + after)[at : at + size] for at in range(0, len(raw + after), size)]
    found, scanner = scan(pieces)
    assert {key: json.loads(text) for key, text in found.items()} == members
    assert scanner.done
    assert scanner.rest == after[: len(scanner.rest)]
    assert (raw + after).endswith(scanner.rest)


def test_pieces_come_as_soon_as_they_are_there() -> None:
    scanner = ObjectScanner()
    assert [p.text for p in scanner.feed('{"a": "so f')] == ['"so f']
    assert [(p.text, p.last) for p in scanner.feed('ar", "b": 1')] == [('ar"', True), ("1", False)]
    assert [(p.text, p.last) for p in scanner.feed("2}")] == [("2", False), ("", True)] or scanner.done


@pytest.mark.parametrize("raw", ["x", "[1]", "{1: 2}", '{"a" 1}', '{"a": 1 "b": 2}', '{"a": 1,}'])
def test_what_is_no_object_is_refused(raw: str) -> None:
    with pytest.raises(Malformed):
        scan(raw)
