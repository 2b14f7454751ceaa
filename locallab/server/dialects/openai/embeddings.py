"""Embeddings: /v1/embeddings, in OpenAI's shape, and what vLLM's and llama.cpp's servers take there besides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from locallab.chat import normalize
from locallab.errors import InvalidField
from locallab.pool import Pool
from locallab.server.dialects.answer_fields import ModelName
from locallab.server.dialects.openai.fields import EMBEDDING
from locallab.server.endpoint import Endpoint
from locallab.server.fields.body import read
from locallab.server.fields.messages import MESSAGES
from locallab.server.fields.table import Others
from locallab.server.inference.embedding import (
    NAME,
    Dimensions,
    Format,
    check_dimensions,
    conversation_tokens,
    first_components,
    json_rows,
    scaled,
    vectors,
)
from locallab.server.inference.lease import lease
from locallab.server.inference.prompt import PROMPTS, Prompt, prompts
from locallab.server.reply import noted, reply
from locallab.settings import ServerSettings

INPUT = {"anyOf": [*PROMPTS["anyOf"], {"description": "objects whose content is a list of text parts"}, {"type": "null"}]}
TALK = {"anyOf": [MESSAGES, {"type": "null"}]}


class EmbeddingsBody(msgspec.Struct, kw_only=True):
    input: Annotated[Any, Meta(description="a text, token ids, both in a row, or a list of those", extra_json_schema=INPUT)] = (
        None
    )
    content: Annotated[
        Any, Meta(description="the same, for an answer in the shape of llama.cpp's server", extra_json_schema=INPUT)
    ] = None
    messages: Annotated[
        Any, Meta(description="a conversation to embed as one text, through the model's chat template", extra_json_schema=TALK)
    ] = None
    model: Annotated[str | None, Meta(description=NAME)] = None
    encoding_format: Annotated[Format | None, Meta(description="base64: little-endian 32-bit floats")] = None
    dimensions: Dimensions = None
    embd_normalize: Annotated[
        int | None,
        Meta(description="norm by which vectors are scaled; 0: the largest component is 32760; 1: sum; 2: length; p: p-norm"),
    ] = None

    OTHERS: ClassVar[Others] = EMBEDDING

    @property
    def prompts(self) -> list[Prompt] | None:
        """The texts to embed; None for a conversation. Raises InvalidField."""
        given = [name for name in ("input", "content", "messages") if getattr(self, name) is not None]
        if len(given) > 1:
            raise InvalidField(given[1], f"cannot be combined with {given[0]}")
        if given == ["messages"]:
            return None
        name = given[0] if given else "input"
        return prompts(_texts(getattr(self, name), name), name)


def _texts(raw: Any, field: str) -> Any:
    """Return the raw prompts with llama.cpp's objects of text parts as texts. Raises InvalidField for other parts."""
    if isinstance(raw, list):
        return [_texts(each, field) for each in raw]
    if not isinstance(raw, Mapping) or not isinstance(raw.get("content"), list):
        return raw
    found = [part.get("text") for part in raw["content"] if isinstance(part, Mapping) and part.get("type") == "text"]
    texts = [text for text in found if isinstance(text, str)]
    if len(texts) < len(raw["content"]):
        raise InvalidField(field, "only parts of the type text can be embedded")
    return "".join(texts)


class Vector(msgspec.Struct):
    object: Literal["embedding"]
    index: Annotated[int, Meta(description="index of its text in the input")]
    embedding: Annotated[list[float] | str, Meta(description="normalized to length 1")]


class InputTokens(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class VectorList(msgspec.Struct):
    """The answer of /v1/embeddings."""

    object: Literal["list"]
    data: list[Vector]
    model: ModelName
    usage: InputTokens


class LlamaVector(msgspec.Struct):
    """A vector in the shape of llama.cpp's server."""

    index: int
    embedding: Annotated[list[list[float] | str], Meta(description="one vector: that of the whole text")]


class Embeddings:
    """The routes."""

    def __init__(self, pool: Pool, settings: ServerSettings) -> None:
        self._pool = pool
        self._settings = settings

    def routes(self) -> list[BaseRoute]:
        return [
            Endpoint(
                "/v1/embeddings",
                self.embeddings,
                tag="openai",
                method="POST",
                body=EmbeddingsBody,
                answer=VectorList | list[LlamaVector],
                errors=(404, 503),
            ),
        ]

    async def embeddings(self, request: Request) -> ASGIApp:
        """Embed texts.

        Vectors are normalized to length 1. Token ids must be those of the model itself.
        """
        body = await read(request, EmbeddingsBody)
        return await self.embed(request, body, listed=body.content is not None)

    async def embed(self, request: Request, body: EmbeddingsBody, *, listed: bool) -> ASGIApp:
        """Embed what the body has; `listed`: answer in the shape of llama.cpp's server."""
        texts, notes = body.prompts, list[str]()
        loaded = await lease(request, self._pool, body.model, strict=self._settings.strict_models, kind="embedding")
        check_dimensions(loaded, body.dimensions)
        if texts is None:
            texts = [[*await conversation_tokens(loaded, normalize(body.messages, notes), notes)]]
        computed = await vectors(loaded, texts, request)
        rescaled = scaled(first_components(computed.rows, body.dimensions), body.embd_normalize)
        rows = await json_rows(rescaled, body.encoding_format or "float")
        if listed:
            return noted(reply([{"index": index, "embedding": [row]} for index, row in enumerate(rows)]), notes)
        data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)]
        usage = {"prompt_tokens": computed.tokens, "total_tokens": computed.tokens}
        return noted(reply({"object": "list", "data": data, "model": body.model or loaded.spec.id, "usage": usage}), notes)
