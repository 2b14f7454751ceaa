"""A picture or a sound of a request, as the file that was sent."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Literal

Kind = Literal["image", "audio"]


@dataclasses.dataclass(frozen=True, slots=True)
class Attachment:
    """A file whose header has been checked against the bounds; the rest of it may still be damaged.

    `digest` is the SHA-256 of `data` in hexadecimal: two attachments with the same digest are the same picture. `field` is its
    place in the request, for errors. `format` is PNG, JPEG, WEBP, GIF, BMP, WAV, MP3 or FLAC. `width` and `height` are those of
    a picture as it is stored, before its EXIF orientation is applied; `seconds` is the length of a sound, and `longest` the one
    up to which it is decoded, whatever its header says.
    """

    kind: Kind
    data: bytes = dataclasses.field(repr=False, compare=False)
    digest: str
    field: str = dataclasses.field(compare=False)
    format: str
    width: int = 0
    height: int = 0
    seconds: float = 0.0
    longest: float = dataclasses.field(default=0.0, compare=False)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
