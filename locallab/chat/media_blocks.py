"""The places where the blocks of each dialect have their picture or sound."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from locallab.errors import UnreadableMedia
from locallab.media.attachment import Kind
from locallab.media.encoded import media_type

Path = tuple[str, ...]

TYPES: Mapping[str, Kind] = {
    "image": "image",
    "image_url": "image",
    "input_image": "image",
    "image_file": "image",
    "input_audio": "audio",
    "audio": "audio",
    "audio_url": "audio",
}
FILES = frozenset({"file", "input_file", "document"})
"""Types of blocks that may hold anything: the media type says what."""

_SOURCE: Sequence[Path] = (("source", "data"), ("source", "url"), ("data",), ("url",))
PLACES: Mapping[Kind, Sequence[Path]] = {
    "image": (("image_url", "url"), ("image_url",), ("image",), *_SOURCE),
    "audio": (
        *(("input_audio", "data"), ("input_audio", "url"), ("input_audio",), ("audio_url", "url"), ("audio_url",)),
        *(("audio", "data"), ("audio", "url"), ("audio",), *_SOURCE),
    ),
}
"""Keys under which a block has base64, a data: URL or an address."""
_FILE_PLACES: Sequence[Path] = (("file", "file_data"), ("file_data",), ("source", "data"))


@dataclasses.dataclass(frozen=True, slots=True)
class SentMedia:
    """What a block sends: base64, a data: URL or an address, found at `place` in it. `text` None: it only names a file."""

    kind: Kind
    place: str
    text: str | None

    def content(self, field: str) -> str:
        """Return the text. Raises UnreadableMedia if there is none."""
        if self.text is None:
            reason = "has no file in it, and none is stored here under an id: send it as base64 or as a data: URL"
            raise UnreadableMedia(field, reason)
        return self.text


def sent_media(block: Mapping[str, Any]) -> SentMedia | None:
    """Return the picture or sound of a block; None for a block of another kind."""
    kind = block.get("type")
    if not isinstance(kind, str):
        return None
    if kind in FILES:
        return _in_file(block)
    if kind not in TYPES:
        return None
    found = _first(block, PLACES[TYPES[kind]])
    if found is None:
        return SentMedia(TYPES[kind], "file_id" if "file_id" in block else kind, None)
    return SentMedia(TYPES[kind], ".".join(found[0]), found[1])


def _in_file(block: Mapping[str, Any]) -> SentMedia | None:
    found = _first(block, _FILE_PLACES)
    if found is None:
        return None
    place, text = found
    source = block.get("source")
    declared = source.get("media_type") if isinstance(source, Mapping) else None
    head = media_type(text) or (declared if isinstance(declared, str) else "")
    kind: Kind | None = "image" if head.startswith("image/") else "audio" if head.startswith("audio/") else None
    return None if kind is None else SentMedia(kind, ".".join(place), text)


def _first(block: Mapping[str, Any], places: Sequence[Path]) -> tuple[Path, str] | None:
    for place in places:
        value: Any = block
        for key in place:
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, str):
            return place, value
    return None
