from __future__ import annotations

import contextlib
import struct
import time

import numpy as np
import pytest

from locallab.errors import MediaTooLarge, UnreadableMedia
from locallab.media.attachment import digest
from locallab.media.sounds import samples, sound
from locallab.settings import MediaSettings
from tests.support.media_files import RATE, SOUNDS, damaged, flac, mp3, png, tone, wav

BOUNDS = MediaSettings()


def heard(data: bytes, rate: int = RATE) -> np.ndarray:
    return np.frombuffer(samples(sound(data, "here", BOUNDS), rate), "<f4")


@pytest.mark.parametrize(("kind", "seconds"), [("WAV", 0.1), ("FLAC", 0.096), ("MP3", 8 * 1152 / 44_100)])
def test_every_format(kind: str, seconds: float) -> None:
    data = SOUNDS[kind]()
    found = sound(data, "messages[0].content[0].input_audio.data", BOUNDS)
    assert (found.kind, found.format, found.digest) == ("audio", kind, digest(data))
    assert found.seconds == pytest.approx(seconds, rel=0.01)
    assert len(heard(data)) == pytest.approx(seconds * RATE, abs=200)


@pytest.mark.parametrize("data", [wav(), flac()], ids=["WAV", "FLAC"])
def test_the_samples_are_what_was_played(data: bytes) -> None:
    found = heard(data)
    assert np.allclose(found, np.array(tone()[: len(found)]) / 32768, atol=1e-4)


def test_channels_are_mixed_and_rates_changed() -> None:
    assert np.allclose(heard(wav(channels=2)), heard(wav()), atol=1e-4)
    assert len(heard(wav(rate=48_000))) == pytest.approx(1600, abs=32)
    assert len(heard(wav(), 8000)) == pytest.approx(800, abs=16)


def test_a_long_sound_is_refused_from_its_header() -> None:
    with pytest.raises(MediaTooLarge, match=r"x: lasts 2 s; sounds may last 1.5 s \(--media-seconds\)") as caught:
        sound(wav(2), "x", MediaSettings(media_seconds=1.5))
    assert caught.value.setting == "media_seconds"
    assert sound(wav(2), "x", MediaSettings(media_seconds=2)).seconds == 2


def test_a_header_that_lies_is_found_out_while_decoding() -> None:
    found = sound(flac(1, told=256), "x", MediaSettings(media_seconds=0.5))
    assert found.seconds < 0.1
    with pytest.raises(MediaTooLarge, match=r"x: lasts longer; sounds may last 0\.5 s"):
        samples(found, RATE)


def test_a_slow_rate_does_not_fill_the_memory() -> None:
    data = bytearray(wav(1))
    data[24:28] = struct.pack("<I", 1)  # one sample a second
    with pytest.raises(MediaTooLarge, match="--media-seconds"):
        sound(bytes(data), "x", BOUNDS)


def test_numbers_that_are_none() -> None:
    body = struct.pack("<4f", 0.5, float("nan"), float("inf"), 0)
    head = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + 16, b"WAVE", b"fmt ", 16, 3, 1, RATE, 4 * RATE, 4, 32, b"data", 16)
    with pytest.raises(UnreadableMedia, match="x: has samples that are no numbers"):
        samples(sound(head + body, "x", BOUNDS), RATE)


def test_silence_of_no_length() -> None:
    with pytest.raises(UnreadableMedia, match=r"^x: is "):
        samples(sound(wav(0), "x", BOUNDS), RATE)


@pytest.mark.parametrize(
    "data", [b"", b"fLaC", b"RIFF0000WAVE", b"ID3", b"\xff\xfb\x90\x00", b"OggS" + bytes(60), png(), b"hello"]
)
def test_what_is_no_sound(data: bytes) -> None:
    with pytest.raises(UnreadableMedia, match=r"^x: "):
        samples(sound(data, "x", BOUNDS), RATE)


@pytest.mark.parametrize("kind", SOUNDS)
def test_damaged_sounds_do_no_harm(kind: str) -> None:
    data, bounds, refused = SOUNDS[kind](), MediaSettings(media_seconds=2), 0
    for seed in range(400):
        try:
            assert len(samples(sound(damaged(data, seed), "x", bounds), RATE)) <= 2 * 4 * RATE
        except (UnreadableMedia, MediaTooLarge):
            refused += 1
    assert refused < 400


@pytest.mark.parametrize("byte", [b"\xff\xfb", b"\xff\xfb\x90\x00", b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f"])
def test_megabytes_of_beginnings_take_no_minutes(byte: bytes) -> None:
    began = time.process_time()
    with contextlib.suppress(UnreadableMedia, MediaTooLarge):
        samples(sound((byte * (4 << 20))[: 4 << 20], "x", MediaSettings(media_seconds=60)), RATE)
    assert time.process_time() - began < 20


def test_a_picture_in_front_of_mp3_is_passed_over() -> None:
    tag = b"ID3\x04\x00\x00" + bytes([0, 0, 7, 0x68]) + bytes(1000)
    assert sound(tag + mp3(), "x", BOUNDS).format == "MP3"
