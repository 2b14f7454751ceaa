from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallab.cli.terminal.line_input import QUOTES, MessageBuffer


def messages(text: str) -> list[str]:
    buffer = MessageBuffer()
    return [message for line in text.split("\n") if (message := buffer.feed(line)) is not None]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("one\ntwo", ["one", "two"]),
        ("", [""]),
        ("one \\\ntwo", ["one \ntwo"]),
        ("one\\\n\\\nthree\nfour", ["one\n\nthree", "four"]),
        ('"""one\ntwo"""', ["one\ntwo"]),
        ('"""\none\n\ntwo\n"""\nthree', ["one\n\ntwo", "three"]),
        ('  """one"""', ["one"]),
        ('"""one """  ', ["one "]),
        ('say """hi"""', ['say """hi"""']),
        ('"""one \\\ntwo"""', ["one \\\ntwo"]),
        ('one\\\n"""two"""', ['one\n"""two"""']),
    ],
)
def test_messages(typed: str, expected: list[str]) -> None:
    assert messages(typed) == expected


def test_an_incomplete_message() -> None:
    buffer = MessageBuffer()
    assert not buffer.begun
    assert buffer.feed('"""one') is None
    assert buffer.begun and buffer.text == "one"
    assert buffer.feed('"""') == "one"
    assert not buffer.begun and buffer.text == ""


LINE = st.text(st.characters(exclude_characters='\n\\"', exclude_categories=("Cs",)))


@given(st.lists(LINE, min_size=1))
def test_quotes_carry_any_lines(lines: list[str]) -> None:
    text = "\n".join(lines)
    assert messages(f"{QUOTES}\n{text}\n{QUOTES}") == [text]
