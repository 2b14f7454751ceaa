"""Requests with pictures and sounds: read with what the model takes, their addresses fetched, all off the event loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

from msgspec import Meta
from starlette.requests import Request

from locallab.chat.messages import Message
from locallab.chat.turn import ChatRequest
from locallab.errors import InvalidField
from locallab.media.attachment import Attachment, Kind
from locallab.media.intake import Intake
from locallab.pool import Loaded, Pool
from locallab.server.inference.aside import JSON, RECEIVE, aside
from locallab.server.inference.generation import unless_gone
from locallab.settings import MediaSettings

Result = TypeVar("Result")
Read = Callable[[list[str], Intake | None], Result]
"""Makes something of a request. It adds its notes to the list, and the files go to the intake, None for a model of texts."""

Images = Annotated[
    list[str] | None,
    Meta(description="pictures ahead of the prompt, for models that see: each base64, a data: URL or an address"),
]
"""The field of routes whose prompt is a text."""

REFUSALS: Mapping[Kind, str] = {"image": "this model takes no images", "audio": "this model takes no sound"}


async def read_chat(
    request: Request,
    loaded: Loaded,
    bounds: MediaSettings,
    notes: list[str],
    read: Read[ChatRequest],
    *,
    length: int | None = None,
) -> ChatRequest:
    """Return what `read` makes of the request's body, with its media, and add its notes. `length` is that of the body if it is
    not JSON.

    Raises what `read` does, and ClientGone.
    """
    size = len(await request.body()) if length is None else length
    chat, media = await taken_in(loaded, bounds, size, notes, read)
    return dataclasses.replace(chat, media=media) if media else chat


async def taken_in(
    loaded: Loaded, bounds: MediaSettings, length: int, notes: list[str], read: Read[Result]
) -> tuple[Result, Mapping[str, Attachment]]:
    """Call `read` with an intake for what the model takes besides text; return its result, and the files by their markers.

    `length` is that of the JSON. Where the request names addresses, they are fetched and it is read once more. Raises what
    `read` does, and ClientGone.
    """
    kinds = loaded.engine.info.modalities - {"text"}
    intake = Intake(kinds, bounds) if kinds else None
    own: list[str] = []
    result = await aside(length // JSON, lambda _: read(own, intake))
    if intake is not None and intake.wanted:
        own, intake = [], Intake(kinds, bounds, await _fetch(intake.wanted, bounds))
        result = await aside(length // JSON, lambda _: read(own, intake))
    notes += own
    return result, intake.media if intake else {}


async def read_images(loaded: Loaded, bounds: MediaSettings, raw: Sequence[str] | None) -> tuple[str, Mapping[str, Attachment]]:
    """Return the markers of the pictures in the field `images`, in a row, and the pictures by their markers.

    Raises InvalidField for a model that does not see, UnreadableMedia, MediaTooLarge, ClientGone.
    """
    if not raw:
        return "", {}
    return await taken_in(loaded, bounds, sum(map(len, raw)), [], lambda _, intake: markers(intake, raw))


def markers(intake: Intake | None, images: Sequence[str | bytes]) -> str:
    """Take the pictures of the field `images` into the intake, and return their markers in a row.

    Raises InvalidField for a model that does not see, UnreadableMedia, MediaTooLarge.
    """
    if intake is None or "image" not in intake.kinds:
        raise InvalidField("images", REFUSALS["image"])
    return "".join([intake.take("image", each, f"images[{index}]") for index, each in enumerate(images)])


def shown(messages: Sequence[Message], marks: str) -> list[Message]:
    """Return the messages with markers ahead of what the user has said last. Raises InvalidField if that is nothing."""
    last = next((index for index in reversed(range(len(messages))) if messages[index].role == "user"), None)
    if last is None:
        raise InvalidField("images", "belong to the user's last message, and there is none")
    found = list(messages)
    found[last] = dataclasses.replace(found[last], content=marks + found[last].content)
    return found


def media_room(pool: Pool, bounds: MediaSettings) -> int:
    """Return the bytes by which bodies may be larger while a model is served that sees or hears: two of the largest files, in
    base64."""
    loaded = any(len(each.engine.info.modalities) > 1 for each in pool.loaded)
    known = pool.registry if pool.on_demand != "refuse" else ()
    takes = loaded or any(spec.mmproj is not None and pool.store.path(spec, "mmproj") for spec in known)
    return 2 * bounds.media_bytes * 4 // 3 if takes else 0


async def _fetch(addresses: Sequence[str], bounds: MediaSettings) -> Mapping[str, bytes | str]:
    from locallab.media.address import Fetcher  # imported by the first request that needs it

    receive = RECEIVE.get()
    work: Any = Fetcher().fetch(addresses, bounds)
    return await (unless_gone(work, receive) if receive else work)
