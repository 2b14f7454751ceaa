"""OpenAI's Responses: /v1/responses."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from locallab.engine.request import SamplingParams
from locallab.errors import ContextLengthExceeded, InvalidField, RequestError, UnknownResponse
from locallab.pool import Pool
from locallab.server.dialects.answer_fields import PromptTokenCount
from locallab.server.dialects.dialect import Dialect, Services
from locallab.server.dialects.openai.errors import OpenAIProblem, openai_body
from locallab.server.dialects.responses.input_items import InputItems, page, stored
from locallab.server.dialects.responses.kept import KeptResponses
from locallab.server.dialects.responses.request import ResponsesBody, chat_request, echo, item_type
from locallab.server.dialects.responses.store import Owner
from locallab.server.dialects.responses.stream import Frame, ResponsesAnswer, ResponsesFormatter, error_event
from locallab.server.dialects.responses.truncation import prepare_fitting
from locallab.server.endpoint import Endpoint, Generating
from locallab.server.fields.body import read
from locallab.server.inference.answer import answer
from locallab.server.inference.lease import lease
from locallab.server.inference.media import read_chat
from locallab.server.inference.prompt import prepare_chat
from locallab.server.reply import noted, reply
from locallab.server.streaming import EVENTS
from locallab.settings import ServerSettings

COUNT = "/v1/responses/input_tokens"


class _ResponseId(StringConvertor):
    """An id of a response, which no route has as its name."""

    regex = "(?!input_tokens$)[^/]+"


register_url_convertor("response", _ResponseId())
ONE = "/v1/responses/{response_id:response}"


class Deleted(msgspec.Struct):
    id: str
    object: str
    deleted: bool


class Responses:
    """The routes."""

    def __init__(self, pool: Pool, settings: ServerSettings, kept: KeptResponses) -> None:
        self._pool = pool
        self._settings = settings
        self._kept = kept

    def routes(self) -> list[BaseRoute]:
        return [
            Generating("/v1/responses", self.create, tag="openai", body=ResponsesBody, answer=ResponsesAnswer),
            Endpoint(
                COUNT,
                self.input_tokens,
                tag="openai",
                method="POST",
                body=ResponsesBody,
                answer=PromptTokenCount,
                errors=(404, 503),
            ),
            Endpoint(f"{ONE}/input_items", self.input_items, tag="openai", answer=InputItems, errors=(400, 404)),
            Endpoint(f"{ONE}/cancel", self.cancel, tag="openai", method="POST", answer=ResponsesAnswer, errors=(400, 404, 413)),
            Endpoint(ONE, self.retrieve, tag="openai", answer=ResponsesAnswer, errors=(404,)),
            Endpoint(ONE, self.delete, tag="openai", method="DELETE", answer=Deleted, errors=(404,)),
        ]

    async def create(self, request: Request) -> ASGIApp:
        """Answer a conversation, and store the response for the next turn."""
        body = await read(request, ResponsesBody)
        owner, notes = _owner(request), list[str]()
        before, items = await self._conversation(owner, body)
        loaded = await lease(request, self._pool, body.model, strict=self._settings.strict_models)
        params = body.params(loaded.engine.info, None)
        chat = await read_chat(request, loaded, self._settings, notes, functools.partial(chat_request, body, before, items))
        prepared = await prepare_fitting(loaded, chat, params, notes, truncate=body.truncation == "auto")
        frame = Frame.make(**echo(body, body.model or loaded.spec.id, chat.tools, params))

        async def keep() -> None:  # before the client gets the end, behind which its next request may go to another server
            if body.store is not False and formatter.made is not None:
                await self._kept.put(owner, formatter.made, [stored(item) for item in items])

        scored = params.logprobs is not None
        formatter = ResponsesFormatter(prepared.turn, frame, summary=body.summary, scored=scored)
        try:
            return await answer(request, loaded, prepared.jobs, formatter, stream=body.stream, notes=notes, ending=keep)
        except ContextLengthExceeded as error:
            if not body.stream:
                raise
            # Codex expects the error of a prompt that is too long in the stream.
            return noted(Response(formatter.fail(error), media_type=EVENTS), notes)

    async def input_tokens(self, request: Request) -> ASGIApp:
        """Count the tokens of a conversation without answering it."""
        body, notes = await read(request, ResponsesBody), list[str]()
        before, items = await self._conversation(_owner(request), body)
        loaded = await lease(request, self._pool, body.model, strict=self._settings.strict_models)
        chat = await read_chat(request, loaded, self._settings, notes, functools.partial(chat_request, body, before, items))
        prepared = await prepare_chat(loaded, chat, SamplingParams(), fits=False)
        return noted(reply(PromptTokenCount("response.input_tokens", len(prepared.jobs[0][0]))), notes)

    async def retrieve(self, request: Request) -> Response:
        """Show a stored response to the key that created it."""
        if request.query_params.get("stream") == "true":
            raise InvalidField("stream", "a stored response cannot be streamed again")
        body = await self._kept.get(_owner(request), request.path_params["response_id"])
        return Response(body, media_type="application/json")

    async def input_items(self, request: Request) -> Response:
        """List the input of a stored response, with the conversation that it continues.

        `limit` items, 20 unless set, from the newest one or, with `order=asc`, from the oldest, behind the one named `after`.
        """
        items = await self._kept.inputs(_owner(request), request.path_params["response_id"])
        return reply(page(items, request.query_params))

    async def cancel(self, request: Request) -> Response:
        """Refuse to cancel a stored response, which is complete: none is made in the background."""
        await self._kept.get(_owner(request), request.path_params["response_id"])
        raise RequestError("Cannot cancel a synchronous response. None is made in the background, and this one is complete")

    async def delete(self, request: Request) -> Response:
        """Delete a stored response."""
        response_id = request.path_params["response_id"]
        await self._kept.remove(_owner(request), response_id)
        return reply(Deleted(response_id, "response", True))

    async def _conversation(self, owner: Owner, body: ResponsesBody) -> tuple[list[Any], list[Any]]:
        """Return the items of earlier turns and those of the request. Raises InvalidField."""
        try:
            before = await self._kept.conversation(owner, body.previous_response_id) if body.previous_response_id else []
        except UnknownResponse as error:
            raise InvalidField("previous_response_id", str(error)) from None
        return before, await self._resolved(owner, body.items())

    async def _resolved(self, owner: Owner, items: list[Any]) -> list[Any]:
        """Return the items, with stored ones in place of those that the request only names. Raises InvalidField."""
        ids = {index: str(item.get("id")) for index, item in enumerate(items) if _is_reference(item)}
        stored = await self._kept.items(owner, ids.values())
        for index, item_id in ids.items():
            if item_id not in stored:
                raise InvalidField(f"input[{index}].id", f"no item {item_id!r} is stored; send the item itself")
        return [stored[ids[index]] if index in ids else item for index, item in enumerate(items)]


def _is_reference(item: Any) -> bool:
    kind = item_type(item)
    return isinstance(item, Mapping) and (kind == "item_reference" or (kind is None and "id" in item))


def _owner(request: Request) -> Owner:
    key = request.scope["state"]["key"]
    return key.sha256 if key else None


def routes(services: Services) -> list[BaseRoute]:
    kept = KeptResponses.of(services.settings)
    services.closing.append(kept.close)
    return Responses(services.pool, services.settings, kept).routes()


RESPONSES = Dialect(
    name="responses",
    prefixes=("/v1/responses",),
    error_body=openai_body,
    problem=OpenAIProblem,
    routes=routes,
    prompts={"/v1/responses": "input", COUNT: "input"},
    failing=error_event,
    typed=True,
)
