"""The tokens of an answer's text are found in any text, in steps of any size."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from locallab.chat.deltas import Text, gather
from locallab.chat.reasoning import Tags
from locallab.chat.tools import FORMATS
from locallab.chat.turn import Turn
from locallab.engine.request import TokenEvent, TokenLogprob
from locallab.engine.text_stream import TextStream
from locallab.server.dialects.responses.scored_text import ScoredReader, ScoredText
from locallab.server.inference.generation import Item
from locallab.server.inference.reader import Reader
from tests.support.token_logprob import scored
from tests.support.tool_calls import CASES, Case
from tests.support.tool_calls import TOOLS as FUNCTIONS


def steps(raw: str, tokens: int, size: int) -> list[Item]:
    """Split an answer into events of `tokens` tokens of `size` bytes each; a token's id is its position."""
    data, stream, found = raw.encode(), TextStream(["<|stop|>"]), list[Item]()
    for at in range(0, len(data), tokens * size):
        starts = range(at, min(at + tokens * size, len(data)), size)
        text = stream.feed(data[at : at + tokens * size])
        found.append((0, TokenEvent(text, logprobs=tuple(TokenLogprob(i, data[i : i + size], -1.0) for i in starts))))
    return [*found, (0, TokenEvent(stream.finish(), finish_reason="stop"))]


def texts(turn: Turn, items: list[Item]) -> list[ScoredText]:
    return [delta for news in ScoredReader(turn).read(items) for delta in news.deltas if isinstance(delta, ScoredText)]


def plain(format: str | None = None, tags: Tags | None = None) -> Turn:
    found = next((each for each in FORMATS if each.name == format), None)
    return Turn("", None, (), found, FUNCTIONS, tags, False)


def pieces(found: list[ScoredText]) -> list[tuple[str, list[bytes]]]:
    return [(text.text, [each.piece for each in text.logprobs]) for text in found]


THINK = Tags("<think>", "</think>")
ANSWERS = [
    pytest.param(name, case, id=f"{name}-{index}") for name, (_, cases) in CASES.items() for index, case in enumerate(cases)
]


@pytest.mark.parametrize(("name", "case"), ANSWERS)
def test_the_tokens_of_the_text_are_the_text(name: str, case: Case) -> None:
    whole = next(each.whole for each in FORMATS if each.name == name) or name == "recipients"
    turn = plain(name, None if whole else THINK)
    raw = case.raw if whole else f"<think>\nhi, Hello</think>\n\n{case.raw}"
    for tokens in (1, 3, 1000):
        items = steps(raw, tokens, 1)
        found = texts(turn, items)
        said = gather(delta for news in Reader(turn).read(items) for delta in news.deltas)
        assert b"".join(piece for _, tokens in pieces(found) for piece in tokens).decode() == said.text
        assert all(b"".join(tokens).decode() == text for text, tokens in pieces(found))


@pytest.mark.parametrize(("name", "case"), ANSWERS)
def test_a_token_that_reaches_into_the_text_is_told_once(name: str, case: Case) -> None:
    turn, raw = plain(name), case.raw
    of_text = {each.token for text in texts(turn, steps(raw, 1, 1)) for each in text.logprobs}
    for size in range(2, 9):
        found = [each.token for text in texts(turn, steps(raw, 1, size)) for each in text.logprobs]
        assert found == sorted({at - at % size for at in of_text})


HARD = st.lists(st.sampled_from([*"<>{[t hi\n", "</", "<tool", "think", "ü", "😀"]), max_size=12).map("".join)


@given(HARD, HARD, st.sampled_from([1, 3, 1000]))
@example("hi", "hi", 1000)
@example("h", "<", 1)
@example("h", "<<", 1)
@example("h", "> h", 1)
def test_the_tokens_of_the_text_are_found_whatever_it_looks_like(thought: str, text: str, tokens: int) -> None:
    raw = f"<think>{thought}</think>{text}"
    begin = len(raw[: raw.index(THINK.end)].encode()) + len(THINK.end)
    found = texts(plain("hermes", THINK), steps(raw, tokens, 1))
    assert all(b"".join(tokens).decode() == part for part, tokens in pieces(found))
    assert all(each.token >= begin for part in found for each in part.logprobs)


def test_a_token_of_two_parts_belongs_to_the_text() -> None:
    call = b'call>\n{"name": "time", "arguments": {}}\n</tool_call>'
    data = [b"<think>hm", b"\xe2\x80\xa6</think>\n\n\xc3", b"\xbcb", b"c\n<tool_", call]
    stream = TextStream()
    items: list[Item] = [(0, TokenEvent(stream.feed(each), logprobs=(scored(each),))) for each in data]
    found = texts(plain("hermes", THINK), [*items, (0, TokenEvent("", finish_reason="stop"))])
    assert pieces(found) == [("üb", [data[1], data[2]]), ("c", [data[3]])]


def test_control_tokens_are_no_text() -> None:
    items: list[Item] = [(0, TokenEvent("ab", logprobs=(scored(b"a"), scored(b"<|mark|>", hidden=True), scored(b"b"))))]
    assert pieces(texts(plain(), items)) == [("ab", [b"a", b"b"])]


def test_a_stop_string_is_no_text() -> None:
    found = texts(plain(), steps("ab<|<|stop|>", 1, 1))
    assert pieces(found)[-1] == ("<|", [b"<", b"|"]) and b"".join(p for _, ps in pieces(found) for p in ps) == b"ab<|"


def test_a_text_that_is_not_what_the_model_wrote_has_tokens_all_the_same() -> None:
    class Shouting:
        called = False

        def feed(self, text: str) -> list[Any]:
            return [Text(text.upper())]

        def finish(self) -> list[Any]:
            return []

    reader = ScoredReader(plain())
    reader._parsers = [Shouting()]  # type: ignore[list-item]
    first, second = (tuple(scored(each.encode()) for each in text) for text in ("aß", "bc"))
    news = reader.read([(0, TokenEvent("aß", logprobs=first)), (0, TokenEvent("bc", logprobs=second))])
    assert [each.deltas for each in news] == [[ScoredText("ASS", first)], [ScoredText("BC", second)]]
