"""Files within JSON: base64, alone or in a data: URL."""

from __future__ import annotations

import base64
import binascii

from locallab.errors import MediaTooLarge, UnreadableMedia
from locallab.settings import MediaSettings
from locallab.units import decimal_bytes

FORM = "expected base64, or a data: URL such as data:image/png;base64,..."
PIECE = 1 << 20
"""Characters decoded in one go, a multiple of four: in between, other threads get the GIL."""


def decoded(text: str, field: str, bounds: MediaSettings) -> bytes:
    """Return the file in a data: URL or in base64.

    Raises MediaTooLarge, before anything is decoded, and UnreadableMedia for an empty file and all but strict base64.
    """
    start = 0
    if text[:5].lower() == "data:":
        start = text.find(",", 0, 1024) + 1
        if not text[:start].lower().endswith(";base64,"):
            raise UnreadableMedia(field, FORM)
    if (len(text) - start) // 4 * 3 > bounds.media_bytes + 2:
        raise too_large(field, bounds)
    try:
        pieces = [base64.b64decode(text[at : at + PIECE], validate=True) for at in range(start, len(text), PIECE)]
    except (binascii.Error, ValueError) as error:
        raise UnreadableMedia(field, f"{FORM}; {str(error)[:100]}") from None
    if any(len(piece) < PIECE // 4 * 3 for piece in pieces[:-1]):
        raise UnreadableMedia(field, f"{FORM}; padding belongs at its end")
    return checked(b"".join(pieces), field, bounds)


def checked(data: bytes, field: str, bounds: MediaSettings) -> bytes:
    """Return the file. Raises MediaTooLarge, and UnreadableMedia for an empty one."""
    if not data:
        raise UnreadableMedia(field, "is an empty file")
    if len(data) > bounds.media_bytes:
        raise too_large(field, bounds)
    return data


def too_large(field: str, bounds: MediaSettings) -> MediaTooLarge:
    return MediaTooLarge(field, "media_bytes", f"is larger than {decimal_bytes(bounds.media_bytes)}")


def media_type(text: str) -> str:
    """Return the media type of a data: URL in lower case; empty for other texts."""
    head = text[5:100].partition(",")[0].partition(";")[0] if text[:5].lower() == "data:" else ""
    return head.strip().lower()
