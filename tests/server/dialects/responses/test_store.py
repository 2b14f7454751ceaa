from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallab.errors import UnknownResponse
from locallab.server.dialects.responses.store import Kept, Owner, ResponseStore, conversation, inputs


def put(store: ResponseStore, owner: Owner, name: str, items: list[Any], previous: str | None = None, text: str = "") -> None:
    body = {"id": name, "previous_response_id": previous, "output": [{"id": f"msg_{name}", "text": text}]}
    store.put(owner, name, Kept.of(body, items))


def test_a_conversation_is_followed_to_its_beginning() -> None:
    store = ResponseStore()
    put(store, None, "a", ["one"])
    put(store, None, "b", ["two"], "a")
    said = ["one", {"id": "msg_a", "text": ""}, "two", {"id": "msg_b", "text": ""}]
    assert conversation(store.chain(None, "b"), "b") == said
    assert inputs(store.chain(None, "b"), "b") == said[:3]
    assert store.remove(None, "a")
    with pytest.raises(UnknownResponse, match="'a'"):
        conversation(store.chain(None, "b"), "b")
    assert inputs(store.chain(None, "b"), "b") == ["two"]
    for read in (conversation, inputs):
        with pytest.raises(UnknownResponse, match="'a'"):
            read(store.chain(None, "a"), "a")


def test_nobody_finds_what_is_anothers() -> None:
    store = ResponseStore()
    put(store, "mine", "a", [])
    for owner in ("yours", None):
        assert store.chain(owner, "a") == [] and not store.remove(owner, "a") and store.items(owner, ["msg_a"]) == {}
    assert store.items("mine", ["msg_a", "msg_"]) == {"msg_a": {"id": "msg_a", "text": ""}}
    assert b"msg_a" in store.chain("mine", "a")[0].body


def test_what_was_used_longest_ago_makes_room() -> None:
    store = ResponseStore(most=3)
    for name in "abc":
        put(store, None, name, [])
    store.chain(None, "a")
    put(store, None, "d", [])
    assert len(store) == 3
    assert [bool(store.chain(None, name)) for name in "abcd"] == [True, False, True, True]


def test_a_conversation_keeps_its_beginning_longest() -> None:
    store = ResponseStore(most=3)
    put(store, None, "a", [])
    put(store, None, "b", [], "a")
    store.chain(None, "b")
    for name in "cd":
        put(store, None, name, [])
    assert store.chain(None, "a") and not store.chain(None, "b")


def test_looking_for_what_is_sent_later_is_no_use() -> None:
    store = ResponseStore(most=2)
    for name in "ab":
        put(store, None, name, [])
    assert store.find((None, "a"))
    put(store, None, "c", [])
    assert store.find((None, "a")) is None


def test_one_that_is_too_large_makes_no_room() -> None:
    store = ResponseStore(most_bytes=500)
    put(store, None, "a", [])
    put(store, None, "b", [], text="x" * 500)
    assert store.chain(None, "a") and len(store) == 1


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 300), st.booleans()), max_size=40))
def test_bounds_hold_whatever_happens(steps: list[tuple[str, int, bool]]) -> None:
    store = ResponseStore(most=4, most_bytes=1000)
    for number, (name, size, removes) in enumerate(steps):
        if not (store.remove(None, name) if removes else len(store.chain(None, name)) % 2):
            put(store, None, name, [number], text="x" * size)
        kept = list(store._kept.values())
        assert len(kept) <= 4 and store._bytes == sum(each.size for each in kept) <= 1000


def test_many_items_are_found_by_decoding_each_response_once(monkeypatch: pytest.MonkeyPatch) -> None:
    store, decoded = ResponseStore(), list[Any]()
    for name in range(20):
        put(store, None, str(name), [{"id": f"in_{name}_{n}"} for n in range(100)])
    once = Kept.items
    monkeypatch.setattr(Kept, "items", lambda kept: (decoded.append(kept), once(kept))[1])
    ids = [f"in_{name}_{n}" for name in range(20) for n in range(100)]
    assert [*store.items(None, ids)] == ids and len(decoded) == 20


def test_the_newest_response_that_is_left_has_the_item() -> None:
    store = ResponseStore(most=2)
    for name in "abc":  # "a" makes room
        put(store, None, name, [{"id": "same", "of": name}])
    for of in "cb":
        assert store.items(None, ["same"]) == {"same": {"id": "same", "of": of}}
        assert store.remove(None, of)
    assert store.items(None, ["same", "msg_a"]) == {} and not store._holders
