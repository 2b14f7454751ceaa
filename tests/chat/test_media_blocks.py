"""Where each dialect's blocks have their file."""

from __future__ import annotations

from typing import Any

import pytest

from locallab.chat.blocks import BlockReader
from locallab.chat.media_blocks import SentMedia, sent_media
from locallab.errors import InvalidField, MediaTooLarge
from locallab.media.intake import Intake
from locallab.media.marker import marker
from locallab.settings import MediaSettings
from tests.support.media_files import encoded, png, url

FOUND: dict[str, tuple[dict[str, Any], SentMedia | None]] = {
    "chats": ({"type": "image_url", "image_url": {"url": "u"}}, SentMedia("image", "image_url.url", "u")),
    "chats in short": ({"type": "image_url", "image_url": "u"}, SentMedia("image", "image_url", "u")),
    "Responses": ({"type": "input_image", "image_url": "u"}, SentMedia("image", "image_url", "u")),
    "an id of Responses": ({"type": "input_image", "file_id": "f"}, SentMedia("image", "file_id", None)),
    "Anthropic": ({"type": "image", "source": {"type": "base64", "data": "d"}}, SentMedia("image", "source.data", "d")),
    "Anthropic's address": ({"type": "image", "source": {"type": "url", "url": "u"}}, SentMedia("image", "source.url", "u")),
    "tools": ({"type": "image", "data": "d", "mimeType": "image/png"}, SentMedia("image", "data", "d")),
    "sound": (
        {"type": "input_audio", "input_audio": {"data": "d", "format": "wav"}},
        SentMedia("audio", "input_audio.data", "d"),
    ),
    "vLLM's sound": ({"type": "audio_url", "audio_url": {"url": "u"}}, SentMedia("audio", "audio_url.url", "u")),
    "nothing": ({"type": "image", "source": {"data": 5}}, SentMedia("image", "image", None)),
    "a picture as a file": (
        {"type": "input_file", "file_data": "data:image/png;base64,"},
        SentMedia("image", "file_data", "data:image/png;base64,"),
    ),
    "a sound as a file": (
        {"type": "file", "file": {"file_data": "data:audio/wav,"}},
        SentMedia("audio", "file.file_data", "data:audio/wav,"),
    ),
    "a picture as a document": (
        {"type": "document", "source": {"type": "base64", "media_type": "image/png", "data": "d"}},
        SentMedia("image", "source.data", "d"),
    ),
    "a text as a file": ({"type": "input_file", "file_data": "data:text/plain,x"}, None),
    "a PDF": ({"type": "document", "source": {"media_type": "application/pdf", "data": "d"}}, None),
    "a text": ({"type": "text", "text": "image"}, None),
    "no type": ({"image_url": "u"}, None),
    "a type of a wrong type": ({"type": ["image"]}, None),
    "a video": ({"type": "video_url", "video_url": {"url": "u"}}, None),
}


@pytest.mark.parametrize(("block", "found"), FOUND.values(), ids=FOUND)
def test_what_a_block_sends(block: dict[str, Any], found: SentMedia | None) -> None:
    assert sent_media(block) == found


def reader(*, new: bool = True, kinds: tuple[str, ...] = ("image",), **bounds: Any) -> BlockReader:
    return BlockReader([], new, Intake(kinds, MediaSettings(**bounds)))


def test_a_marker_stands_for_a_picture() -> None:
    content = reader().read("content", ["a", {"type": "image_url", "image_url": url(png())}, "b"])
    assert content.texts == ["a", marker(0), "b"] and content.text == f"a{marker(0)}b" == content.whole


def test_what_cannot_be_shown_is_described_in_a_history() -> None:
    old = reader(new=False)
    assert (
        old.read("c", [{"type": "image_url", "image_url": "data:image/png;base64,AAAA"}]).text
        == "[image: image/png, 3 bytes, not shown]"
    )
    [note] = old.notes
    assert note.startswith("c[0].image_url: is no picture") and note.endswith("; not shown")


def test_too_many_end_the_request_wherever_they_are() -> None:
    blocks = [{"type": "image_url", "image_url": url(png())}] * 2
    with pytest.raises(MediaTooLarge):
        reader(new=False, media_count=1).read("c", blocks)


def test_other_kinds_are_refused_as_by_a_model_of_texts() -> None:
    for block in (
        {"type": "input_audio", "input_audio": {"data": "x"}},
        {"type": "video_url"},
        {"type": "document", "source": {}},
    ):
        with pytest.raises(InvalidField, match="content: this model takes no") as caught:
            reader().read("content", [block])
        with pytest.raises(InvalidField) as plain:
            BlockReader([], True).read("content", [block])
        assert str(caught.value) == str(plain.value)


def test_pictures_beside_a_text() -> None:
    found = reader()
    assert found.images("images", [encoded(png()), url(png())]) == [marker(0), marker(1)]
    with pytest.raises(InvalidField, match=r"images\[0\]: expected a string"):
        found.images("images", [5])
    assert reader(new=False).images("images", [5, encoded(png())]) == [marker(0)]
    assert reader(kinds=("audio",)).images("images", [encoded(png())]) == []
