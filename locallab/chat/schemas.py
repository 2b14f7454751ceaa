"""What the tasks answer that can answer in JSON, as JSON schemas. The properties stand in the order in which a model writes
them: the reasons come before what follows from them. Every length is bounded, so that a small model comes to an end."""

from __future__ import annotations

from typing import Any

SEVERITIES = ("critical", "high", "medium", "low", "info")

MOST_FINDINGS = 10


def debug(characters: int) -> dict[str, Any]:
    """Of code of so many characters: the corrected code may be twice as long, and a little more."""
    return _object(diagnosis=_text(600), fix=_text(300), code=_text(2 * characters + 500))


def audit(lines: int) -> dict[str, Any]:
    """Of code of so many lines: no finding names another."""
    line = {"type": ["integer", "null"], "minimum": 1, "maximum": lines}
    finding = _object(title=_text(100), detail=_text(300), line=line, severity={"enum": list(SEVERITIES)}, fix=_text(300))
    return _object(findings={"type": "array", "items": finding, "maxItems": MOST_FINDINGS}, summary=_text(300))


def _text(longest: int) -> dict[str, Any]:
    return {"type": "string", "maxLength": longest}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
