from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from locallab.cli.terminal import markdown_view
from locallab.cli.terminal.markdown_view import harmless, parts, settled

BLOCKS = (
    "A paragraph of\ntwo lines.",
    "# Heading",
    "Heading\n---",
    "- one\n- two\n\n  more of two\n- three",
    "1. one\n\n2. two",
    "```python\ndef f():\n\n    return '# no heading'\n```",
    "    indented\n\n    code",
    "> quoted\nlazily\n\n> again",
    "| a | b |\n|---|---|\n| 1 | 2 |",
    "***",
    "- [x] done\n  1. nested\n     - deeper",
)
DOCUMENTS = st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=5).map("\n\n".join)


def blocks(text: str) -> list[str]:
    """Return the parsed top-level blocks."""
    found: list[str] = []
    for token in MarkdownIt().enable("strikethrough").enable("table").parse(text):
        if token.level == 0 and token.nesting >= 0:
            found.append("")
        found[-1] += f"{token.type} {token.content} {token.info};"
    return found


@given(DOCUMENTS, st.data())
def test_what_is_settled_stays_as_it_is_whatever_comes(text: str, data: st.DataObject) -> None:
    shown = text[: data.draw(st.integers(0, len(text)))]
    done = blocks(shown[: settled(shown)])
    assert blocks(text)[: len(done)] == done


@given(DOCUMENTS)
def test_all_but_the_last_block_is_settled(text: str) -> None:
    assert len(blocks(text[settled(text + "\n") :])) == 1 or "\n\n" not in text.strip()


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_the_whole_is_shown_once_whatever_its_pieces(size: int) -> None:
    text = "\n\n".join(BLOCKS)
    screen = show([text[i : i + size] for i in range(0, len(text), size)])
    assert screen == show([text])
    assert screen.count("A paragraph of two lines.") == 1


def test_one_empty_line_is_between_blocks() -> None:
    without_code = [block for block in BLOCKS if "```" not in block and not block.startswith(" ")]
    assert "\n\n\n" not in show(["\n\n".join(without_code)]).replace(" ", "")


@given(st.text())
def test_the_parts_are_the_text(text: str) -> None:
    assert "".join(parts(harmless(text))) == harmless(text)


def test_thoughts_come_first_and_are_dim() -> None:
    raw, screen = drawn([], thoughts=["let me ", "see"], then=["So it is."])
    assert screen == "let me see\n\nSo it is."
    assert "\x1b[2;3m" in raw


def test_folded_thoughts_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 103.4])
    monkeypatch.setattr(markdown_view.time, "monotonic", lambda: next(clock))
    raw, screen = drawn([], thoughts=["let me ", "", "see\nit"], then=["So it is."], reasoning="fold")
    assert screen == "thought for 3 s, 13 characters; /reasoning shows them\n\nSo it is."
    assert "\x1b[2;3m" in raw and "let me" not in raw


def test_hidden_thoughts_are_not_shown() -> None:
    assert drawn([], thoughts=["let me see"], then=["So it is."], reasoning="hide")[1] == "So it is."


def test_an_answer_longer_than_the_terminal_is_shown_whole() -> None:
    lines = "\n".join(f"- item {number}" for number in range(100))
    screen = show([f"{line}\n" for line in lines.split("\n")])
    assert [int(number) for number in re.findall(r"item (\d+)", screen)] == list(range(100))


def test_nothing_came() -> None:
    assert show([]) == ""


def test_control_characters_are_taken_out() -> None:
    assert harmless("a\x1b[2Jb\x07\x9b\r\n\tc\x7f") == "a[2Jb\n\tc"


def test_the_direction_of_writing_cannot_be_changed() -> None:
    assert harmless("a\u202eb\u2066c\u2069d\u200fe") == "abcd\u200fe"


@pytest.mark.parametrize(
    "text", ["a &#27;[2Jb &#x9b;c &#8238;d", "`a &#27;`\n\n    &#27;\n", "[a](<b&#27;&#7;> '&#27;')", "|&#27;|\n|-|\n"]
)
def test_entities_send_nothing_to_the_terminal(text: str) -> None:
    raw, _ = drawn([text])
    assert not re.search(
        "[\x00-\x08\x0b-\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f\u202e]",
        re.sub(r"\x1b(\[[0-9;?]*[A-Za-z]|\]8;[^\x1b]*\x1b\\\\)", "", raw),
    )
    assert "\x1b[2J" not in raw


def show(pieces: list[str]) -> str:
    return drawn(pieces)[1]


def drawn(
    pieces: list[str],
    thoughts: list[str] | None = None,
    then: list[str] | None = None,
    reasoning: markdown_view.Reasoning = "show",
) -> tuple[str, str]:
    """Return the output to a terminal, and the final screen."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=60, height=10, color_system="standard", legacy_windows=False)
    with markdown_view._Formatted(console, reasoning) as writer:
        for piece in thoughts or []:
            writer.think(piece)
        for piece in [*pieces, *(then or [])]:
            writer.write(piece)
            with writer._lock:
                writer._live.refresh()  # as the thread does from time to time
    return file.getvalue(), on_screen(file.getvalue())


def on_screen(raw: str) -> str:
    """Return the screen of a terminal that never scrolls."""
    lines, row, column = [""], 0, 0
    for code, character in re.findall(r"\x1b\[([0-9;?]*[A-Za-z])|((?s:.))", raw):
        if code.endswith("A"):
            row -= int(code[:-1] or 1)
        elif code.endswith("K"):
            lines[row] = ""
        elif character == "\r":
            column = 0
        elif character == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif character:
            line = lines[row].ljust(column)
            lines[row] = line[:column] + character + line[column + 1 :]
            column += 1
        assert row >= 0
    return "\n".join(line.rstrip() for line in lines).strip("\n")
