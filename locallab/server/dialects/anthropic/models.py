"""Anthropic's list of models, at the paths of OpenAI's: the header anthropic-version tells which is wanted."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import Scope

from locallab.errors import InvalidField, ModelNotLoaded
from locallab.pool import Pool
from locallab.server.dialects.openai.models import ModelCard, model_cards
from locallab.server.endpoint import Endpoint
from locallab.server.reply import reply

VERSION = b"anthropic-version"
PAGE, MOST = 20, 1000
"""Models in an answer: by default, and at most."""


class Support(msgspec.Struct):
    supported: bool


class Capabilities(msgspec.Struct):
    """What messages may have in them besides text."""

    image_input: Support
    pdf_input: Support


class Model(msgspec.Struct, tag="model", tag_field="type"):
    """A model that requests may name."""

    id: str
    display_name: str
    created_at: str
    capabilities: Capabilities


class ModelPage(msgspec.Struct):
    """Some of the models, in the order of OpenAI's list; the ids are those of the first and the last."""

    data: list[Model]
    has_more: bool
    first_id: str | None
    last_id: str | None


class Versioned(Endpoint):
    """A route for requests with the header anthropic-version."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] != "http" or all(name != VERSION for name, _ in scope["headers"]):
            return Match.NONE, {}
        return super().matches(scope)


class AnthropicModels:
    """The routes. They stand ahead of OpenAI's, which have the same paths."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def routes(self) -> list[BaseRoute]:
        return [
            Versioned("/v1/models", self.models, tag="anthropic", answer=ModelPage),
            Versioned("/v1/models/{id:path}", self.model, tag="anthropic", answer=Model, errors=(404,)),
        ]

    async def models(self, request: Request) -> Response:
        """List the models in Anthropic's shape.

        With the header anthropic-version: in Anthropic's shape, in pages as the parameters limit, after_id and before_id say.
        """
        limit, found = _limit(request), [_model(card) for card in model_cards(self._pool)]
        after, before = request.query_params.get("after_id"), request.query_params.get("before_id")
        begin = _index(found, "after_id", after) + 1 if after else 0
        end = _index(found, "before_id", before) if before else len(found)
        first = max(begin, end - limit) if before and not after else begin
        page = found[first : min(end, first + limit)]
        more = first > begin or first + len(page) < end
        return reply(ModelPage(page, more, page[0].id if page else None, page[-1].id if page else None))

    async def model(self, request: Request) -> Response:
        """Show one model in Anthropic's shape.

        With the header anthropic-version: in Anthropic's shape.
        """
        spec = self._pool.registry.get(request.path_params["id"])
        card = next((card for card in model_cards(self._pool) if card.id == spec.id), None)
        if card is None:
            raise ModelNotLoaded(spec.id)
        return reply(_model(card))


def _model(card: ModelCard) -> Model:
    created = datetime.datetime.fromtimestamp(card.created, datetime.timezone.utc)
    takes = Capabilities(image_input=Support("image" in card.modalities), pdf_input=Support(False))
    return Model(card.id, card.name, created.strftime("%Y-%m-%dT%H:%M:%SZ"), takes)


def _limit(request: Request) -> int:
    text = request.query_params.get("limit", str(PAGE))
    if not text.isdecimal() or not 1 <= int(text[:9]) <= MOST:
        raise InvalidField("limit", f"must be a number from 1 to {MOST}, got {text[:20]!r}")
    return int(text)


def _index(models: Sequence[Model], field: str, model_id: str) -> int:
    for index, each in enumerate(models):
        if each.id == model_id:
            return index
    raise InvalidField(field, f"no model {model_id[:100]!r} is in the list")
