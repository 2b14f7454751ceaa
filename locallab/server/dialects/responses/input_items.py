"""The items of requests as they are stored, and the pages in which they are listed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from locallab.errors import InvalidField
from locallab.server.dialects.responses.items import new_id
from locallab.server.dialects.responses.request import item_type

PREFIXES = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
}
MOST = 100


class InputItems(msgspec.Struct):
    """A page of the input of a response: the items of its request and of the conversation that it continues."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: Annotated[bool, Meta(description="whether there are items after the last one")]


def stored(item: Any) -> Any:
    """Return an item of a request with its type, an id and a status, and a message with its content in parts."""
    if not isinstance(item, Mapping):
        return item
    kind = item_type(item)
    named = {**item, "type": kind, "id": item.get("id") or new_id(PREFIXES.get(str(kind), "item"))}
    if kind == "message":
        named["content"] = _parts(item.get("role"), item.get("content"))
    return named if kind == "reasoning" else {**named, "status": item.get("status") or "completed"}


def page(items: Sequence[Any], query: Mapping[str, str]) -> InputItems:
    """Return the page that `limit`, `order` and `after` ask for; `items` are the oldest first. Raises InvalidField."""
    listed = [item for item in items if isinstance(item, dict)]
    order, limit, after = query.get("order", "desc"), query.get("limit", "20"), query.get("after")
    if order not in ("asc", "desc"):
        raise InvalidField("order", f"must be asc or desc, got {order!r}")
    if not (limit.isdecimal() and 1 <= int(limit[:9]) <= MOST):
        raise InvalidField("limit", f"must be a whole number from 1 to {MOST}, got {limit[:20]!r}")
    if order == "desc":
        listed.reverse()
    if after is not None:
        at = next((index for index, item in enumerate(listed) if item.get("id") == after), None)
        if at is None:
            raise InvalidField("after", "is no id of an item of this response")
        listed = listed[at + 1 :]
    data = listed[: int(limit)]
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return InputItems("list", data, first, last, len(listed) > len(data))


def _parts(role: Any, content: Any) -> Any:
    """Return a message's content as a list of parts, with the names that Responses have for texts."""
    empty = {"type": "output_text", "text": "", "annotations": []} if role == "assistant" else {"type": "input_text"}
    if isinstance(content, str):
        return [{**empty, "text": content}]
    if not isinstance(content, list):
        return content or []
    parts = [{"text": part} if isinstance(part, str) else part for part in content]
    return [
        {**empty, **part, "type": empty["type"]}
        if isinstance(part, Mapping) and part.get("type") in ("text", None) and "text" in part
        else part
        for part in parts
    ]
