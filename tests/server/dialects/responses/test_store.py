from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallab.errors import UnknownResponse
from locallab.server.dialects.responses import store as module
from locallab.server.dialects.responses.store import ResponseStore


def body(name: str, previous: str | None = None, text: str = "") -> dict[str, Any]:
    return {"id": name, "previous_response_id": previous, "output": [{"id": f"msg_{name}", "text": text}]}


def test_a_conversation_is_followed_to_its_beginning() -> None:
    store = ResponseStore()
    store.put(None, body("a"), ["one"])
    store.put(None, body("b", "a"), ["two"])
    assert store.conversation(None, "b") == ["one", {"id": "msg_a", "text": ""}, "two", {"id": "msg_b", "text": ""}]
    store.remove(None, "a")
    with pytest.raises(UnknownResponse, match="'a'"):
        store.conversation(None, "b")


def test_nobody_finds_what_is_anothers() -> None:
    store = ResponseStore()
    store.put("mine", body("a"), [])
    for owner in ("yours", None):
        with pytest.raises(UnknownResponse):
            store.get(owner, "a")
        with pytest.raises(UnknownResponse):
            store.remove(owner, "a")
        assert store.items(owner, ["msg_a"]) == {}
    assert store.items("mine", ["msg_a", "msg_"]) == {"msg_a": {"id": "msg_a", "text": ""}}
    assert b"msg_a" in store.get("mine", "a")


def test_what_was_used_longest_ago_makes_room() -> None:
    store = ResponseStore(most=3)
    for name in "abc":
        store.put(None, body(name), [])
    store.get(None, "a")
    store.put(None, body("d"), [])
    assert len(store) == 3
    with pytest.raises(UnknownResponse):
        store.get(None, "b")
    assert all(store.get(None, name) for name in "acd")


def test_a_conversation_keeps_its_beginning_longest() -> None:
    store = ResponseStore(most=3)
    store.put(None, body("a"), [])
    store.put(None, body("b", "a"), [])
    store.conversation(None, "b")
    for name in "cd":
        store.put(None, body(name), [])
    assert store.get(None, "a")
    with pytest.raises(UnknownResponse):
        store.get(None, "b")


def test_one_that_is_too_large_makes_no_room() -> None:
    store = ResponseStore(most_bytes=500)
    store.put(None, body("a"), [])
    store.put(None, body("b", text="x" * 500), [])
    assert store.get(None, "a") and len(store) == 1


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 300), st.booleans()), max_size=40))
def test_bounds_hold_whatever_happens(steps: list[tuple[str, int, bool]]) -> None:
    store = ResponseStore(most=4, most_bytes=1000)
    for number, (name, size, removes) in enumerate(steps):
        try:
            store.remove(None, name) if removes else store.get(None, name)
        except UnknownResponse:
            store.put(None, body(name, text="x" * size), [number])
        kept = list(store._kept.values())
        assert len(kept) <= 4 and store._bytes == sum(each.size for each in kept) <= 1000


def test_many_items_are_found_by_decoding_each_response_once(monkeypatch: pytest.MonkeyPatch) -> None:
    store, decoded = ResponseStore(), list[Any]()
    for name in range(20):
        store.put(None, body(str(name)), [{"id": f"in_{name}_{n}"} for n in range(100)])
    once = module._items
    monkeypatch.setattr(module, "_items", lambda kept: (decoded.append(kept), once(kept))[1])
    ids = [f"in_{name}_{n}" for name in range(20) for n in range(100)]
    assert [*store.items(None, ids)] == ids and len(decoded) == 20


def test_the_newest_response_that_is_left_has_the_item() -> None:
    store = ResponseStore(most=2)
    for name in "abc":  # "a" makes room
        store.put(None, body(name), [{"id": "same", "of": name}])
    for of in "cb":
        assert store.items(None, ["same"]) == {"same": {"id": "same", "of": of}}
        store.remove(None, of)
    assert store.items(None, ["same", "msg_a"]) == {} and not store._holders
