"""The pictures and sounds of one request, in the order in which they are read."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from locallab.errors import MediaTooLarge, UnreadableMedia
from locallab.media.attachment import Attachment, Kind
from locallab.media.encoded import checked, decoded
from locallab.media.marker import MOST, marker
from locallab.settings import MediaSettings


class Intake:
    """Takes the media of a request for a model that takes these `kinds`.

    `fetched` has the file of each address, or the reason why there is none. What it lacks is collected in `wanted`: the request
    is then to be read again, with all of them.
    """

    def __init__(self, kinds: Collection[str], bounds: MediaSettings, fetched: Mapping[str, bytes | str] | None = None) -> None:
        self.kinds = frozenset(kinds)
        self.bounds = bounds
        self.wanted: list[str] = []
        self.media: dict[str, Attachment] = {}
        self._fetched = fetched or {}

    def take(self, kind: Kind, text: str | bytes, field: str) -> str:
        """Return the marker that stands for a file: base64, a data: URL, an address, or the file itself.

        Raises UnreadableMedia and MediaTooLarge; with the setting media_count it is the request that has too many.
        """
        if len(self.media) + len(self.wanted) >= min(self.bounds.media_count, MOST):
            raise MediaTooLarge(field, "media_count", f"is one too many: a request may have {self.bounds.media_count}")
        if isinstance(text, bytes):
            data = checked(text, field, self.bounds)
        elif is_address(text):
            found = self._found(text, field)
            if found is None:
                return ""
            data = checked(found, field, self.bounds)
        else:
            data = decoded(text, field, self.bounds)
        mark = marker(len(self.media))
        self.media[mark] = _read(kind, data, field, self.bounds)
        return mark

    def _found(self, address: str, field: str) -> bytes | None:
        """Return the file at an address; None if it is to be fetched."""
        if not self.bounds.allow_media_urls:
            reason = "is an address, and the server fetches none (--allow-media-urls); send the file itself, as a data: URL"
            raise UnreadableMedia(field, reason)
        found = self._fetched.get(address)
        if isinstance(found, str):
            raise UnreadableMedia(field, found)
        if found is None:
            self.wanted.append(address)
        return found


def is_address(text: str) -> bool:
    """Return whether a text is an address of the web."""
    return text[:8].lower().startswith(("http://", "https://"))


def _read(kind: Kind, data: bytes, field: str, bounds: MediaSettings) -> Attachment:
    if kind == "image":  # imported by the first request that needs them: most servers never do
        from locallab.media.pictures import picture

        return picture(data, field, bounds)
    from locallab.media.sounds import sound

    return sound(data, field, bounds)
