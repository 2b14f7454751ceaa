from __future__ import annotations

import base64
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallab.errors import MediaTooLarge, UnreadableMedia
from locallab.media import encoded
from locallab.media.encoded import decoded, media_type
from locallab.settings import MediaSettings

BOUNDS = MediaSettings()


@given(st.binary(min_size=1), st.sampled_from(["", "data:image/png;base64,", "DATA:;base64,", "data:image/png;a=b;BASE64,"]))
def test_base64_and_data_urls(data: bytes, head: str) -> None:
    assert decoded(head + base64.b64encode(data).decode(), "x", BOUNDS) == data


@pytest.mark.parametrize(
    "text",
    ["AAA", "AA=A", "AA AA", "AAAA\n", "-_-_", "é", "data:image/png,AAAA", "data:AAAA", "data:;base64", "\ud800"],
)
def test_only_strict_base64(text: str) -> None:
    with pytest.raises(UnreadableMedia, match=r"x: expected base64, or a data: URL such as data:image/png;base64,\.\.\."):
        decoded(text, "x", BOUNDS)


@pytest.mark.parametrize("text", ["", "data:image/png;base64,"])
def test_an_empty_file(text: str) -> None:
    with pytest.raises(UnreadableMedia, match="x: is an empty file"):
        decoded(text, "x", BOUNDS)


@pytest.mark.parametrize("head", ["", "data:image/png;base64,"])
def test_the_bound_is_that_of_the_file(head: str) -> None:
    bounds = MediaSettings(media_bytes=1000)
    assert len(decoded(head + base64.b64encode(bytes(1000)).decode(), "x", bounds)) == 1000
    for size in (1001, 1002, 1003, 5000):
        with pytest.raises(MediaTooLarge, match=r"x: is larger than 1 kB \(--media-bytes\)") as caught:
            decoded(head + base64.b64encode(bytes(size)).decode(), "x", bounds)
        assert caught.value.setting == "media_bytes"


def test_a_file_that_is_too_large_is_not_decoded() -> None:
    text = "A" * (64 << 20)
    tracemalloc.start()
    with pytest.raises(MediaTooLarge):
        decoded(text, "x", BOUNDS)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_media_types() -> None:
    assert media_type("data:Image/PNG;base64,AAAA") == "image/png"
    assert media_type("data:,x") == media_type("AAAA") == media_type("https://example.org/data:image/png") == ""


def test_long_texts_are_decoded_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoded, "PIECE", 8)
    for size in (5, 6, 7, 12, 13, 40):
        assert decoded("data:image/png;base64," + base64.b64encode(bytes(range(size))).decode(), "x", BOUNDS) == bytes(
            range(size)
        )
    for text in ("AAAAAA==AAAA", "AAAAAAA=AAAAAAAA", "AAAAAAAAA"):
        with pytest.raises(UnreadableMedia, match="x: expected base64"):
            decoded(text, "x", BOUNDS)
