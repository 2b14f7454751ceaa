from __future__ import annotations

import itertools
import json
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallab.cluster import prefixes
from locallab.cluster.prefixes import CHARACTERS, EDGES, MOST, PICTURE, digests, scope_of, text_of

TEXT = st.text(max_size=300)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def parts(text: str, cuts: list[int]) -> list[dict[str, Any]]:
    """Return the text in parts, cut at these places."""
    ends = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [{"type": "text", "text": text[begin:end]} for begin, end in itertools.pairwise(ends)]


@st.composite
def contents(draw: st.DrawFn) -> tuple[object, object]:
    """Draw a content in two forms that stand for the same prompt."""
    text = draw(TEXT)
    split = parts(text, draw(st.lists(st.integers(0, 300), max_size=3)))
    marked = [{**part, "cache_control": {"type": "ephemeral"}} for part in split]
    typed = [{**part, "type": "input_text"} for part in split]
    return draw(st.sampled_from([text, split, marked, typed])), draw(st.sampled_from([text, split, marked, typed]))


MESSAGES = st.lists(st.tuples(st.sampled_from(["user", "assistant", "system", "tool"]), contents()), max_size=6)


class TestDigests:
    @given(st.text(max_size=2000), st.text(max_size=2000))
    def test_two_texts_have_in_common_what_they_begin_with(self, one: str, other: str) -> None:
        both = min(len(one), len(other))
        same = next((at for at in range(both) if one[at] != other[at]), both)
        common = sum(a == b for a, b in zip(digests("s", one), digests("s", other), strict=False))
        assert common == sum(edge <= same for edge in EDGES)

    @given(st.integers(0, 30_000))
    def test_there_is_one_for_each_edge_that_a_text_reaches(self, length: int) -> None:
        assert len(digests("", "x" * length)) == sum(edge <= length for edge in EDGES)

    def test_they_are_the_same_in_every_process(self) -> None:
        assert digests("scope", "text" * 40) == (10147383175779824151,)

    def test_a_long_text_has_few_of_them_and_takes_no_time(self) -> None:
        begin = time.perf_counter()
        assert len(digests("", "x" * (MOST * 4))) == len(EDGES) < 500
        assert time.perf_counter() - begin < 2

    @given(st.tuples(TEXT, TEXT, TEXT), st.tuples(TEXT, TEXT, TEXT), st.text(min_size=128, max_size=400))
    def test_scopes_share_nothing(self, one: tuple[str, str, str], other: tuple[str, str, str], text: str) -> None:
        shared = set(digests(scope_of(*one), text)) & set(digests(scope_of(*other), text))
        assert bool(shared) == (one == other)

    def test_a_separator_in_a_name_is_no_separator(self) -> None:
        assert scope_of("a\0b", "c", "d") != scope_of("a", "b", "c\0d")

    def test_a_text_cannot_continue_a_scope(self) -> None:
        assert digests("ab", "c" * 128) != digests("a", "b" + "c" * 127)
        assert digests("ab", "é" + "c" * 127)[0] != digests("a", "b" + "é" + "c" * 126)[0]

    def test_half_of_a_pair_is_a_character_too(self) -> None:
        assert digests("\ud800", "\ud800" * 128) != digests("\ud800", "\udc00" * 128)


class TestTextOf:
    @given(MESSAGES, st.integers(0, 6), st.sampled_from(["messages", "input"]), contents())
    def test_that_of_a_conversation_begins_with_that_of_each_beginning(
        self, messages: list[tuple[str, tuple[object, object]]], count: int, field: str, system: tuple[object, object]
    ) -> None:
        whole = {"system": system[0], field: [{"role": role, "content": one} for role, (one, _) in messages], "stream": True}
        begun = {"system": system[1], field: [{"role": role, "content": other} for role, (_, other) in messages[:count]]}
        assert text_of(whole).startswith(text_of(begun))
        found = digests("", text_of(begun))
        assert digests("", text_of(whole))[: len(found)] == found

    @given(MESSAGES)
    def test_what_differs_in_a_prompt_differs(self, messages: list[tuple[str, tuple[object, object]]]) -> None:
        body = {"messages": [{"role": role, "content": one} for role, (one, _) in messages]}
        more = {"messages": [*body["messages"], {"role": "user", "content": "more"}]}
        assert len({text_of(body), text_of(more), text_of({**more, "tools": [{"name": "f"}]})}) == 3

    @given(st.dictionaries(st.sampled_from(["model", "stream", "temperature", "metadata", "user"]), JSON))
    def test_what_is_no_part_of_a_prompt_changes_nothing(self, fields: dict[str, object]) -> None:
        assert text_of({**fields, "prompt": "once"}) == text_of({"prompt": "once"})

    @given(st.dictionaries(st.sampled_from(prefixes.ORDER), JSON), st.randoms())
    def test_any_body_has_a_text_whatever_the_order_of_its_fields(self, body: dict[str, object], random: Any) -> None:
        fields = list(body.items())
        random.shuffle(fields)
        assert digests("", text_of(body)) == digests("", text_of(dict(fields)))

    @pytest.mark.parametrize("body", [None, 1, "text", [], [{"messages": []}]])
    def test_what_is_no_object_has_none(self, body: object) -> None:
        assert text_of(body) == ""

    @pytest.mark.parametrize("nested", [b"[" * 900 + b"]" * 900, b'{"a":' * 900 + b"1" + b"}" * 900], ids=["lists", "objects"])
    @pytest.mark.parametrize("field", ["content", "role", "name"])
    def test_nesting_does_not_matter(self, nested: bytes, field: str) -> None:
        text_of({"messages": [{"role": "user", "content": "hi", field: msgspec.json.decode(nested)}]})
        text_of({"system": msgspec.json.decode(nested), "prompt": msgspec.json.decode(nested)})

    def test_half_of_a_pair_in_a_field_does_not_matter(self) -> None:
        body = json.loads(r'{"messages": [{"role": "user", "content": "hi", "name": "\ud800"}]}')
        assert text_of(body).endswith("hi")

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            (
                {"system": "be brief"},
                {"system": [{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}]},
            ),
            ({"input": "hi"}, {"input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}]}),
            ({"input": [{"type": "message", "role": "user", "content": "hi"}]}, {"input": [{"role": "user", "content": "hi"}]}),
            ({"prompt": "hi", "tools": None, "messages": []}, {"prompt": "hi"}),
            ({"prompt": "hi", "system": [{"type": "text", "text": ""}], "input": ""}, {"prompt": "hi"}),
        ],
        ids=["Anthropic's system", "an input of text", "an item's type", "empty fields", "empty texts"],
    )
    def test_the_form_of_a_text_does_not_matter(self, one: dict[str, object], other: dict[str, object]) -> None:
        assert text_of(one) == text_of(other)

    def test_a_mark_that_moves_on_changes_nothing(self) -> None:
        mark = {"cache_control": {"type": "ephemeral"}}
        result = {"type": "tool_result", "tool_use_id": "1", "content": "sunny"}
        begun = {"messages": [{"role": "user", "content": [{**result, **mark}]}]}
        later = {"messages": [{"role": "user", "content": [result]}, {"role": "user", "content": [{"text": "and?", **mark}]}]}
        assert text_of(later).startswith(text_of(begun))

    @pytest.mark.parametrize(
        "message",
        [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,DATA=="}}]},
            {"role": "user", "content": "see", "images": ["DATA"]},
        ],
        ids=["a part", "beside the text"],
    )
    def test_a_picture_counts_as_one_however_large_it_is(self, message: dict[str, object]) -> None:
        def text(data: str) -> str:
            return text_of({"messages": [json.loads(json.dumps(message).replace("DATA", data))]})

        lengths = {len(text(letter * count)) for letter, count in (("a", 2000), ("a", 2001), ("b", 200_000))}
        assert len(lengths) == 1 and abs(lengths.pop() / CHARACTERS - PICTURE) < 64
        assert len({text("a" * 2000), text("a" * 2001), text("b" * 2000)}) == 3

    def test_long_words_take_no_time(self) -> None:
        begin = time.perf_counter()
        text_of({"messages": [{"role": "user", "name": ("a" * 1000 + " ") * 2000}]})
        assert time.perf_counter() - begin < 2
