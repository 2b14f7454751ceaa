"""The replay: requests sent to a server one after the other, with an outcome for each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Literal

import httpx

from locallab.cli.doctor.replay.exchange import MODEL, Exchange, KeyStyle, Reply, Unmet, filled
from locallab.cli.doctor.replay.strict_reader import is_of

PATIENCE = 300.0
"""Seconds a client waits for an answer to begin: the timeout of Cline."""

WRONG_KEY = "ll-this-key-is-not-valid"
NO_CONTEXT = "the server does not report the model's context"


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one exchange; `reason` says why it failed or was skipped."""

    client: str
    doing: str
    status: Literal["ok", "fail", "skip"]
    reason: str | None = None


def replay(http: httpx.Client, key: str | None, exchanges: Iterable[Exchange]) -> Iterator[Outcome]:
    """Send the requests to the server at `http.base_url`, and yield the outcomes.

    Raises httpx.TransportError if no server answers.
    """
    model, context = _first_model(http.get("/v1/models", headers=_key_headers("bearer", key)))
    for exchange in exchanges:
        if exchange.needs_context and context is None:
            yield Outcome(exchange.client, exchange.doing, "skip", NO_CONTEXT)
        elif exchange.wrong_key and key is None:
            yield Outcome(exchange.client, exchange.doing, "skip", "the replay has no API key")
        else:
            reason = _problem(http, exchange, key, model, "word " * ((context or 0) + 64))
            yield Outcome(exchange.client, exchange.doing, "fail" if reason else "ok", reason)


def _problem(http: httpx.Client, exchange: Exchange, key: str | None, model: str, too_long: str) -> str | None:
    """Return the reason why the answer would break the client, or None."""
    headers = {**exchange.headers, **_key_headers(exchange.key, WRONG_KEY if exchange.wrong_key else key)}
    body = filled(exchange.body, model, too_long)
    try:
        path = filled(exchange.path, model, "")
        response = http.request(exchange.method, path, headers=headers, json=body, timeout=PATIENCE)
        exchange.check(Reply(response.status_code, {k.lower(): v for k, v in response.headers.items()}, response.text))
    except httpx.TransportError as error:
        return f"no complete answer: {str(error) or type(error).__name__}"
    except Unmet as unmet:
        return str(unmet)
    return None


def _key_headers(style: KeyStyle, key: str | None) -> dict[str, str]:
    if key is None or style == "none":
        return {}
    bearer = {"authorization": f"Bearer {key}"}
    return {"bearer": bearer, "both": {**bearer, "x-api-key": key}}.get(style) or {style: key}


def _first_model(response: httpx.Response) -> tuple[str, int | None]:
    """Return the id and the context of the first model in a listing, or any name if there is none."""
    try:
        card = response.json()["data"][0]
        model = str(card["id"])
    except (ValueError, LookupError, TypeError):
        return MODEL.strip("<>"), None
    contexts = (card.get("context_length"), card.get("max_model_len"), (card.get("meta") or {}).get("n_ctx"))
    return model, next((context for context in contexts if is_of(context, int)), None)
