"""Blocks of a message's content as text: what a model can read, and for everything else a line that says what was there.

A client sends its whole history with each request, and cannot take a block back. So only what the user has just said is
refused; whatever else stands in a history, blocks not yet invented too, becomes text.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

from locallab.chat.json_text import dumps
from locallab.chat.media_blocks import SentMedia, sent_media
from locallab.errors import InvalidField, MediaTooLarge
from locallab.media.intake import Intake
from locallab.media.marker import joined, unmarked
from locallab.units import decimal_bytes

TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "summary_text": "text", "refusal": "refusal"}
"""Types of blocks that hold text, with the key of that text."""

THOUGHTS = {"thinking": "thinking", "reasoning": "text", "reasoning_text": "text"}
"""Types of blocks that hold the assistant's reasoning, with the key of its text."""

SEALED = ("redacted_thinking", "compaction")
"""Types of blocks that only their author can read."""

MEDIA = {
    "image": "images",
    "image_url": "images",
    "input_image": "images",
    "image_file": "images",
    "input_audio": "sound",
    "audio": "sound",
    "audio_url": "sound",
    "video": "videos",
    "video_url": "videos",
    "input_video": "videos",
    "document": "such documents",
    "file": "such files",
    "input_file": "such files",
}
"""Types of blocks that hold more than text, with what a model that takes only text does not take."""

OPAQUE = frozenset({"type", "id", "cache_control", "signature", "encrypted_content", "encrypted_index", "citations", "status"})
"""Keys that say nothing to a model."""

LONGEST, MOST, LEVELS = 4000, 50, 5
"""Characters of a text, entries of a list and levels of a foreign block that are shown."""


@dataclasses.dataclass(slots=True)
class Content:
    """The content of a message: its texts, with the markers of its media, and the assistant's reasoning among its blocks."""

    texts: list[str] = dataclasses.field(default_factory=list)
    thoughts: list[str] = dataclasses.field(default_factory=list)

    @property
    def text(self) -> str:
        return joined(self.texts)

    @property
    def whole(self) -> str:
        """The text with the reasoning, for roles that have none of their own."""
        return joined([*self.texts, *self.thoughts])

    @property
    def reasoning(self) -> str:
        return "\n".join(self.thoughts)


@dataclasses.dataclass(frozen=True, slots=True)
class BlockReader:
    """Reader of one message. What a model cannot be shown is added to `notes`, or refused if the message is `new`. The kinds of
    pictures and sounds that it can be shown are taken into `media`, and their markers stand for them.
    """

    notes: list[str]
    new: bool = False
    media: Intake | None = None

    def read(self, field: str, raw: object) -> Content:
        """Read a text, or a list of blocks. Raises InvalidField for a new message only."""
        content = Content()
        if raw is None:
            return content
        if isinstance(raw, str):
            content.texts.append(self._unmarked(raw))
        elif isinstance(raw, list):
            for index, block in enumerate(raw):
                self.add(content, field, block, f"{field}[{index}]")
        elif self.new:
            raise InvalidField(field, f"expected a text or a list of parts, got {type(raw).__name__}")
        else:
            self.add(content, field, raw)
        return content

    def add(self, content: Content, field: str, block: object, place: str | None = None) -> None:
        """Add a block to the content; `place` is its own field, if that is not `field`. Raises InvalidField for a new message
        only, and MediaTooLarge for a request with too many files."""
        if isinstance(block, str):
            content.texts.append(self._unmarked(block))
            return
        if not isinstance(block, Mapping):
            self._refuse(field, "expected text or a list of parts")
            content.texts.append(dumps(block))
            return
        kind = "text" if block.get("type") is None and "text" in block else block.get("type")
        kind = kind if isinstance(kind, str) else None
        if kind in SEALED:
            return
        if kind and (key := TEXT_PARTS.get(kind) or THOUGHTS.get(kind)):
            text = self._text(field, block.get(key) or block.get("summary") if kind in THOUGHTS else block.get(key))
            (content.thoughts if kind in THOUGHTS else content.texts).append(self._unmarked(text))
            return
        sent = sent_media(block) if self.media is not None else None
        if sent is not None and (shown := self.take(sent, place or field, block)) is not None:
            content.texts.append(shown)
            return
        shown = readable(block)
        if shown is None:
            self._refuse(field, _reason(kind))
            shown = described(block)
            self.notes.append(f"{field}: {shown}" if kind in MEDIA else f"{field}: a block of type {kind!r} is given as text")
        content.texts.append(self._unmarked(shown))

    def take(self, sent: SentMedia, field: str, block: object) -> str | None:
        """Return the marker of a picture or a sound, in a history the description of one that cannot be read; None for a kind
        that the model does not take. Raises UnreadableMedia, MediaTooLarge."""
        if self.media is None or sent.kind not in self.media.kinds:
            return None
        place = f"{field}.{sent.place}" if sent.place else field
        try:
            return self.media.take(sent.kind, sent.content(place), place)
        except InvalidField as error:
            if self.new or (isinstance(error, MediaTooLarge) and error.setting == "media_count"):
                raise
            self.notes.append(f"{error}; not shown")
            return described(block)

    def images(self, field: str, raw: object) -> list[str]:
        """Return the markers of a list of pictures, each base64, a data: URL or an address. Raises as `take`, and InvalidField
        for a new message only."""
        found = []
        for index, each in enumerate(raw if isinstance(raw, list) else [raw]):
            if not isinstance(each, str):
                self._refuse(f"{field}[{index}]", "expected a string: base64, a data: URL or an address")
                continue
            shown = self.take(SentMedia("image", "", each), f"{field}[{index}]", {"type": "image", "data": each})
            found += [] if shown is None else [shown]
        return found

    def _unmarked(self, text: str) -> str:
        return text if self.media is None else unmarked(text)

    def _text(self, field: str, raw: object) -> str:
        if raw is None or isinstance(raw, str):
            return raw or ""
        if isinstance(raw, list):
            return "\n".join(part if isinstance(part, str) else readable(part) or described(part) for part in raw)
        self._refuse(field, f"expected a string, got {type(raw).__name__}")
        return dumps(raw)

    def _refuse(self, field: str, reason: str) -> None:
        if self.new:
            raise InvalidField(field, reason)


def readable(block: object) -> str | None:
    """Return the text of a block that is text under another name: a document of plain text, a search result; else None."""
    if isinstance(block, str):
        return block
    if not isinstance(block, Mapping):
        return None
    kind = block.get("type")
    if isinstance(kind, str) and kind in TEXT_PARTS:
        text = block.get(TEXT_PARTS[kind])
        return text if isinstance(text, str) else None
    if kind == "search_result":
        text = _joined(block.get("content"))
    elif kind in ("document", "file", "input_file"):
        text = _document(block)
    else:
        return None
    title = [block[key] for key in ("title", "source", "filename") if isinstance(block.get(key), str)]
    return text if text is None else "\n".join([*(f"[{line}]" for line in title), text])


def described(block: object) -> str:
    """Return a text that says what a foreign block was, such as `[image: image/png, 34 KB, not shown]`."""
    if not isinstance(block, Mapping):
        return dumps(_shown(block))
    kind = block.get("type") if isinstance(block.get("type"), str) else "block"
    if kind in MEDIA:
        media_type, n_bytes = _payload(block)
        facts = [media_type, decimal_bytes(n_bytes) if n_bytes else "", "not shown"]
        return f"[{_short(MEDIA_NAMES.get(str(kind), str(kind)))}: {', '.join(filter(None, facts))}]"
    kind = _short(str(kind))
    if isinstance(block.get("text"), str):
        return f"[{kind}] {block['text']}"
    rest = {key: value for key, value in block.items() if key not in OPAQUE}
    return f"[{kind}: {dumps(_shown(rest))}]" if rest else f"[{kind}]"


MEDIA_NAMES = {kind: kind.removeprefix("input_").removesuffix("_url").removesuffix("_file") for kind in MEDIA}


def _reason(kind: object) -> str:
    if isinstance(kind, str) and kind in MEDIA:
        return f"this model takes no {MEDIA[kind]}"
    return f"unsupported part type {kind!r}; known: {', '.join(TEXT_PARTS)}"


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:80]}…"


def _joined(raw: object) -> str | None:
    """Join the texts of a list of blocks; None if there is anything else among them."""
    texts = [readable(block) for block in raw] if isinstance(raw, list) else [raw if isinstance(raw, str) else None]
    return None if None in texts else "\n".join(text for text in texts if text is not None)


def _document(block: Mapping[str, Any]) -> str | None:
    """Return the text of a document; None if it has a form that is not text, or is only named."""
    source = block.get("source")
    if isinstance(source, Mapping):
        match source.get("type"):
            case "text":
                return source["data"] if isinstance(source.get("data"), str) else None
            case "content":
                return _joined(source.get("content"))
            case "base64":
                return _decoded(str(source.get("media_type")), source.get("data"))
        return None
    file = block["file"] if isinstance(block.get("file"), Mapping) else block
    data = file.get("file_data")
    if isinstance(data, str) and data.startswith("data:"):
        head, _, body = data.removeprefix("data:").partition(",")
        media_type, _, coding = head.rpartition(";")
        return _decoded(media_type or coding, body if coding == "base64" else unquote_to_bytes(body))
    return None


def _decoded(media_type: str, data: object) -> str | None:
    if not media_type.startswith("text/"):
        return None
    try:
        raw = base64.b64decode(data) if isinstance(data, str) else data
        return raw.decode() if isinstance(raw, bytes) else None
    except (binascii.Error, ValueError):
        return None


def _payload(block: Mapping[str, Any]) -> tuple[str, int]:
    """Return the media type of what a block holds, or the end of its address, and its bytes; empty and 0 where not known."""
    for found in _texts(block):
        if found.startswith("data:"):
            head, _, data = found[5:].partition(",")
            return _short(head.partition(";")[0]), len(data) * 3 // 4
    inner = [block, *(value for value in block.values() if isinstance(value, Mapping))]
    named = (each[key] for each in inner for key in ("media_type", "mime_type", "format") if isinstance(each.get(key), str))
    data = next((each[key] for each in inner for key in ("data", "file_data") if isinstance(each.get(key), str)), "")
    address = next((text for text in _texts(block) if "://" in text[:10]), "")
    return _short(next(named, address.partition("?")[0])), len(data) * 3 // 4


def _texts(block: Mapping[str, Any]) -> Iterable[str]:
    for value in block.values():
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            yield from (each for each in value.values() if isinstance(each, str))


def _shown(value: object, levels: int = LEVELS) -> object:
    """Return the part of a value that is worth reading, within bounds."""
    if isinstance(value, str):
        return value if len(value) <= LONGEST else f"{value[:LONGEST]}… ({len(value)} characters)"
    if isinstance(value, Mapping | list) and not levels:
        return "…"
    if isinstance(value, Mapping):
        kept = [(key, each) for key, each in value.items() if key not in OPAQUE]
        return {_short(str(key)): _shown(each, levels - 1) for key, each in kept[:MOST]}
    if isinstance(value, list):
        return [_shown(each, levels - 1) for each in value[:MOST]] + (["…"] if len(value) > MOST else [])
    return value
