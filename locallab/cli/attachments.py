"""Files of this machine as parts of a message: pictures and sounds."""

from __future__ import annotations

import base64
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from locallab.errors import ConfigError

Part = Mapping[str, Any]
Content = str | Sequence[Part]

TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".bmp": "image/bmp",
    ".wav": "audio/wav",
    ".mp3": "audio/mpeg",
    ".flac": "audio/flac",
}
"""Media types by the ending of a file's name. The path of a file with another one is text when it is pasted."""
NAMES = {"image_url": "[picture]", "input_audio": "[sound]"}


def data_url(name: str) -> str:
    """Return a file as a data: URL. Raises ConfigError if it cannot be read."""
    path = Path(os.path.expanduser(name))
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    kind = TYPES.get(path.suffix.lower(), "application/octet-stream")
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def part(name: str) -> Part:
    """Return a file as a part of a message, a picture unless its name says that it is a sound. Raises ConfigError."""
    url = data_url(name)
    if url.startswith("data:audio/"):
        data, suffix = url.partition(",")[2], Path(name).suffix[1:].lower()
        return {"type": "input_audio", "input_audio": {"data": data, "format": suffix}}
    return {"type": "image_url", "image_url": {"url": url}}


def content(text: str, parts: Sequence[Part]) -> Content:
    """Return the content of a message with parts ahead of its text."""
    return [*parts, *([{"type": "text", "text": text}] if text else [])] if parts else text


def readable(content: Content | None) -> str:
    """Return the text of a message's content, in which a line stands for each file."""
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(each.get("text", "") if each["type"] == "text" else NAMES[each["type"]] for each in content)


def pasted(text: str) -> tuple[str, list[str]]:
    """Return a line without the paths of pictures and sounds in it, and these: terminals paste a dragged file as its path.

    Only what names a file that exists, by a path with a slash, counts.
    """
    found = [word for word in _words(text) if _is_file(word)]
    for word in found:
        for written in (shlex.quote(word), f'"{word}"', word.replace(" ", "\\ "), word):
            if written in text:
                text = text.replace(written, "", 1)
                break
    return re.sub(" {2,}", " ", text).strip() if found else text, found


def begins_with_file(text: str) -> bool:
    """Return whether a line begins with the path of a picture or sound, as `pasted` finds it."""
    return any(map(_is_file, _words(text)[:1]))


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:  # an apostrophe is no quotation
        return text.split()


def _is_file(word: str) -> bool:
    if "/" not in word or Path(word).suffix.lower() not in TYPES:
        return False
    try:
        return Path(os.path.expanduser(word)).is_file()
    except (OSError, ValueError):
        return False
