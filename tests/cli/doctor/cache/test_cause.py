from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallab.cli.doctor.cache.cause import MISSING, changes, find, same, shared, value, written

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.text("ab", max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


@given(st.text("ab"), st.text("ab"))
def test_the_longest_common_prefix(a: str, b: str) -> None:
    assert shared(a, b) == next(
        (i for i, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1]), min(len(a), len(b))
    )
    assert shared([*a], [*b]) == shared(a, b)


@given(JSON, JSON)
def test_changes_turn_one_value_into_the_other(a: Any, b: Any) -> None:
    """Made one after the other, they leave no difference but the order of keys."""
    changed = a
    while found := next(iter(changes(changed, b)), None):
        assert not same(found[1], changed)
        if found[1] == changed:
            return  # only an order is left
        changed = found[1]
    if isinstance(a, (dict, list)) and type(a) is type(b):
        assert changed == b


@given(JSON, JSON)
def test_what_matters_is_found(a: Any, b: Any) -> None:
    """Where every change matters, the field is the first difference, and a smallest one."""
    field = find(a, b, lambda changed: True)
    assert not same(value(a, field), value(b, field)) or same(a, b)
    assert list(changes(value(a, field), value(b, field))) == []


A = {"x": 1, "list": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}

FIELDS = {
    "a value": ({**A, "x": 2}, ("x",)),
    "a new value": ({**A, "y": 2}, ("y",)),
    "deep": ({**A, "list": [A["list"][0], {"role": "user", "content": "c"}]}, ("list", 1, "content")),  # type: ignore[index]
    "more": ({**A, "list": [*A["list"], 3, 4]}, ("list", 2)),  # type: ignore[misc]
    "fewer": ({**A, "list": A["list"][:1]}, ("list", 1)),  # type: ignore[index]
    "another kind of object": ({**A, "list": [{"role": "tool", "content": "c"}, A["list"][1]]}, ("list", 0)),  # type: ignore[index]
    "the order of keys": ({**A, "list": [{"content": "a", "role": "user"}, A["list"][1]]}, ("list", 0)),  # type: ignore[index]
    "nothing": (A, ()),
}


@pytest.mark.parametrize(("b", "field"), FIELDS.values(), ids=FIELDS)
def test_the_field(b: Any, field: tuple[str | int, ...]) -> None:
    assert find(A, b, lambda changed: True) == field


def test_what_does_not_matter_is_passed_over() -> None:
    b = {"x": 2, "list": [{"role": "user", "content": "c"}, {"role": "user", "content": "d"}]}
    assert find(A, b, lambda changed: changed["list"][1]["content"] == "d") == ("list", 1, "content")
    assert find(A, b, lambda changed: False) == ()


def test_a_field_as_errors_name_it() -> None:
    assert written(("messages", 0, "content", 1, "text")) == "messages[0].content[1].text"
    assert written(()) == ""
    assert value(A, ("list", 7)) is MISSING and value(A, ("x", "y")) is MISSING
