"""`locallab bench`: a short load test of a running server."""

from __future__ import annotations

import json
from typing import Any

import click

from locallab.cli import api_client
from locallab.cli.settings_options import model_names
from locallab.cli.tables import facts
from locallab.load import generator
from locallab.load.client import ChatClient
from locallab.load.figures import Figures, figures
from locallab.load.request import Plan, Request

SUBJECTS = ("a lighthouse", "the tides", "bread", "a long journey", "an old clock", "the night sky", "a market", "winter")


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
    every answer has --max-tokens tokens. Exit status 1 if an answer is incomplete or of another length.
    """
    with api_client.ApiClient(url, api_key) as server:
        model_id = server.model_id(model)
        for _ in server.chat(model_id, [{"role": "user", "content": "Hello"}], {"max_tokens": 1}):
            pass  # loads the model before the clock starts
    lanes = [[_request(lane * requests + turn, max_tokens) for turn in range(requests)] for lane in range(clients)]
    outcome = generator.run(Plan(lanes), ChatClient(server.url, model_id, api_key, None, server.trusted))
    shown = summary(figures(outcome))
    if as_json:
        click.echo(json.dumps({"url": server.url, "model": model_id, "clients": clients, **shown}))
    else:
        click.echo(f"{model_id} at {server.url}: {clients} clients, {requests} requests each, {max_tokens} tokens per answer")
        facts(_lines(shown))
    return 1 if shown["errors"] or shown["wrong_lengths"] else 0


def summary(measured: Figures) -> dict[str, Any]:
    """Return the figures to show; times in milliseconds, None without a complete answer. Pure."""
    times = {name: getattr(measured, name) for name in ("ttft_p50", "ttft_p95", "itl_p50", "itl_p99")}
    return {
        "requests": measured.requests,
        "errors": measured.errors,
        "first_error": next(iter(measured.messages), None),
        "wrong_lengths": measured.wrong_lengths,
        "tokens": measured.tokens,
        "seconds": round(measured.seconds, 3),
        "tokens_per_s": round(measured.tokens_per_s, 1),
        **{name: None if value is None else round(value, 1) for name, value in times.items()},
    }


def _request(number: int, max_tokens: int) -> Request:
    prompt = f"{number + 1}. Tell me something about {SUBJECTS[number % len(SUBJECTS)]}, in plain words."
    fixed = {"max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
    return Request({"messages": [{"role": "user", "content": prompt}], **fixed}, max_tokens)


def _lines(shown: dict[str, Any]) -> list[tuple[str, str | None]]:
    def times(name: str, *percents: int) -> str:
        known = {percent: shown[f"{name}_p{percent}"] for percent in percents}
        found = [f"p{percent} {value:,}" for percent, value in known.items() if value is not None]
        return ", ".join(found) + " ms" if found else "-"

    errors = f", {shown['errors']} incomplete: {shown['first_error']}" if shown["errors"] else ""
    lengths = f", {shown['wrong_lengths']} of another length than asked for" if shown["wrong_lengths"] else ""
    return [
        ("answers", f"{shown['requests']}{errors}{lengths}"),
        ("tokens", f"{shown['tokens']:,} in {shown['seconds']:.1f} s: {shown['tokens_per_s']:,} per second"),
        ("first token", times("ttft", 50, 95)),
        ("between tokens", times("itl", 50, 99)),
    ]
