"""Text to tokens and back, and messages to a prompt: in the shapes of llama.cpp's server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from locallab.chat.control_tokens import pieces
from locallab.chat.turn import plan
from locallab.engine import Engine, Kind
from locallab.errors import InvalidField
from locallab.pool import Loaded, Pool
from locallab.server.dialects.openai.chat import ChatBody
from locallab.server.endpoint import Endpoint
from locallab.server.fields.body import read
from locallab.server.inference.lease import lease
from locallab.server.inference.prompt import LONG
from locallab.server.reply import noted, reply
from locallab.settings import ServerSettings

Model = Annotated[str | None, Meta(description="the model whose tokens they are; an unknown name is the current one")]
IDS = {"items": {"minimum": 0}}
CONTENT = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]}}]}


class TokenizeBody(msgspec.Struct, kw_only=True):
    content: Annotated[Any, Meta(description="a text, or texts and token ids in a row", extra_json_schema=CONTENT)]
    model: Model = None
    add_special: Annotated[bool | None, Meta(description="with what the model wants around a text")] = None
    parse_special: Annotated[bool | None, Meta(description="false: markup in the text is text; default: true")] = None
    with_pieces: Annotated[bool | None, Meta(description="tell what each token stands for")] = None


class Piece(msgspec.Struct):
    id: int
    piece: Annotated[str | list[int], Meta(description="the text, or its bytes where they are no whole characters")]


class Tokenized(msgspec.Struct):
    tokens: Annotated[list[int | Piece], Meta(description="ids; with `with_pieces` objects with the id and its piece")]
    count: Annotated[int, Meta(description="how many there are")]


class DetokenizeBody(msgspec.Struct, kw_only=True):
    tokens: Annotated[list[int], Meta(description="token ids", extra_json_schema=IDS)]
    model: Model = None


class Detokenized(msgspec.Struct):
    content: Annotated[str, Meta(description="the text, markup included")]


class Prompt(msgspec.Struct):
    prompt: Annotated[str, Meta(description="what the model reads, markup included")]


class TokenRoutes:
    """The routes."""

    def __init__(self, pool: Pool, settings: ServerSettings) -> None:
        self._pool = pool
        self._settings = settings

    def routes(self) -> list[BaseRoute]:
        common: dict[str, Any] = {"tag": "tokens", "method": "POST", "errors": (404, 503)}
        return [
            Endpoint("/tokenize", self.tokenize, body=TokenizeBody, answer=Tokenized, **common),
            Endpoint("/detokenize", self.detokenize, body=DetokenizeBody, answer=Detokenized, **common),
            Endpoint("/apply-template", self.apply_template, body=ChatBody, answer=Prompt, **common),
        ]

    async def tokenize(self, request: Request) -> Response:
        """Cut a text into tokens, or count them."""
        body = await read(request, TokenizeBody)
        parts = _parts(body.content)
        loaded = await self._lease(request, body.model, None)
        arguments = (loaded.engine, parts, bool(body.add_special), body.parse_special is not False)
        long = sum(len(part) for part in parts if isinstance(part, str)) >= LONG
        tokens = await asyncio.to_thread(_tokenized, *arguments) if long else _tokenized(*arguments)
        listed = _pieces(loaded.engine, tokens) if body.with_pieces else tokens
        return reply({"tokens": listed, "count": len(tokens)})

    async def detokenize(self, request: Request) -> Response:
        """Put tokens together to a text."""
        body = await read(request, DetokenizeBody)
        loaded = await self._lease(request, body.model, None)
        return reply(Detokenized(loaded.engine.detokenize(body.tokens)))

    async def apply_template(self, request: Request) -> ASGIApp:
        """Write a conversation as the model reads it, without answering it.

        Takes what /v1/chat/completions takes: tools, a format and wishes about reasoning are part of the prompt too.
        """
        body, notes = await read(request, ChatBody), list[str]()
        loaded = await self._lease(request, body.model, "text")
        turn = plan(body.request(notes), loaded.template, loaded.engine.info.control_tokens)
        return noted(reply(Prompt("".join(pieces(turn.prompt)))), notes)

    async def _lease(self, request: Request, model: str | None, kind: Kind | None) -> Loaded:
        return await lease(request, self._pool, model, strict=self._settings.strict_models, kind=kind)


def _parts(raw: Any) -> Sequence[str | int]:
    if isinstance(raw, str):
        return [raw]
    if isinstance(raw, list) and all(isinstance(part, str) or type(part) is int for part in raw):
        return raw
    raise InvalidField("content", "is missing" if raw is None else "expected a string, or a list of strings and token ids")


def _tokenized(engine: Engine, parts: Sequence[str | int], add_special: bool, parse_special: bool) -> list[int]:
    """What the model wants around a text goes around the first one only."""
    tokens: list[int] = []
    for index, part in enumerate(parts):
        special = add_special and index == 0
        tokens += engine.tokenize(part, add_special=special, parse_special=parse_special) if isinstance(part, str) else [part]
    return tokens


def _pieces(engine: Engine, tokens: list[int]) -> list[Piece]:
    return [Piece(token, _readable(piece)) for token, piece in zip(tokens, engine.pieces(tokens), strict=True)]


def _readable(piece: bytes) -> str | list[int]:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)
