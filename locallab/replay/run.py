"""The replay: requests sent to a server one after the other, with an outcome for each."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any, Literal

import httpx

from locallab.replay.exchange import MODEL, Exchange, KeyStyle, Reply, Unmet, filled
from locallab.replay.strict_reader import is_of

PATIENCE = 300.0
"""Seconds a client waits for an answer to begin: the timeout of Cline."""

WRONG_KEY = "ll-this-key-is-not-valid"
NO_CONTEXT = "the server does not report the model's context"
NO_KEY = "the replay has no API key"

SHOWN = 4000
"""Characters of an answer that are shown."""


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one exchange; `reason` says why it failed or was skipped."""

    client: str
    doing: str
    status: Literal["ok", "fail", "skip"]
    reason: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Replayed:
    """An outcome with the request, whose texts beyond the context are described, and the beginning of the answer."""

    outcome: Outcome
    method: str
    path: str
    body: Any
    http_status: int | None = None
    answer: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """A server as requests need it: an API key, and the id and the context of a model."""

    key: str | None
    model: str
    context: int | None

    @classmethod
    def listed(cls, response: httpx.Response, key: str | None, model: str | None = None) -> Target:
        """Read the answer to LISTING, for this model or the first one. The context of one that is not there is not known."""
        unlisted = MODEL.strip("<>") if model is None else model, None
        return cls(key, *next((each for each in _models(response) if model in (None, each[0])), unlisted))

    def skips(self, exchange: Exchange) -> Outcome | None:
        """Return the outcome of an exchange that cannot be sent, else None."""
        if exchange.needs_context and self.context is None:
            return Outcome(exchange.client, exchange.doing, "skip", NO_CONTEXT)
        if exchange.wrong_key and self.key is None:
            return Outcome(exchange.client, exchange.doing, "skip", NO_KEY)
        return None

    def request(self, exchange: Exchange) -> dict[str, Any]:
        """Return the arguments of httpx's `request`."""
        return {
            "method": exchange.method,
            "url": filled(exchange.path, self.model, ""),
            "headers": {**exchange.headers, **key_headers(exchange.key, WRONG_KEY if exchange.wrong_key else self.key)},
            "json": filled(exchange.body, self.model, "word " * ((self.context or 0) + 64)),
            "timeout": PATIENCE,
        }

    def shown(self, exchange: Exchange) -> tuple[str, Any]:
        """Return the path and the body of the request for people: a text beyond the context is described."""
        described = f"({(self.context or 0) + 64:,} words)"
        return filled(exchange.path, self.model, ""), filled(exchange.body, self.model, described)


LISTING = "/v1/models"


def replay(http: httpx.Client, key: str | None, exchanges: Iterable[Exchange]) -> Iterator[Outcome]:
    """Send the requests to the server at `http.base_url`, and yield the outcomes.

    Raises httpx.TransportError if no server answers.
    """
    target = Target.listed(http.get(LISTING, headers=key_headers("bearer", key)), key)
    for exchange in exchanges:
        if skipped := target.skips(exchange):
            yield skipped
            continue
        try:
            yield _judged(exchange, http.request(**target.request(exchange)))
        except httpx.TransportError as error:
            yield _broken(exchange, error)


async def replayed(
    http: httpx.AsyncClient, key: str | None, exchanges: Iterable[Exchange], model: str | None = None
) -> AsyncIterator[Replayed]:
    """As `replay`, with a model, what was sent and what came back. A request gets PATIENCE in all."""
    target = Target.listed(await http.get(LISTING, headers=key_headers("bearer", key)), key, model)
    for exchange in exchanges:
        path, body = target.shown(exchange)
        if skipped := target.skips(exchange):
            yield Replayed(skipped, exchange.method, path, body)
            continue
        try:
            response = await asyncio.wait_for(http.request(**target.request(exchange)), PATIENCE)
        except (httpx.TransportError, asyncio.TimeoutError) as error:
            yield Replayed(_broken(exchange, error), exchange.method, path, body)
        else:
            answer = response.text[:SHOWN] + ("…" if len(response.text) > SHOWN else "")
            yield Replayed(_judged(exchange, response), exchange.method, path, body, response.status_code, answer)


def key_headers(style: KeyStyle, key: str | None) -> dict[str, str]:
    """Return the headers in which a client sends the key."""
    if key is None or style == "none":
        return {}
    bearer = {"authorization": f"Bearer {key}"}
    return {"bearer": bearer, "both": {**bearer, "x-api-key": key}}.get(style) or {style: key}


def _judged(exchange: Exchange, response: httpx.Response) -> Outcome:
    """Return whether the client could live with the answer."""
    try:
        exchange.check(Reply(response.status_code, {k.lower(): v for k, v in response.headers.items()}, response.text))
    except Unmet as unmet:
        return Outcome(exchange.client, exchange.doing, "fail", str(unmet))
    return Outcome(exchange.client, exchange.doing, "ok")


def _broken(exchange: Exchange, error: Exception) -> Outcome:
    reason = f"no complete answer: {str(error) or type(error).__name__}"
    return Outcome(exchange.client, exchange.doing, "fail", reason)


def _models(response: httpx.Response) -> Iterator[tuple[str, int | None]]:
    """Yield the ids and the contexts of the models in a listing, up to what is no model."""
    try:
        for card in response.json()["data"]:
            contexts = (card.get("context_length"), card.get("max_model_len"), (card.get("meta") or {}).get("n_ctx"))
            yield str(card["id"]), next((context for context in contexts if is_of(context, int)), None)
    except (ValueError, LookupError, TypeError, AttributeError):
        return
