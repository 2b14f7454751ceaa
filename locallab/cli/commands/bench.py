"""`locallab bench`: a short load on a running server, and how it took it."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import click

from locallab.cli import api_client
from locallab.cli.settings_options import model_names
from locallab.cli.tables import facts
from locallab.errors import ServerError

if TYPE_CHECKING:
    import httpx

SUBJECTS = ("a lighthouse", "the tides", "bread", "a long journey", "an old clock", "the night sky", "a market", "winter")


@dataclasses.dataclass
class Measured:
    """When an answer was asked for, when its pieces came, and its tokens as the server counts them; `error` says why it is not
    whole."""

    started: float
    arrivals: list[float] = dataclasses.field(default_factory=list)
    tokens: int = 0
    error: str | None = None


@click.command("bench")
@api_client.options
@click.option("--model", shell_complete=model_names, help="the model to ask  [default: the one that is loaded]")
@click.option(
    "--clients", type=click.IntRange(1, 1000), default=4, show_default=True, metavar="INTEGER", help="clients at once"
)
@click.option("--requests", type=click.IntRange(1), default=2, show_default=True, metavar="INTEGER", help="requests of each")
@click.option(
    "--max-tokens", type=click.IntRange(2), default=64, show_default=True, metavar="INTEGER", help="tokens of an answer"
)
@click.option("--json", "as_json", is_flag=True, help="print an object; times are in milliseconds")
def command(
    url: str | None, api_key: str | None, model: str | None, clients: int, requests: int, max_tokens: int, as_json: bool
) -> int:
    """Measure a running server.

    Tokens a second, and how long clients wait for the first token (TTFT) and between tokens. Each prompt is another, and
    every answer has all its tokens. The status is 1 if an answer was not whole.
    """
    with api_client.ApiClient(url, api_key) as server:
        model_id = server.model_id(model)
        for _ in server.chat(model_id, [{"role": "user", "content": "Hello"}], {"max_tokens": 1}):
            pass  # the model is loaded now
    bodies = [[_body(model_id, lane * requests + turn, max_tokens) for turn in range(requests)] for lane in range(clients)]
    started = time.perf_counter()
    answers = asyncio.run(_load(server, bodies))
    figures = summary(answers, time.perf_counter() - started)
    if as_json:
        click.echo(json.dumps({"url": server.url, "model": model_id, "clients": clients, **figures}))
    else:
        click.echo(f"{model_id} at {server.url}: {clients} clients, {requests} requests each, {max_tokens} tokens an answer")
        facts(_lines(figures))
    return 1 if figures["errors"] else 0


def summary(answers: Sequence[Measured], seconds: float) -> dict[str, Any]:
    """The figures of a load that took so long; times in milliseconds, None where no whole answer gives one. Pure."""
    whole = [answer for answer in answers if answer.error is None]
    first = [(answer.arrivals[0] - answer.started) * 1000 for answer in whole if answer.arrivals]
    gaps = [(later - earlier) * 1000 for answer in whole for earlier, later in pairwise(answer.arrivals)]
    tokens = sum(answer.tokens for answer in whole)
    return {
        "requests": len(answers),
        "errors": len(answers) - len(whole),
        "first_error": next((answer.error for answer in answers if answer.error), None),
        "tokens": tokens,
        "seconds": round(seconds, 3),
        "tokens_per_s": round(tokens / seconds, 1),
        "ttft_p50": percentile(first, 50),
        "ttft_p95": percentile(first, 95),
        "itl_p50": percentile(gaps, 50),
        "itl_p99": percentile(gaps, 99),
    }


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Interpolated between neighbours, to a tenth; None of no values."""
    if not values:
        return None
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    return round(low + (high - low) * (place % 1), 1)


def _body(model: str, number: int, max_tokens: int) -> dict[str, Any]:
    prompt = f"{number + 1}. Tell me something about {SUBJECTS[number % len(SUBJECTS)]}, in plain words."
    messages = [{"role": "user", "content": prompt}]
    fixed = {"temperature": 0, "ignore_eos": True, "stream_options": {"include_usage": True}}
    return {"model": model, "messages": messages, "max_tokens": max_tokens, **fixed}


async def _load(server: api_client.ApiClient, bodies: Sequence[Sequence[dict[str, Any]]]) -> list[Measured]:
    async with server.asynchronous() as http:
        lanes = await asyncio.gather(*(_lane(server, http, lane) for lane in bodies))
    return [answer for lane in lanes for answer in lane]


async def _lane(server: api_client.ApiClient, http: httpx.AsyncClient, bodies: Sequence[dict[str, Any]]) -> list[Measured]:
    return [await _ask(server, http, body) for body in bodies]


async def _ask(server: api_client.ApiClient, http: httpx.AsyncClient, body: dict[str, Any]) -> Measured:
    answer, ended = Measured(time.perf_counter()), False
    try:
        async for event in server.aevents(http, "/v1/chat/completions", body):
            piece = api_client.chat_piece(event)
            if piece.text or piece.thought:
                answer.arrivals.append(time.perf_counter())
            ended = ended or piece.finish_reason is not None
            answer.tokens = (piece.whole or {}).get("usage", {}).get("completion_tokens", answer.tokens)
    except ServerError as error:
        answer.error = str(error)
    if not ended:
        answer.error = answer.error or "the server broke off the answer"
    return answer


def _lines(figures: dict[str, Any]) -> list[tuple[str, str | None]]:
    def times(name: str, *percents: int) -> str:
        shown = [
            f"p{percent} {figures[f'{name}_p{percent}']:,}" for percent in percents if figures[f"{name}_p{percent}"] is not None
        ]
        return ", ".join(shown) + " ms" if shown else "-"

    wrong = f", {figures['errors']} not whole: {figures['first_error']}" if figures["errors"] else ""
    return [
        ("answers", f"{figures['requests']}{wrong}"),
        ("tokens", f"{figures['tokens']:,} in {figures['seconds']:.1f} s: {figures['tokens_per_s']:,} a second"),
        ("first token", times("ttft", 50, 95)),
        ("between tokens", times("itl", 50, 99)),
    ]
