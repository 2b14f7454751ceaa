"""Ollama's dialect, the part about models: /api/tags, /api/show, /api/ps, /api/pull, /api/version."""

from __future__ import annotations

import asyncio
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from locallab.errors import InvalidField, UnknownModel
from locallab.pool import Pool
from locallab.server import ollamacards
from locallab.server.endpoint import Endpoint
from locallab.server.fields.body import read
from locallab.server.ollamacards import Cards, Shown, named, untagged
from locallab.server.pulling import Pull, PullStream, finished
from locallab.server.reply import reply
from locallab.server.streaming import LINES
from locallab.settings import ServerSettings
from locallab.version import __version__

VERSION = "0.12.6"
"""The version of Ollama whose API this is; some clients talk to no older one."""


class ShowBody(msgspec.Struct):
    model: Annotated[str | None, Meta(description="a name or an alias of the registry")] = None
    name: Annotated[str | None, Meta(description="an older name of model")] = None


class PullBody(ShowBody):
    stream: Annotated[bool | None, Meta(description="false: answer once it is here, and tell nothing before")] = None


class Version(msgspec.Struct):
    version: Annotated[str, Meta(description="of Ollama, as far as its API goes")]
    locallab: str


class PullStatus(msgspec.Struct):
    """How far the fetch is."""

    status: str
    digest: str | UnsetType = UNSET
    total: Annotated[int | UnsetType, Meta(description="bytes in all, if that is known")] = UNSET
    completed: Annotated[int | UnsetType, Meta(description="bytes that are here")] = UNSET


class OllamaModels:
    """The routes."""

    def __init__(self, pool: Pool, settings: ServerSettings) -> None:
        self._pool = pool
        self._settings = settings

    def routes(self) -> list[BaseRoute]:
        return [
            Endpoint("/api/tags", self.tags, tag="ollama", answer=Cards),
            Endpoint("/api/ps", self.ps, tag="ollama", answer=Cards),
            Endpoint("/api/version", self.version, tag="ollama", answer=Version),
            Endpoint("/api/show", self.show, tag="ollama", method="POST", body=ShowBody, answer=Shown, errors=(404,)),
            Endpoint(
                "/api/pull",
                self.pull,
                tag="ollama",
                method="POST",
                body=PullBody,
                answer=PullStatus,
                streams=True,
                stream_type=LINES,
                errors=(404, 503),
            ),
        ]

    async def tags(self, request: Request) -> Response:
        """The models that are on this machine."""
        return reply(await asyncio.to_thread(ollamacards.on_disk, self._pool))

    async def ps(self, request: Request) -> Response:
        """The models that are loaded, and how long they stay."""
        return reply(await asyncio.to_thread(ollamacards.running, self._pool))

    async def version(self, request: Request) -> Response:
        """Which version of Ollama's API this is."""
        return reply(Version(VERSION, __version__))

    async def show(self, request: Request) -> Response:
        """One model: its template, its context, what it can do."""
        name = _name(await read(request, ShowBody))
        spec = named(self._pool, name, strict=self._settings.strict_models)
        if spec is None:
            raise UnknownModel(name)
        return reply(await asyncio.to_thread(ollamacards.shown, self._pool, spec))

    async def pull(self, request: Request) -> ASGIApp:
        """Fetch a model of the registry, and load nothing."""
        body = await read(request, PullBody)
        spec = self._pool.registry.get(untagged(self._pool.registry, _name(body)))
        digest = await asyncio.to_thread(ollamacards.digest, self._pool, spec)
        pull = Pull(lambda progress: self._pool.pull(spec.id, progress), digest)
        return reply(await finished(pull, request.receive)) if body.stream is False else PullStream(pull)


def _name(body: ShowBody) -> str:
    name = body.model or body.name
    if not name:
        raise InvalidField("model", "is missing")
    return name
