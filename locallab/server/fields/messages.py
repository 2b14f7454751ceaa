"""JSON schemas of messages, for the API's description; `locallab.chat` does the checking."""

from __future__ import annotations

from locallab.chat.blocks import TEXT_PARTS
from locallab.chat.messages import ROLES

TEXT = {"type": ["string", "null"]}
PARTS = [
    {"type": "object", "properties": {"type": {"enum": [kind]}, key: TEXT}, "required": ["type"]}
    for kind, key in TEXT_PARTS.items()
]
BARE_PART = {"type": "object", "properties": {"type": {"enum": [None]}, "text": TEXT}}
PARTS_LIST = {"type": "array", "items": {"anyOf": [{"type": "string"}, *PARTS, BARE_PART]}}
MESSAGE = {
    "type": "object",
    "properties": {"role": {"enum": list(ROLES)}, "content": {"anyOf": [TEXT, PARTS_LIST]}, "name": TEXT},
    "required": ["role"],
}
SAID_BEFORE = {
    "type": "object",
    "properties": {"role": {"enum": [role for role in ROLES if role != "user"]}},
    "required": ["role"],
    "description": "messages that are not the user's may have any other content: it becomes text",
}
MESSAGES = {"type": "array", "minItems": 1, "items": {"anyOf": [MESSAGE, SAID_BEFORE]}}
EARLIER = {"anyOf": [MESSAGE, {"description": "anything else becomes text"}]}
"""A message of a history whose newest message is elsewhere."""
