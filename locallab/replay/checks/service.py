"""Checks of answers without a model's message: listings, errors, health checks, preflights."""

from __future__ import annotations

from collections.abc import Sequence

from locallab.replay.checks.openai import usage
from locallab.replay.exchange import Check, Reply
from locallab.replay.strict_reader import data_lines, named_events, need, status, take, value

CONTEXT_NAMES = ("context_length", "max_model_len")


def code(*wanted: int) -> Check:
    """Check the status only."""
    return lambda answer: status(answer, *wanted)


def models(answer: Reply) -> None:
    """Check a listing: under `data` for most clients, under `models` for Codex."""
    status(answer, 200)
    body = value(answer.text)
    for name in ("data", "models"):
        for card in take(body, name, list):
            _card(card)
    need(body["data"], "the list of models is empty")


def model(answer: Reply) -> None:
    """Check the card of one model."""
    status(answer, 200)
    _card(value(answer.text))


def context_reported(answer: Reply) -> None:
    """Check that a listing has the first model's context under every name that clients read."""
    models(answer)
    body = value(answer.text)
    contexts = {take(body, "data.0.meta.n_ctx", int), *(take(body, f"data.0.{name}", int) for name in CONTEXT_NAMES)}
    need(len(contexts) == 1, f"the fields of the context differ: {sorted(contexts)}")


def refused(status_code: int, error_code: str | None = None, param: str | None = None) -> Check:
    """Check an error of OpenAI's format."""

    def check(answer: Reply) -> None:
        status(answer, status_code)
        body = value(answer.text)
        take(body, "error.message", str)
        take(body, "error.type", str)
        found = take(body, "error.code", str, None)
        need(error_code in (None, found), f"error.code is {found!r}, not {error_code!r}")
        need(param in (None, take(body, "error.param", str, None)), f"error.param is {body['error']['param']!r}, not {param!r}")

    return check


def too_long(answer: Reply) -> None:
    """Check the error of a prompt beyond the context for all texts by which clients recognize it."""
    refused(400, "context_length_exceeded")(answer)
    error = value(answer.text)["error"]
    for words in ("maximum context length", "context window", "tokens"):
        need(words in error["message"].lower(), f"the message does not say {words!r}: {error['message']}")
    need(take(error, "n_prompt_tokens", int) >= take(error, "n_ctx", int), "n_prompt_tokens is below n_ctx")


def too_long_for_anthropic(answer: Reply) -> None:
    anthropic_refused(400)(answer)
    text = value(answer.text)["error"]["message"]
    need(text.startswith("prompt is too long: ") and " tokens > " in text and text.endswith(" maximum"), f"says {text!r}")


def too_long_for_codex(answer: Reply) -> None:
    """Check the event of a prompt beyond the context, which Codex expects instead of a status."""
    status(answer, 200)
    *_, last = named_events(answer)
    need(last["type"] == "response.failed", f"the last event is {last['type']}, not response.failed")
    found = take(last, "response.error.code", str)
    need(found == "context_length_exceeded", f"error.code is {found!r}")


def anthropic_refused(status_code: int) -> Check:
    def check(answer: Reply) -> None:
        status(answer, status_code)
        body = value(answer.text)
        need(take(body, "type", str) == "error", f"the type is {body['type']!r}, not 'error'")
        take(body, "error.type", str)
        take(body, "error.message", str)

    return check


def ollama_refused(status_code: int) -> Check:
    def check(answer: Reply) -> None:
        status(answer, status_code)
        take(value(answer.text), "error", str)

    return check


def input_tokens(answer: Reply) -> None:
    status(answer, 200)
    need(take(value(answer.text), "input_tokens", int) > 0, "no tokens were counted")


def has(*paths: str, kind: type = str) -> Check:
    """Check that a body has a value of `kind` at each of `paths`."""

    def check(answer: Reply) -> None:
        status(answer, 200)
        body = value(answer.text)
        for path in paths:
            take(body, path, kind)

    return check


def completion_stream(answer: Reply) -> None:
    """Check the chunks of a completion, with the usage last."""
    status(answer, 200)
    lines = list(data_lines(answer))
    need(len(lines) > 2 and lines[-1] == "[DONE]", f"{len(lines)} events, the last one {lines[-1]}, not [DONE]")
    for line in lines[:-2]:
        take(value(line), "choices.0.text", str)
    usage(take(value(lines[-2]), "usage", dict))


def filled_in(answer: Reply) -> None:
    """Check a streamed infill, as chat deltas, or the error of a model without infill."""
    if answer.status == 400:
        refused(400)(answer)
        return
    status(answer, 200)
    *chunks, _ = data_lines(answer)
    for chunk in map(value, chunks):
        take(chunk, "choices.0.delta", dict)


def llama_stream(answer: Reply) -> None:
    """Check a text streamed like llama.cpp's server does: only the last piece has `stop`."""
    status(answer, 200)
    pieces = [value(line) for line in data_lines(answer)]
    for piece in pieces:
        take(piece, "content", str)
    stops = [take(piece, "stop", bool) for piece in pieces]
    need(stops[-1] and not any(stops[:-1]), "not the last piece alone has stop")


def ranked(answer: Reply) -> None:
    """Check documents with their relevance, or the error of a model that cannot rank."""
    if answer.status in (400, 404):
        refused(answer.status)(answer)
        return
    status(answer, 200)
    body = value(answer.text)
    name = "data" if "data" in body else "results"
    for entry in take(body, name, list):
        take(entry, "index", int)
        take(entry, "relevance_score", float, int)


def granted(wanted: Sequence[str]) -> Check:
    """Check that the answer to a browser's preflight allows the headers `wanted`."""

    def check(answer: Reply) -> None:
        status(answer, 200, 204)
        origin = answer.headers.get("access-control-allow-origin")
        need(origin, "the preflight is answered without Access-Control-Allow-Origin")
        names = answer.headers.get("access-control-allow-headers", "").lower()
        missing = [name for name in wanted if name not in names.replace(" ", "").split(",")]
        need(not missing, f"Access-Control-Allow-Headers lacks {', '.join(missing)}")
        credentials = answer.headers.get("access-control-allow-credentials") == "true"
        need(not (credentials and origin == "*"), "credentials for every origin, which browsers refuse")

    return check


def _card(card: object) -> None:
    take(card, "id", str)
    take(card, "object", str)
    take(card, "created", int)
    take(card, "owned_by", str)
