"""LocalLab's replay route: /api/v1/replay sends this server what another client does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import httpx
import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from locallab.errors import InvalidField
from locallab.keys import Keyring
from locallab.replay import EXCHANGES, Exchange, Replayed, replayed
from locallab.server.endpoint import Endpoint
from locallab.server.errors import detail_body, report
from locallab.server.fields.body import read
from locallab.server.inference.generation import unless_gone
from locallab.server.reply import reply
from locallab.server.streaming import LINES, ByteStream, line

CLIENTS = tuple(dict.fromkeys(each.client for each in EXCHANGES))


class ReplayBody(msgspec.Struct):
    client: Annotated[str, Meta(description=f"one of {', '.join(CLIENTS)}", extra_json_schema={"enum": list(CLIENTS)})]
    model: Annotated[str | None, Meta(description="the model it uses; null: the first one of /v1/models")] = None
    stream: Annotated[bool | None, Meta(description="false: respond once, when all requests have been answered")] = None


class ReplayOutcome(msgspec.Struct):
    """One request of the client, and whether it could live with the answer."""

    doing: Annotated[str, Meta(description="what the client does with it")]
    status: Literal["ok", "fail", "skip"]
    reason: Annotated[str | None, Meta(description="why it failed or was skipped")]
    method: str
    path: str
    body: Annotated[Any, Meta(description="what was sent; a text beyond the model's context is described")]
    http_status: int | None
    answer: Annotated[str | None, Meta(description="the beginning of what came back")]


class ReplayOutcomes(msgspec.Struct):
    outcomes: list[ReplayOutcome]


class Replay:
    """The route."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring
        self._one = asyncio.Semaphore(1)

    def routes(self) -> list[BaseRoute]:
        return [
            Endpoint(
                "/api/v1/replay",
                self.replay,
                tag="system",
                method="POST",
                body=ReplayBody,
                answer=ReplayOutcomes,
                streams=True,
                stream_type=LINES,
            )
        ]

    async def replay(self, request: Request) -> ASGIApp:
        """Send this server the requests of another client, and check the answers as that client would.

        The requests have the key and the address of the one that asks, so that its role and its limits apply, and count as
        its usage. One replay runs at a time, others wait. A client that disconnects ends its own.
        """
        body = await read(request, ReplayBody)
        exchanges = [each for each in EXCHANGES if each.client == body.client]
        if not exchanges:
            raise InvalidField("client", f"must be one of {', '.join(CLIENTS)}")
        outcomes = self._outcomes(request, exchanges, body.model)
        if body.stream is False:
            return reply(ReplayOutcomes(await unless_gone(_all(outcomes), request.receive)))
        return ByteStream(_lines(outcomes), LINES, ping=0)

    async def _outcomes(self, request: Request, exchanges: list[Exchange], model: str | None) -> AsyncIterator[ReplayOutcome]:
        client = (request.client.host, request.client.port) if request.client else ("127.0.0.1", 0)
        transport = httpx.ASGITransport(request.app, raise_app_exceptions=False, client=client)
        own = f"{request.url.scheme}://{request.url.netloc}"
        key = next((each for each in request.state.presented if self._keyring.find([each])), None)
        async with self._one, httpx.AsyncClient(transport=transport, base_url=own) as http:
            async for each in replayed(http, key, exchanges, model):
                yield _shown(each)


def _shown(each: Replayed) -> ReplayOutcome:
    found = each.outcome
    return ReplayOutcome(
        found.doing, found.status, found.reason, each.method, each.path, each.body, each.http_status, each.answer
    )


async def _all(outcomes: AsyncIterator[ReplayOutcome]) -> list[ReplayOutcome]:
    return [each async for each in outcomes]


async def _lines(outcomes: AsyncIterator[ReplayOutcome]) -> AsyncIterator[bytes]:
    """Yield a line for each outcome; an error is the last one."""
    try:
        async for each in outcomes:
            yield line(each)
    except Exception as error:
        report(error, "POST /api/v1/replay")
        yield line(detail_body(error))
