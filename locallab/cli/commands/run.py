"""`locallab run`: one answer, for people and pipes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import click

from locallab.cli import api_client
from locallab.cli.api_client import ApiClient, Piece
from locallab.cli.settings_options import model_names
from locallab.errors import ConfigError

TASKS = ("generate", "refactor", "debug", "audit", "document", "chat")
"""Those of locallab.chat.tasks, which imports slowly."""


@click.command("run")
@click.argument("model", required=False, shell_complete=model_names)
@click.argument("prompt", required=False)
@api_client.options
@click.option("--task", type=click.Choice(TASKS), help="do this to the prompt, as the programming assistant does")
@click.option("--language", help="with --task: the programming language, such as python")
@click.option("--system", help="the system message")
@click.option("--max-tokens", type=click.IntRange(min=1), metavar="INTEGER", help="longest answer, in tokens")
@click.option("--temperature", type=click.FloatRange(min=0), metavar="NUMBER", help="how freely it is drawn; 0: the likeliest")
@click.option("--json", "as_json", is_flag=True, help="print an object with the answer and its usage, once it is whole")
def command(model: str | None, prompt: str | None, url: str | None, api_key: str | None, as_json: bool, **wishes: Any) -> None:
    """Print the answer of MODEL to PROMPT, as it comes.

    What is piped in is the prompt, or comes below it: cat x.py | locallab run MODEL --task audit. Without MODEL, which a lone
    PROMPT of several words may lack, the one that the server has loaded answers. Where no server runs, the model is loaded for
    this answer only.
    """
    from locallab.cli.server_session import session
    from locallab.cli.terminal.markdown_view import plain

    if model and prompt is None and _is_prompt(model):
        model, prompt = None, model
    asked = _prompt(prompt)
    if wishes["language"] and not wishes["task"]:
        raise ConfigError("--language: goes with --task")
    if wishes["system"] and wishes["task"]:
        raise ConfigError("--system: does not go with --task, which has a system message of its own")
    with session(model, url, api_key) as (server, model_id):
        answer = _ask(server, model_id, asked, wishes)
        if as_json:
            click.echo(json.dumps(_whole(model_id, answer)))
            return
        with plain() as writer:
            for piece in answer:  # what the model says to itself is no part of it
                writer.write(piece.text)


def _is_prompt(word: str) -> bool:
    """No model's name has a space, but for the path of a file."""
    return any(map(str.isspace, word)) and not word.lower().endswith(".gguf")


def _prompt(given: str | None) -> str:
    """What was given, and below it what was piped in."""
    piped = "" if sys.stdin.isatty() else sys.stdin.read()
    parts = [part for part in (given, piped) if part and part.strip()]
    if not parts:
        raise ConfigError(
            "prompt: is missing: name a model, then the prompt, or pipe it in; `locallab chat` is for conversations"
        )
    return "\n\n".join(parts)


def _ask(server: ApiClient, model: str, prompt: str, wishes: Mapping[str, Any]) -> Iterator[Piece]:
    sampling = {name: wishes[name] for name in ("max_tokens", "temperature") if wishes[name] is not None}
    if wishes["task"]:
        return server.assist(wishes["task"], {"prompt": prompt, "model": model, "language": wishes["language"], **sampling})
    system = [{"role": "system", "content": wishes["system"]}] if wishes["system"] else []
    return server.chat(model, [*system, {"role": "user", "content": prompt}], sampling)


def _whole(model: str, answer: Iterator[Piece]) -> dict[str, Any]:
    pieces = list(answer)
    told = {name: value for piece in pieces for name, value in (piece.whole or {}).items() if name not in ("type", "model")}
    reason = next(piece.finish_reason for piece in pieces if piece.finish_reason)
    return {"model": model, "response": "".join(piece.text for piece in pieces), "finish_reason": reason, **told}
