"""Tokenizing, detokenizing, and rendering of messages, in the shapes of llama.cpp's and vLLM's servers."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from locallab.chat.control_tokens import pieces
from locallab.engine import Engine, Kind
from locallab.engine.request import SamplingParams
from locallab.errors import InvalidField
from locallab.media.marker import named
from locallab.pool import Loaded, Pool
from locallab.server.dialects.openai.chat import ChatBody
from locallab.server.endpoint import Endpoint
from locallab.server.fields.body import read, whole
from locallab.server.fields.messages import MESSAGES
from locallab.server.inference.aside import ITEM, Stopped, aside
from locallab.server.inference.lease import lease
from locallab.server.inference.media import read_chat
from locallab.server.inference.prompt import plan_chat, prepare_chat, rendered
from locallab.server.reply import noted, reply
from locallab.settings import ServerSettings

Model = Annotated[str | None, Meta(description="name of the model; an unknown name is the current one")]
MEDIA = "<__media__>"
"""What stands for a picture or a sound in a rendered prompt, as in llama.cpp."""
IDS = {"items": {"minimum": 0}}
CONTENT = {
    "anyOf": [{"type": ["string", "null"]}, {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]}}]
}


class TokenizeBody(msgspec.Struct, kw_only=True):
    content: Annotated[Any, Meta(description="a text, or a list of texts and token ids", extra_json_schema=CONTENT)] = None
    prompt: Annotated[
        Any, Meta(description="the same, for an answer in the shape of vLLM's server", extra_json_schema=CONTENT)
    ] = None
    messages: Annotated[
        Any,
        Meta(
            description="a conversation, for an answer in that shape; with tools and the other fields of /v1/chat/completions",
            extra_json_schema={"anyOf": [MESSAGES, {"type": "null"}]},
        ),
    ] = None
    model: Model = None
    add_special: Annotated[bool | None, Meta(description="add the special tokens the model puts around a text")] = None
    parse_special: Annotated[bool | None, Meta(description="false: markup in the text is plain text; default: true")] = None
    with_pieces: Annotated[bool | None, Meta(description="return the piece of each token")] = None
    add_special_tokens: Annotated[
        bool | None, Meta(description="the same as add_special, for prompt and messages; default: true")
    ] = None
    return_token_strs: Annotated[bool | None, Meta(description="return the text of each token of prompt and messages")] = None

    def check(self) -> None:
        """Raise InvalidField for several of content, prompt and messages."""
        given = [name for name in ("content", "prompt", "messages") if getattr(self, name) is not None]
        if len(given) > 1:
            raise InvalidField(given[1], f"cannot be combined with {given[0]}")

    @property
    def parts(self) -> list[str | int]:
        """The texts and token ids of content or prompt. Raises InvalidField."""
        field = "content" if self.prompt is None else "prompt"
        raw = whole(getattr(self, field))
        parts = [raw] if isinstance(raw, str) else raw
        if not isinstance(parts, list) or not all(isinstance(part, str) or type(part) is int for part in parts):
            reason = "is missing" if raw is None else "expected a string, or a list of strings and token ids"
            raise InvalidField(field, reason)
        return parts


class Piece(msgspec.Struct):
    id: int
    piece: Annotated[str | list[int], Meta(description="the text, or its bytes where they are not UTF-8")]


class Tokenized(msgspec.Struct):
    tokens: Annotated[list[int | Piece], Meta(description="ids; with `with_pieces`, objects with id and piece")]
    count: Annotated[int, Meta(description="number of tokens")]
    max_model_len: Annotated[int | UnsetType, Meta(description="for prompt and messages: tokens one request may use")] = UNSET
    token_strs: list[str] | UnsetType | None = UNSET


class DetokenizeBody(msgspec.Struct, kw_only=True):
    tokens: Annotated[list[int], Meta(description="token ids", extra_json_schema=IDS)]
    model: Model = None


class Detokenized(msgspec.Struct):
    content: Annotated[str, Meta(description="the text, markup included")]
    prompt: Annotated[str, Meta(description="the same, under vLLM's name")]


class Prompt(msgspec.Struct):
    prompt: Annotated[str, Meta(description="the prompt as the model reads it, markup included")]


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

    async def tokenize(self, request: Request) -> ASGIApp:
        """Tokenize a text or a conversation, or count its tokens."""
        body = await read(request, TokenizeBody)
        body.check()
        if body.messages is not None:
            return await self._conversation(request, body)
        parts = body.parts
        loaded = await self._lease(request, body.model, None)
        special = bool(body.add_special) if body.prompt is None else body.add_special_tokens is not False
        work = functools.partial(
            _tokenized, loaded.engine, parts, add_special=special, parse_special=body.parse_special is not False
        )
        length = sum(len(part) + ITEM for part in parts if isinstance(part, str)) + len(parts)
        tokens = await aside(length, work)
        if body.prompt is not None:
            return reply(await _counted(loaded, tokens, body))
        if not body.with_pieces:
            return reply({"tokens": tokens, "count": len(tokens)})
        pieces = await aside(ITEM * len(tokens), lambda _: _with_pieces(loaded.engine, tokens))
        return reply({"tokens": pieces, "count": len(tokens)})

    async def detokenize(self, request: Request) -> Response:
        """Turn tokens into text."""
        body = await read(request, DetokenizeBody)
        loaded = await self._lease(request, body.model, None)
        text = await aside(ITEM * len(body.tokens), lambda _: loaded.engine.detokenize(body.tokens))
        return reply(Detokenized(text, text))

    async def apply_template(self, request: Request) -> ASGIApp:
        """Render a conversation as the model reads it, without answering it.

        Takes the body of /v1/chat/completions: tools, format and reasoning options are part of the prompt too.
        """
        body, notes = await read(request, ChatBody), list[str]()
        loaded = await self._lease(request, body.model, "text")
        chat = await read_chat(request, loaded, self._settings, notes, body.request)
        turn = await rendered(loaded.template, chat, plan_chat, loaded, chat)
        return noted(reply(Prompt(named("".join(pieces(turn.prompt)), MEDIA))), notes)

    async def _conversation(self, request: Request, body: TokenizeBody) -> ASGIApp:
        """Tokenize a conversation as a chat reads it."""
        chat_body, notes = await read(request, ChatBody), list[str]()
        loaded = await self._lease(request, body.model, "text")
        chat = await read_chat(request, loaded, self._settings, notes, chat_body.request)
        prepared = await prepare_chat(loaded, chat, SamplingParams(), fits=False)
        tokens = list(prepared.jobs[0][0])
        if body.add_special_tokens is False:
            rendered = "".join(pieces(prepared.turn.prompt))
            tokens = tokens[int(loaded.engine.info.add_bos and not rendered.startswith(loaded.engine.info.bos)) :]
        return noted(reply(await _counted(loaded, tokens, body)), notes)

    async def _lease(self, request: Request, model: str | None, kind: Kind | None) -> Loaded:
        return await lease(request, self._pool, model, strict=self._settings.strict_models, kind=kind)


def _tokenized(
    engine: Engine, parts: Sequence[str | int], stopped: Stopped, *, add_special: bool, parse_special: bool
) -> list[int]:
    """Special tokens go around the first text only."""
    tokens: list[int] = []
    for index, part in enumerate(parts):
        if isinstance(part, str):
            special = add_special and index == 0
            tokens += engine.tokenize(part, add_special=special, parse_special=parse_special, stopped=stopped)
        else:
            tokens.append(part)
    return tokens


async def _counted(loaded: Loaded, tokens: list[int], body: TokenizeBody) -> dict[str, Any]:
    """Return an answer in the shape of vLLM's server."""
    strings: list[str] | None = None
    if body.return_token_strs:
        texts = [token for token in tokens if token >= 0]  # others are those of pictures and sounds
        found = iter(await aside(ITEM * len(texts), lambda _: loaded.engine.pieces(texts)))
        strings = [next(found).decode("utf-8", "replace") if token >= 0 else "" for token in tokens]
    return {"count": len(tokens), "max_model_len": loaded.engine.info.context, "tokens": tokens, "token_strs": strings}


def _with_pieces(engine: Engine, tokens: Sequence[int]) -> msgspec.Raw:
    """Return the tokens with their pieces as JSON, each token's written once."""
    kinds = list(dict.fromkeys(tokens))
    named = zip(kinds, engine.pieces(kinds), strict=True)
    written = {token: msgspec.json.encode(Piece(token, _readable(piece))) for token, piece in named}
    return msgspec.Raw(b"[%b]" % b",".join([written[token] for token in tokens]))


def _readable(piece: bytes) -> str | list[int]:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)
