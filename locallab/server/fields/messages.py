"""JSON schemas of messages, for the API's description; `locallab.chat` does the checking."""

from __future__ import annotations

from locallab.chat.messages import ROLES, TEXT_PARTS

TEXT = {"type": ["string", "null"]}
PARTS = [
    {"type": "object", "properties": {"type": {"enum": [kind]}, key: TEXT}, "required": ["type"]}
    for kind, key in TEXT_PARTS.items()
]
BARE_PART = {"type": "object", "properties": {"type": {"enum": [None]}, "text": TEXT}}
PARTS_LIST = {"type": "array", "items": {"anyOf": [{"type": "string"}, *PARTS, BARE_PART]}}
MESSAGES = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "properties": {"role": {"enum": list(ROLES)}, "content": {"anyOf": [TEXT, PARTS_LIST]}, "name": TEXT},
        "required": ["role"],
    },
}
