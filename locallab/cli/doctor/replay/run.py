"""Sends the shapes to a server, one after the other, and says of each whether its client could live with the answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Literal

import httpx

from locallab.cli.doctor.replay.exchange import MODEL, Exchange, KeyStyle, Reply, Unmet, filled
from locallab.cli.doctor.replay.strict_reader import is_of

PATIENCE = 300.0
"""Seconds that a client waits for an answer to begin; Cline gives up then."""

WRONG_KEY = "ll-this-key-is-not-valid"
UNTOLD = "the server does not tell the model's context"


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one shape; `reason` says why it failed or was left out."""

    client: str
    doing: str
    status: Literal["ok", "fail", "skip"]
    reason: str | None = None


def replay(http: httpx.Client, key: str | None, shapes: Iterable[Exchange]) -> Iterator[Outcome]:
    """Sends each to the server at `http.base_url` and yields what came of it. Raises httpx.TransportError if nobody answers
    there at all."""
    model, context = _first_model(http.get("/v1/models", headers=_key_headers("bearer", key)))
    for shape in shapes:
        if shape.needs_context and context is None:
            yield Outcome(shape.client, shape.doing, "skip", UNTOLD)
        elif shape.wrong_key and key is None:
            yield Outcome(shape.client, shape.doing, "skip", "the server was asked without a key")
        else:
            reason = _problem(http, shape, key, model, "word " * ((context or 0) + 64))
            yield Outcome(shape.client, shape.doing, "fail" if reason else "ok", reason)


def _problem(http: httpx.Client, shape: Exchange, key: str | None, model: str, too_long: str) -> str | None:
    """Why the answer will not do."""
    headers = {**shape.headers, **_key_headers(shape.key, WRONG_KEY if shape.wrong_key else key)}
    body = filled(shape.body, model, too_long)
    try:
        path = filled(shape.path, model, "")
        response = http.request(shape.method, path, headers=headers, json=body, timeout=PATIENCE)
        shape.check(Reply(response.status_code, {k.lower(): v for k, v in response.headers.items()}, response.text))
    except httpx.TransportError as error:
        return f"no whole answer came: {str(error) or type(error).__name__}"
    except Unmet as unmet:
        return str(unmet)
    return None


def _key_headers(style: KeyStyle, key: str | None) -> dict[str, str]:
    if key is None or style == "none":
        return {}
    bearer = {"authorization": f"Bearer {key}"}
    return {"bearer": bearer, "both": {**bearer, "x-api-key": key}}.get(style) or {style: key}


def _first_model(response: httpx.Response) -> tuple[str, int | None]:
    """The id and the context of the first model of a listing; any name where there is no listing."""
    try:
        card = response.json()["data"][0]
        model = str(card["id"])
    except (ValueError, LookupError, TypeError):
        return MODEL.strip("<>"), None
    told = (card.get("context_length"), card.get("max_model_len"), (card.get("meta") or {}).get("n_ctx"))
    return model, next((context for context in told if is_of(context, int)), None)
