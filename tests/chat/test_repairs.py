"""Histories as models can read them."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallab.chat.messages import Message, ToolCall
from locallab.chat.repairs import repaired

USER, SAID = Message("user", "u"), Message("assistant", "said")


def calls(*ids: str, name: str = "f") -> Message:
    return Message("assistant", "", tool_calls=tuple(ToolCall(id, name, "{}") for id in ids))


def result(id: str | None, content: str, name: str | None = None) -> Message:
    return Message("tool", content, name, tool_call_id=id)


AB, A, B = calls("a", "b"), result("a", "1"), result("b", "2")
STRAY = Message("user", "Result of a tool: 1")

ORDERS: dict[str, tuple[list[Message], list[Message], str]] = {
    "in order": ([USER, AB, A, B], [USER, AB, A, B], ""),
    "swapped": ([USER, AB, B, A], [USER, AB, A, B], "put behind"),
    "behind a message": ([AB, A, USER, B], [AB, A, B, USER], ""),
    "ahead of its call": ([A, USER, AB, B], [USER, AB, A, B], ""),
    "without a call": ([USER, A, SAID], [USER, STRAY, SAID], "answers no call"),
    "without a result": ([AB, B, USER], [AB, B, USER], ""),
    "without any result": ([AB, USER], [AB, USER], ""),
    "twice the same": ([AB, A, A, B], [AB, A, B], "2 results of one call"),
    "twice": ([AB, A, result("a", "3"), B], [AB, result("a", "1\n3"), B], "2 results of one call"),
    "ids used again": ([calls("a"), A, calls("a"), result("a", "3")], [calls("a"), A, calls("a"), result("a", "3")], ""),
    "one id for two calls": (
        [calls("a", "a"), A, result("a", "3")],
        [calls("a", "a"), A, result("a", "3")],
        "",
    ),
    "results without ids": (
        [AB, result(None, "1"), result(None, "2")],
        [AB, A, B],
        "",
    ),
    "without an id, of an earlier tool": (
        [calls("a", name="f"), calls("b", name="g"), result(None, "1", "f"), result(None, "2", "g")],
        [calls("a", name="f"), result("a", "1", "f"), calls("b", name="g"), result("b", "2", "g")],
        "",
    ),
}


@pytest.mark.parametrize(("said", "expected", "note"), ORDERS.values(), ids=ORDERS)
def test_results_stand_behind_their_calls(said: list[Message], expected: list[Message], note: str) -> None:
    notes: list[str] = []
    assert repaired(said, notes) == expected
    assert note in "; ".join(notes) and bool(note) == bool(notes)
    assert repaired(expected, []) == expected


@pytest.mark.parametrize("arguments", ["", " \n", "null"])
def test_no_arguments_are_an_empty_object(arguments: str) -> None:
    notes: list[str] = []
    [message] = repaired([Message("assistant", "", tool_calls=(ToolCall("a", "f", arguments),))], notes)
    assert message.tool_calls == (ToolCall("a", "f", "{}"),) and notes == []


@pytest.mark.parametrize(
    "arguments", ["{", "[1]", "5", '{"a": ' + "[" * 5000 + "]" * 5000 + "}"], ids=["cut", "list", "5", "deep"]
)
def test_arguments_that_are_no_object_are_kept(arguments: str) -> None:
    notes: list[str] = []
    [message] = repaired([Message("assistant", "", tool_calls=(ToolCall("a", "f", arguments),))], notes)
    assert message.tool_calls[0].arguments.startswith('{"raw": ') and len(notes) == 1


PIECES = st.one_of(
    st.just(USER),
    st.lists(st.sampled_from(["a", "b", "c", ""]), min_size=1, max_size=3).map(lambda ids: calls(*ids)),
    st.tuples(st.sampled_from(["a", "b", "d", None]), st.sampled_from("123")).map(lambda pair: result(*pair)),
)


@given(st.lists(PIECES, max_size=12))
def test_nothing_is_lost_and_every_result_follows_a_call(said: list[Message]) -> None:
    said = [Message(**{key: getattr(each, key) for key in each.__slots__}) for each in said]
    found = repaired(said, [])
    for before, message in itertools.pairwise([SAID, *found]):
        assert message.role != "tool" or before.tool_calls or before.role == "tool"
    assert [each for each in found if each.tool_calls] == [each for each in said if each.tool_calls]
    texts = " ".join(each.content for each in found)
    assert all(each.content in texts for each in said)
    assert repaired(found, []) == found


def test_many_calls_and_results_take_no_quadratic_time() -> None:
    many = [calls(*["a"] * 20_000), *(result(id, str(at)) for at in range(10_000) for id in ("a", None))]
    begin = time.monotonic()
    assert len(repaired(many, [])) == len(many)
    assert time.monotonic() - begin < 10
