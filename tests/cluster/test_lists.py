"""Lists of models from several replicas."""

from __future__ import annotations

from typing import Any

from locallab.cluster.lists import merged


def entry(id: str, status: str) -> dict[str, Any]:
    return {"id": id, "status": status}


A = {"object": "list", "data": [entry("b", "unloaded"), entry("a", "ready")]}
B = {"object": "list", "data": [entry("a", "unloaded"), entry("b", "ready"), entry("c", "unloaded")]}
FRONT = {"object": "list", "data": [entry("d", "unloaded"), entry("e", "unloaded"), entry("a", "unloaded")]}


def test_what_a_models_own_replica_says_counts() -> None:
    listed = merged({"a": A, "b": B}, FRONT, ["a", "b", "d"])
    assert listed == {
        "object": "list",
        "data": [entry("a", "ready"), entry("b", "ready"), entry("c", "unloaded"), entry("d", "unloaded")],
    }


def test_an_answer_that_failed_is_left_out() -> None:
    assert merged({"a": None, "b": B}, FRONT, ["a"])["data"][0] == entry("b", "ready")
    assert entry("a", "unloaded") in merged({"a": None, "b": B}, FRONT, ["a"])["data"]
    assert merged({"a": None}, None, ["a"]) is None
    assert merged({}, FRONT, ["d"])["data"] == [entry("d", "unloaded")]


def test_names_of_ollama_are_those_of_models() -> None:
    tags = {"models": [{"name": "a:latest"}]}
    assert merged({"a": tags, "b": {"models": [{"name": "b:latest"}, {"name": "a:latest", "size": 1}]}}, None, []) == {
        "models": [{"name": "a:latest"}, {"name": "b:latest"}]
    }
