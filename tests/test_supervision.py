from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from locallab.supervision import REQUESTS, WIDTH, BlackBox

IDS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=128)


@given(st.lists(st.one_of(IDS, st.integers(0, 30)), max_size=3 * REQUESTS))
def test_requests_under_way_are_told_the_youngest_first(steps: list[str | int]) -> None:
    """A text begins a request of that id, a number ends the one that began so many steps ago."""
    box = BlackBox()
    begun: list[tuple[int, str]] = []
    ended: set[int] = set()
    for step in steps:
        if isinstance(step, str):
            begun.append((box.begin(step), step))
        elif step < len(begun):
            number = begun[-1 - step][0]
            ended.add(number)
            box.end(number)
    assert box.requests() == [request for number, request in reversed(begun[-REQUESTS:]) if number not in ended]


def test_the_end_of_a_forgotten_request_changes_nothing() -> None:
    box = BlackBox()
    numbers = [box.begin(f"r{n}") for n in range(REQUESTS + 1)]
    box.end(numbers[0])
    assert box.requests() == [f"r{n}" for n in range(REQUESTS, 0, -1)]


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=2 * WIDTH))
def test_models_are_told(name: str) -> None:
    box = BlackBox()
    box.loading, box.loaded, box.ram = name, [name, "other"], 5 << 40
    kept = name.encode()[:WIDTH].decode(errors="replace")
    assert (box.loading, box.loaded, box.ram) == (kept, [*filter(None, [kept]), "other"], 5 << 40)
    box.loaded = []
    box.clear()
    assert (box.loading, box.loaded, box.ram, box.requests()) == ("", [], 0, [])


def test_what_a_killed_process_wrote_stays() -> None:
    box = BlackBox()
    box.loading = "before"
    if (pid := os.fork()) == 0:
        box.begin("last")
        box.loading = "bad:1b"
        os._exit(0)
    os.waitpid(pid, 0)
    assert (box.loading, box.requests()) == ("bad:1b", ["last"])
