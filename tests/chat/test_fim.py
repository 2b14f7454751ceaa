from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from locallab.chat.fim import infill
from locallab.engine.request import FimTokens

FIM = FimTokens(prefix=1001, suffix=1002, middle=1003)
REPO = FimTokens(prefix=1001, suffix=1002, middle=1003, repo=1004, separator=1005, pad=1006, bos=1000)
NAMES = {1000: "<s>", 1001: "<PRE>", 1002: "<SUF>", 1003: "<MID>", 1004: "<REPO>", 1005: "<FILE>"}


def tokenize(text: str) -> list[int]:
    return list(text.encode())


def written(tokens: list[int]) -> str:
    return b"".join(NAMES[t].encode() if t in NAMES else bytes([t]) for t in tokens).decode()


def test_what_is_before_and_after_the_gap() -> None:
    assert written(infill(FIM, tokenize, "def f(", "return 1")) == "<PRE>def f(<SUF>return 1<MID>"


def test_a_gap_at_the_very_beginning_or_end() -> None:
    assert written(infill(FIM, tokenize, "", "")) == "<PRE><SUF><MID>"


def test_a_model_that_opens_its_prompts() -> None:
    assert written(infill(REPO, tokenize, "a", "b")) == "<s><PRE>a<SUF>b<MID>"


def test_other_files_for_a_model_that_knows_repositories() -> None:
    prompt = infill(REPO, tokenize, "a", "b", [("x.py", "X = 1"), ("y.py", "Y = 2\n")])
    assert written(prompt) == ("<s><REPO>repository\n<FILE>x.py\nX = 1\n<FILE>y.py\nY = 2\n<FILE>file\n<PRE>a<SUF>b<MID>")


def test_other_files_for_a_model_that_does_not() -> None:
    assert written(infill(FIM, tokenize, "a", "b", [("x.py", "X = 1")])) == "x.py\nX = 1\n\n<PRE>a<SUF>b<MID>"


@given(st.text(), st.text(), st.lists(st.tuples(st.text(), st.text())))
def test_the_markup_is_the_models_only_and_always_whole(prefix: str, suffix: str, extra: list[tuple[str, str]]) -> None:
    safe = [text.encode("utf-8", "ignore").decode() for text in (prefix, suffix)]
    tokens = infill(FIM, tokenize, *safe)
    assert [t for t in tokens if t > 255] == [1001, 1002, 1003]
    at = tokens.index(1002)
    assert (written(tokens[1:at]), written(tokens[at + 1 : -1])) == (safe[0], safe[1])
    files = infill(REPO, lambda text: list(text.encode("utf-8", "replace")), prefix, suffix, extra)
    assert [t for t in files if t > 255].count(1005) == (len(extra) + 1 if extra else 0)
