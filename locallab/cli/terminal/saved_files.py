"""Files of a conversation: the one that /save writes and /load reads, and the one of the tools."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

import msgspec

from locallab import private_files
from locallab.cli.terminal.conversation import Talk
from locallab.errors import ConfigError

LONGEST = 256 << 20
"""Bytes of a file that is loaded; pictures are part of it."""

FORM = "a conversation is what /save FILE.json writes: a JSON list of messages, each with its role and content"
TOOLS = 'tools are a JSON list of objects such as {"type": "function", "function": {"name": "f", "parameters": {...}}}'


class _Part(msgspec.Struct):
    type: Literal["text", "image_url", "input_audio"]
    text: str = ""


class _Function(msgspec.Struct):
    name: str
    arguments: str


class _Call(msgspec.Struct):
    id: str
    function: _Function


class _Message(msgspec.Struct):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[_Part] | None = None
    tool_calls: list[_Call] | None = None


class _Named(msgspec.Struct):
    name: str


class _Tool(msgspec.Struct):
    function: _Named


def save(talk: Talk, name: str) -> Path:
    """Write the conversation to a new file, as JSON if its name ends in .json, else as Markdown. Raises ConfigError."""
    path = Path(os.path.expanduser(name))
    as_json = path.suffix == ".json"
    text = json.dumps(talk.conversation, ensure_ascii=False, indent=2) + "\n" if as_json else talk.markdown()
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except (OSError, ValueError) as error:
        raise _unusable(path, error) from None
    return path


def load(talk: Talk, name: str) -> int:
    """Go on with the conversation in a file, its system message included; return the number of messages. Raises ConfigError."""
    messages = _read(name, list[_Message], FORM)
    first = messages[0] if messages else {}
    has_system = first.get("role") == "system" and isinstance(first.get("content"), str)
    talk.system = first["content"] if has_system else ""
    talk.restart(messages[has_system:])
    return len(messages)


def tools(name: str) -> list[Any]:
    """Return the tools in a file. Raises ConfigError."""
    return _read(name, list[_Tool], TOOLS)


def _read(name: str, kind: Any, form: str) -> list[Any]:
    path = Path(os.path.expanduser(name))
    try:
        found = msgspec.json.decode(private_files.read_regular(path, LONGEST))
        msgspec.convert(found, kind)
    except OSError as error:
        raise _unusable(path, error) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}; {form}") from None
    return found  # type: ignore[no-any-return]


def _unusable(path: Path, error: Exception) -> ConfigError:
    return ConfigError(f"{path}: {getattr(error, 'strerror', None) or error}")
