from __future__ import annotations

import pytest

from locallab.errors import MediaTooLarge, UnreadableMedia
from locallab.media.intake import Intake
from locallab.media.marker import marker
from locallab.settings import MediaSettings
from tests.support.media_files import encoded, png, url, wav

ADDRESS = "https://example.org/a.png"
FETCHING = MediaSettings(allow_media_urls=True)


def test_each_file_gets_a_marker() -> None:
    intake = Intake({"image", "audio"}, MediaSettings())
    marks = [
        intake.take("image", encoded(png()), "a"),
        intake.take("audio", url(wav(), "audio/wav"), "b"),
        intake.take("image", png(), "c"),
    ]
    assert marks == [marker(0), marker(1), marker(2)] == list(intake.media)
    assert [(each.kind, each.field) for each in intake.media.values()] == [("image", "a"), ("audio", "b"), ("image", "c")]
    assert intake.media[marks[0]] == intake.media[marks[2]], "the same picture"


def test_a_sound_is_no_picture() -> None:
    with pytest.raises(UnreadableMedia, match="x: is no picture"):
        Intake({"image"}, MediaSettings()).take("image", encoded(wav()), "x")


def test_a_request_has_a_number_of_files() -> None:
    intake = Intake({"image"}, MediaSettings(media_count=2))
    intake.take("image", encoded(png()), "a")
    intake.take("image", encoded(png()), "b")
    with pytest.raises(MediaTooLarge, match=r"c: is one too many: a request may have 2 \(--media-count\)"):
        intake.take("image", encoded(png()), "c")


def test_the_file_itself_is_bounded_too() -> None:
    with pytest.raises(MediaTooLarge, match="--media-bytes"):
        Intake({"image"}, MediaSettings(media_bytes=10)).take("image", png(), "a")


@pytest.mark.parametrize("address", [ADDRESS, "http://10.0.0.1/a.png", "HTTPS://example.org"])
def test_addresses_are_refused_unless_the_server_fetches_them(address: str) -> None:
    with pytest.raises(UnreadableMedia, match=r"x: is an address, and the server fetches none \(--allow-media-urls\)"):
        Intake({"image"}, MediaSettings()).take("image", address, "x")


def test_addresses_are_wanted_then_there_or_not() -> None:
    first = Intake({"image"}, FETCHING)
    assert first.take("image", ADDRESS, "x") == "" and first.wanted == [ADDRESS] and not first.media
    there = Intake({"image"}, FETCHING, {ADDRESS: png()})
    assert there.take("image", ADDRESS, "x") == marker(0) and there.media[marker(0)].data == png() and not there.wanted
    with pytest.raises(UnreadableMedia, match="x: is answered with the status 404"):
        Intake({"image"}, FETCHING, {ADDRESS: "is answered with the status 404"}).take("image", ADDRESS, "x")
    with pytest.raises(UnreadableMedia, match="x: is an empty file"):
        Intake({"image"}, FETCHING, {ADDRESS: b""}).take("image", ADDRESS, "x")


def test_wanted_addresses_count() -> None:
    intake = Intake({"image"}, MediaSettings(allow_media_urls=True, media_count=1))
    intake.take("image", ADDRESS, "a")
    with pytest.raises(MediaTooLarge, match="--media-count"):
        intake.take("image", ADDRESS, "b")
