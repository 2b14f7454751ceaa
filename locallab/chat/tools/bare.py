"""Arguments written bare, not as JSON: what a tool's schema says about them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from locallab.chat.tools.format import Tool


def properties(tool: Tool | None) -> Mapping[str, Any]:
    """The schemas of a tool's arguments by name."""
    found = tool.parameters.get("properties") if tool else None
    return found if isinstance(found, Mapping) else {}


def is_required(tool: Tool, key: str) -> bool:
    required = tool.parameters.get("required")
    return isinstance(required, list) and key in required


def is_text(schema: object) -> bool:
    """Whether a value of this schema is text; everything else is written as JSON."""
    if not isinstance(schema, Mapping):
        return False
    kind = schema.get("type")
    return kind == "string" or (isinstance(kind, list) and "string" in kind) or (kind is None and "enum" in schema)


def as_json(raw: str) -> str:
    """A value that should be JSON, as JSON: as it stands if it is, as text if it is not."""
    try:
        json.loads(raw)
    except ValueError:
        return json.dumps(raw, ensure_ascii=False)
    return raw.strip()
