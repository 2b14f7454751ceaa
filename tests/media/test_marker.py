from __future__ import annotations

import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallab.chat.control_tokens import SEAM, guarded, markup, pieces
from locallab.chat.messages import Message
from locallab.media import marker
from locallab.media.attachment import Attachment, digest

texts = st.text(alphabet=st.sampled_from("ab_<|>\n0123456789médi" + SEAM), max_size=20)
wholes = st.lists(st.one_of(texts.map(lambda text: ("text", text)), st.integers(0, 99).map(lambda index: ("mark", index))))


def attachment(index: int) -> Attachment:
    data = bytes([index])
    return Attachment("image", data, digest(data), f"images[{index}]", "PNG")


def written(parts: list[tuple[str, object]]) -> str:
    return "".join(marker.marker(value) if kind == "mark" else str(value) for kind, value in parts)  # type: ignore[arg-type]


@given(wholes)
def test_markers_are_found_wherever_they_stand(parts: list[tuple[str, object]]) -> None:
    prompt, marks = written(parts), [value for kind, value in parts if kind == "mark"]
    assert marker.count(prompt) == len(marks)
    assert "".join(marker.parts(prompt)) == prompt
    assert len(marker.split(prompt)) == len(marks) + 1
    assert "".join(marker.split(prompt)) == "".join(str(value) for kind, value in parts if kind == "text")


@given(wholes, st.sets(st.integers(0, 99)))
def test_media_come_in_the_order_of_their_markers(parts: list[tuple[str, object]], known: set[int]) -> None:
    media = {marker.marker(index): attachment(index) for index in known}
    prompt, found = marker.placed(written(parts), media)
    kept = [value for kind, value in parts if kind == "mark" and value in known]
    assert [each.field for each in found] == [f"images[{index}]" for index in kept]
    assert marker.count(prompt) == len(kept)


@given(wholes, st.lists(st.sampled_from(["__", "_m", "<|", "a_", "00", "me", "0"]), min_size=1))
def test_control_tokens_leave_markers_whole(parts: list[tuple[str, object]], control: list[str]) -> None:
    prompt = written(parts)
    [safe] = guarded([Message("user", prompt)], markup(control))
    cut = pieces(safe.content)
    assert sum(map(marker.count, cut)) == marker.count(prompt)
    assert "".join(cut) == prompt.replace(SEAM, "")


@given(st.lists(st.one_of(texts, st.integers(0, 9).map(marker.marker))))
def test_parts_are_joined_by_line_ends_but_beside_markers(parts: list[str]) -> None:
    found = marker.joined(parts)
    if not any(map(marker.is_marker, parts)):
        assert found == "\n".join(parts)
    assert marker.count(found) == sum(map(marker.is_marker, parts))
    for text in marker.split(found):
        assert text.count("\n") <= sum(part.count("\n") for part in parts) + len(parts)


def test_joined_as_llama_cpp_does() -> None:
    one, two = marker.marker(0), marker.marker(1)
    assert marker.joined(["a", "b", one, "c", two, one, "d", "e"]) == f"a\nb{one}c{two}{one}d\ne"


def test_a_text_of_a_user_is_no_marker() -> None:
    assert marker.unmarked(f"x{marker.marker(3)}y") == "x0003y" and marker.count(marker.unmarked(marker.marker(1))) == 0
    assert not marker.is_marker(marker.MARKER) and not marker.is_marker(marker.marker(1) + "x")


def test_nobody_can_guess_a_marker() -> None:
    other = subprocess.run(
        [sys.executable, "-c", "from locallab.media.marker import MARKER; print(MARKER)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert re.fullmatch(r"__media_[0-9a-f]{32}_", other) and other != marker.MARKER


def test_one_marker_begins_no_other() -> None:
    assert not marker.marker(10).startswith(marker.marker(1))
    assert marker.named(f"a{marker.marker(10)}b", "<__media__>") == "a<__media__>b"


@pytest.mark.parametrize("index", [0, marker.MOST - 1])
def test_every_index_has_a_marker(index: int) -> None:
    assert marker.is_marker(marker.marker(index))
