"""Pictures: their size, from the header, and their pixels.

A decoder is shown only what its header promises to be small enough: a file of a few kilobytes may unfold to gigabytes.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageOps

from locallab.errors import MediaTooLarge, UnreadableMedia
from locallab.media.attachment import Attachment, digest
from locallab.settings import MediaSettings

FORMATS = "PNG, JPEG, WebP, GIF and BMP"
RATIO = 200
"""Times that a picture may be as long as it is wide: encoders scale the shorter side to nothing beyond."""

BAND = 1 << 20
"""Pixels that are converted in one go: each conversion of a whole picture would take its memory once more."""

_BEGINNINGS = ((b"\x89PNG\r\n\x1a\n", "PNG"), (b"\xff\xd8\xff", "JPEG"), (b"GIF87a", "GIF"), (b"GIF89a", "GIF"), (b"BM", "BMP"))


# Of warnings about damaged files Python would keep every text, and the files are anybody's.
warnings.filterwarnings("ignore", module=r"PIL\.")


def format_of(data: bytes) -> str | None:
    """Return the picture format that the data begins like; None for others."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return next((name for beginning, name in _BEGINNINGS if data.startswith(beginning)), None)


def picture(data: bytes, field: str, bounds: MediaSettings) -> Attachment:
    """Return the attachment after a look at its header.

    Raises UnreadableMedia for what is no picture, MediaTooLarge for one of too many pixels.
    """
    kind = format_of(data)
    if kind is None:
        raise UnreadableMedia(field, f"is no picture that is known here: send one of {FORMATS}")
    most = MediaTooLarge(field, "media_pixels", f"has more than {bounds.media_pixels:,} pixels; send it scaled down")
    with _readable(field, kind, most), Image.open(io.BytesIO(data), formats=[kind]) as image:
        width, height = image.size
    if width * height > bounds.media_pixels:
        raise most
    if not 0 < max(width, height) <= RATIO * min(width, height):
        reason = f"is {width} by {height} pixels; the longer side may be at most {RATIO} times the shorter one"
        raise UnreadableMedia(field, reason)
    return Attachment("image", data, digest(data), field, kind, width=width, height=height)


def pixels(attachment: Attachment) -> tuple[int, int, bytes]:
    """Return the width, the height and the pixels of a picture as RGB bytes, from the top left, row by row.

    Its EXIF orientation is applied, of an animation the first frame is taken, what is transparent is shown on white, and of 16
    bits for a grey the upper eight count. Takes up to seconds and sixteen bytes a pixel. Raises UnreadableMedia for a damaged
    file.
    """
    with (
        _readable(attachment.field, attachment.format),
        Image.open(io.BytesIO(attachment.data), formats=[attachment.format]) as image,
    ):
        image.load()
        with contextlib.suppress(Exception):  # a damaged EXIF block is no reason to refuse the picture
            ImageOps.exif_transpose(image, in_place=True)
        width, height = image.size
        rows, found = max(1, BAND // width), io.BytesIO()
        for top in range(0, height, rows):
            found.write(_opaque(image.crop((0, top, width, min(top + rows, height)))).tobytes())
        return width, height, found.getvalue()


def _opaque(image: Image.Image) -> Image.Image:
    """Return the picture in RGB."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        levels = np.clip(np.asarray(image), 0, 0xFFFF).astype(np.uint16) >> 8
        return Image.fromarray(levels.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        shown = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown).convert("RGB")
    return image.convert("RGB")


@contextlib.contextmanager
def _readable(field: str, kind: str, most: MediaTooLarge | None = None) -> Iterator[None]:
    """Turn whatever a decoder raises on a damaged file into UnreadableMedia, and its own bound of pixels into `most`."""
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise most or UnreadableMedia(field, "has too many pixels") from None
    except Exception as error:  # OSError, SyntaxError, ValueError, struct.error, ...: decoders raise anything
        reason = f"is damaged: it begins like a {kind} file but cannot be read ({str(error)[:200] or type(error).__name__})"
        raise UnreadableMedia(field, reason) from None
