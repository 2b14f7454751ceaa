"""LocalLab's usage route: /api/v1/usage."""

from __future__ import annotations

import asyncio
from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from locallab.errors import InvalidField
from locallab.server.endpoint import Endpoint
from locallab.server.reply import reply
from locallab.server.roles import is_admin
from locallab.server.usage import DAYS, UsageLog

Count = Annotated[int, Meta(ge=0)]


class UsageRow(msgspec.Struct):
    """What the requests of one key took of one model on one day."""

    day: Annotated[str, Meta(description="in UTC, such as 2026-01-31")]
    key: Annotated[str | None, Meta(description="id of the key; null: requests without one")]
    name: Annotated[str | None, Meta(description="name of the key when it was used last")]
    model: str
    requests: Count
    prompt_tokens: Annotated[Count, Meta(description="tokens of prompts, cached ones too")]
    cached_tokens: Annotated[Count, Meta(description="tokens of prompts that were in the prefix cache")]
    completion_tokens: Count


class UsageAnswer(msgspec.Struct):
    """Usage by day, key and model, the oldest day first."""

    days: Annotated[int, Meta(description="how many days are looked back, today being one")]
    usage: list[UsageRow]


class UsageRoute:
    """The route."""

    def __init__(self, usage: UsageLog) -> None:
        self._usage = usage

    def routes(self) -> list[BaseRoute]:
        return [Endpoint("/api/v1/usage", self.usage, tag="system", answer=UsageAnswer, errors=(400,))]

    async def usage(self, request: Request) -> Response:
        """Show the usage of the key that asks, by day and model; to one with the role admin, that of all.

        The query `days` says how many days to look back, 30 if it is left out. Requests count when they have ended, cancelled
        ones with the tokens that they took.
        """
        days = _days(request)
        key = request.state.key
        counts = await asyncio.to_thread(self._usage.report, days, None if is_admin(request) else key.id)
        rows = [
            UsageRow(
                slot.day,
                slot.key or None,
                spent.name or None,
                slot.model,
                spent.requests,
                spent.prompt_tokens,
                spent.cached_tokens,
                spent.completion_tokens,
            )
            for slot, spent in counts.items()
        ]
        return reply(UsageAnswer(days, rows))


def _days(request: Request) -> int:
    text = request.query_params.get("days", str(DAYS))
    if not (text.isascii() and text.isdigit() and len(text) < 6 and int(text)):
        raise InvalidField("days", f"must be a whole number from 1 to 99999, got {text[:20]!r}")
    return int(text)
