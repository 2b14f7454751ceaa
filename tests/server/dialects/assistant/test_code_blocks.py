from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallab.server.dialects.assistant.code_blocks import Block, Fences

ANSWERS: dict[str, tuple[str, list[Block]]] = {
    "none": ("Just words, `code` and ``more``.", []),
    "one": ("Here:\n```python\nx = 1\n```\nDone.", [Block("python", "x = 1", True)]),
    "no language": ("```\nx\n```", [Block("", "x", True)]),
    "more behind the language": ("```python title='a.py'\nx\n```", [Block("python", "x", True)]),
    "spaced language": ("``` js \nx\n```  \n", [Block("js", "x", True)]),
    "two": ("```a\n1\n```\n~~~b\n2\n~~~", [Block("a", "1", True), Block("b", "2", True)]),
    "empty": ("```\n```", [Block("", "", True)]),
    "blank lines stay": ("```\n\nx\n\n```", [Block("", "\nx\n", True)]),
    "left open": ("```c\nint x;\nint y", [Block("c", "int x;\nint y", False)]),
    "only opened": ("text\n```c", [Block("c", "", False)]),
    "longer fence holds a shorter": ("````md\n```\nx\n```\n````", [Block("md", "```\nx\n```", True)]),
    "longer fence closes": ("```\nx\n`````", [Block("", "x", True)]),
    "another sign does not close": ("```\n~~~\n```", [Block("", "~~~", True)]),
    "a fence with a language does not close": ("```\n```python\n```", [Block("", "```python", True)]),
    "code in one line": ("```x = 1``` and", []),
    "in a list": ("1. Do:\n   ```py\n   if x:\n       y\n   ```\n", [Block("py", "if x:\n    y", True)]),
    "in a list, less deep code": ("  ```\n x\n\n  ```", [Block("", "x\n", True)]),
    "fence deep inside the code": ("```\nx\n    ```\n```", [Block("", "x\n    ```", True)]),
    "windows line ends": ("```py\r\nx\r\ny\r\n```\r\n", [Block("py", "x\r\ny", True)]),
    "not at the start of the line": ("see ```\nx\n```", [Block("", "", False)]),
}


def blocks(text: str) -> list[Block]:
    """Return the blocks of a whole answer."""
    fences = Fences()
    fences.feed(text)
    return fences.finish()


@pytest.mark.parametrize(("text", "expected"), ANSWERS.values(), ids=ANSWERS)
def test_blocks(text: str, expected: list[Block]) -> None:
    assert blocks(text) == expected


@pytest.mark.parametrize("text", [text for text, _ in ANSWERS.values()], ids=ANSWERS)
def test_a_character_at_a_time(text: str) -> None:
    assert fed(list(text)) == blocks(text)


@given(st.lists(st.text(alphabet="`~ \nab\r\t", max_size=6)))
def test_however_it_is_cut(pieces: list[str]) -> None:
    assert fed(pieces) == blocks("".join(pieces))


@given(st.text().map(lambda code: code.rstrip("\r")), st.sampled_from(["", "python", "c++"]))
def test_what_is_fenced_comes_out(code: str, language: str) -> None:
    mark = "`" * 3 if "```" not in code else "`" * (len(code) + 1)
    assert blocks(f"Words.\n{mark}{language}\n{code}\n{mark}\nMore words.") == [Block(language, code, True)]


def fed(pieces: list[str]) -> list[Block]:
    fences = Fences()
    for piece in pieces:
        fences.feed(piece)
    return fences.finish()
