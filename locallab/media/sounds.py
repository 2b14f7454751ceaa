"""Sounds: their length, from the header, and their samples.

miniaudio decodes, mixes and resamples in one pass and is what llama.cpp's server uses, so that models hear the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import miniaudio
import numpy as np

from locallab.errors import InvalidField, MediaTooLarge, UnreadableMedia
from locallab.media.attachment import Attachment, digest
from locallab.settings import MediaSettings

FORMATS = "WAV, MP3 and FLAC"
FRAMES = 1 << 15
"""Samples decoded at a time."""

_READERS = {"WAV": miniaudio.wav_get_info, "MP3": miniaudio.mp3_get_info, "FLAC": miniaudio.flac_get_info}


def format_of(data: bytes) -> str | None:
    """Return the sound format that the data begins like; None for others."""
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        return "WAV"
    if data[:4] == b"fLaC":
        return "FLAC"
    is_frame = len(data) > 2 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0 and data[1] & 0x06  # a layer that exists
    return "MP3" if data[:3] == b"ID3" or is_frame else None


def sound(data: bytes, field: str, bounds: MediaSettings) -> Attachment:
    """Return the attachment after a look at its header.

    Raises UnreadableMedia for what is no sound, MediaTooLarge for one that is too long.
    """
    kind = format_of(data)
    if kind is None:
        raise UnreadableMedia(field, f"is no sound that is known here: send one of {FORMATS}")
    with _readable(field, kind):
        seconds = float(_READERS[kind](data).duration)
    if seconds > bounds.media_seconds:
        raise _too_long(field, bounds.media_seconds, f"lasts {seconds:,.0f} s")
    return Attachment("audio", data, digest(data), field, kind, seconds=seconds, longest=bounds.media_seconds)


def samples(attachment: Attachment, rate: int) -> bytes:
    """Return the samples of a sound, mixed to one channel and resampled to `rate` Hz, as little-endian 32-bit floats.

    Raises UnreadableMedia for a damaged file, MediaTooLarge for one that lasts longer than its header says and than is allowed.
    """
    found, length = [], 0
    with _readable(attachment.field, attachment.format):
        for chunk in miniaudio.stream_memory(attachment.data, miniaudio.SampleFormat.FLOAT32, 1, rate, FRAMES):
            length += len(chunk)
            if length > attachment.longest * rate:
                raise _too_long(attachment.field, attachment.longest, "lasts longer")
            found.append(chunk.tobytes())
    data = b"".join(found)
    if not data:
        raise UnreadableMedia(attachment.field, f"is silent: the {attachment.format} file has no samples")
    if not np.isfinite(np.frombuffer(data, "<f4")).all():
        raise UnreadableMedia(attachment.field, "has samples that are no numbers")
    return data


def _too_long(field: str, most: float, found: str) -> MediaTooLarge:
    return MediaTooLarge(field, "media_seconds", f"{found}; sounds may last {most:g} s")


@contextlib.contextmanager
def _readable(field: str, kind: str) -> Iterator[None]:
    try:
        yield
    except InvalidField:
        raise
    except Exception as error:  # miniaudio's own errors, and others such as ZeroDivisionError
        raise UnreadableMedia(field, f"is damaged: it begins like a {kind} file but cannot be read ({error})") from None
