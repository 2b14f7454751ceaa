"""`locallab bench`: a short load test of a running server."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import time
from collections.abc import Iterable, Sequence
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
class Timing:
    """Times of one answer in seconds, and its tokens as the server counts them; `error` is None for a complete answer."""

    started: float
    arrivals: list[float] = dataclasses.field(default_factory=list)
    tokens: int = 0
    error: str | None = None


@click.command("bench")
@api_client.options
@click.option("--model", shell_complete=model_names, help="model to measure  [default: the loaded one]")
@click.option(
    "--clients", type=click.IntRange(1, 1000), default=4, show_default=True, metavar="INTEGER", help="concurrent clients"
)
@click.option("--requests", type=click.IntRange(1), default=2, show_default=True, metavar="INTEGER", help="requests per client")
@click.option(
    "--max-tokens", type=click.IntRange(2), default=64, show_default=True, metavar="INTEGER", help="tokens per answer"
)
@click.option("--json", "as_json", is_flag=True, help="print an object; times are in milliseconds")
def command(
    url: str | None, api_key: str | None, model: str | None, clients: int, requests: int, max_tokens: int, as_json: bool
) -> int:
    """Measure a running server.

    Reports tokens per second, the time to the first token (TTFT) and the time between tokens. Every prompt is different, and
    every answer has --max-tokens tokens. Exit status 1 if an answer is incomplete.
    """
    with api_client.ApiClient(url, api_key) as server:
        model_id = server.model_id(model)
        for _ in server.chat(model_id, [{"role": "user", "content": "Hello"}], {"max_tokens": 1}):
            pass  # loads the model before the clock starts
    bodies = [[_body(model_id, lane * requests + turn, max_tokens) for turn in range(requests)] for lane in range(clients)]
    started = time.perf_counter()
    answers = asyncio.run(_load(server, bodies))
    figures = summary(answers, time.perf_counter() - started)
    if as_json:
        click.echo(json.dumps({"url": server.url, "model": model_id, "clients": clients, **figures}))
    else:
        click.echo(f"{model_id} at {server.url}: {clients} clients, {requests} requests each, {max_tokens} tokens per answer")
        facts(_lines(figures))
    return 1 if figures["errors"] else 0


def summary(answers: Sequence[Timing], seconds: float) -> dict[str, Any]:
    """Return the figures of a load that took `seconds`; times in milliseconds, None without a complete answer. Pure."""
    complete = [answer for answer in answers if answer.error is None]
    first = [(answer.arrivals[0] - answer.started) * 1000 for answer in complete if answer.arrivals]
    gaps = [(later - earlier) * 1000 for answer in complete for earlier, later in pairwise(answer.arrivals)]
    tokens = sum(answer.tokens for answer in complete)
    return {
        "requests": len(answers),
        "errors": len(answers) - len(complete),
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
    """Return the percentile, interpolated between neighbours and rounded to a tenth; None without values."""
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


async def _load(server: api_client.ApiClient, bodies: Iterable[Sequence[dict[str, Any]]]) -> list[Timing]:
    """Send the requests of all lanes at once, those of a lane one after the other."""

    async def run(lane: Sequence[dict[str, Any]]) -> list[Timing]:
        return [await _measure(server, http, body) for body in lane]

    async with server.asynchronous() as http:
        return [timing for lane in await asyncio.gather(*map(run, bodies)) for timing in lane]


async def _measure(server: api_client.ApiClient, http: httpx.AsyncClient, body: dict[str, Any]) -> Timing:
    timing, finished = Timing(time.perf_counter()), False
    try:
        async for event in server.aevents(http, "/v1/chat/completions", body):
            piece = api_client.chat_piece(event)
            if piece.text or piece.thought:
                timing.arrivals.append(time.perf_counter())
            finished = finished or piece.finish_reason is not None
            timing.tokens = (piece.whole or {}).get("usage", {}).get("completion_tokens", timing.tokens)
    except ServerError as error:
        timing.error = str(error)
    if not finished:
        timing.error = timing.error or api_client.CUT_OFF
    return timing


def _lines(figures: dict[str, Any]) -> list[tuple[str, str | None]]:
    def times(name: str, *percents: int) -> str:
        known = {percent: figures[f"{name}_p{percent}"] for percent in percents}
        shown = [f"p{percent} {value:,}" for percent, value in known.items() if value is not None]
        return ", ".join(shown) + " ms" if shown else "-"

    errors = f", {figures['errors']} incomplete: {figures['first_error']}" if figures["errors"] else ""
    return [
        ("answers", f"{figures['requests']}{errors}"),
        ("tokens", f"{figures['tokens']:,} in {figures['seconds']:.1f} s: {figures['tokens_per_s']:,} per second"),
        ("first token", times("ttft", 50, 95)),
        ("between tokens", times("itl", 50, 99)),
    ]
