"""`locallab run`: a single answer, for people and pipes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from locallab.cli import api_client
from locallab.cli.api_client import ApiClient, Piece
from locallab.cli.attachments import content, data_url, part
from locallab.cli.settings_options import model_names
from locallab.errors import ConfigError

TASKS = ("generate", "refactor", "debug", "audit", "document", "chat")
"""Those of locallab.chat.tasks, which imports slowly."""


@click.command("run")
@click.argument("model", required=False, shell_complete=model_names)
@click.argument("prompt", required=False)
@api_client.options
@click.option("--task", type=click.Choice(TASKS), help="task of the programming assistant to apply to the prompt")
@click.option("--language", help="with --task: programming language, such as python")
@click.option("--system", help="system message")
@click.option("--max-tokens", type=click.IntRange(min=1), metavar="INTEGER", help="maximum tokens of the answer")
@click.option("--temperature", type=click.FloatRange(min=0), metavar="NUMBER", help="sampling temperature; 0 is greedy")
@click.option(
    "--image", "images", multiple=True, metavar="FILE", help="picture or sound to send ahead of the prompt; repeatable"
)
@click.option("--mmproj", metavar="FILE", help="projector with which a model that is loaded for this answer sees or hears")
@click.option("--json", "as_json", is_flag=True, help="print an object with the complete answer and its usage")
def command(
    model: str | None,
    prompt: str | None,
    url: str | None,
    api_key: str | None,
    mmproj: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Print the answer of MODEL to PROMPT, as it streams.

    Standard input is the prompt, or is appended to it: cat x.py | locallab run MODEL --task audit. MODEL defaults to the
    server's loaded model, also if the only argument is a PROMPT of several words. Loads the model for this answer if no server
    runs.
    """
    from locallab.cli.server_session import session
    from locallab.cli.terminal.markdown_view import plain

    if model and prompt is None and any(map(str.isspace, model)) and not model.lower().endswith(".gguf"):
        model, prompt = None, model  # only the path of a file may have a space
    piped = "" if sys.stdin.isatty() else sys.stdin.read()
    if prompt:
        prompt = os.fsencode(prompt).decode(errors="replace")  # an argument may hold bytes that are no UTF-8
    parts = [text for text in (prompt, piped) if text and text.strip()]
    if not parts and not options["images"]:
        raise ConfigError("prompt: is missing: pass a model and a prompt, or pipe it in; for conversations use `locallab chat`")
    if options["language"] and not options["task"]:
        raise ConfigError("--language: requires --task")
    if options["system"] and options["task"]:
        raise ConfigError("--system: cannot be combined with --task, which has its own system message")
    files = [data_url(name) if options["task"] else part(name) for name in options["images"]]  # before a model is loaded
    with session(model, url, api_key, mmproj) as (server, model_id):
        answer = _ask(server, model_id, "\n\n".join(parts), files, options)
        if as_json:
            click.echo(json.dumps(_whole(model_id, answer)))
            return
        with plain() as writer:
            for piece in answer:
                writer.write(piece.text)


def _ask(server: ApiClient, model: str, prompt: str, files: Sequence[Any], options: Mapping[str, Any]) -> Iterator[Piece]:
    sampling = {name: options[name] for name in ("max_tokens", "temperature") if options[name] is not None}
    if options["task"]:
        body = {"prompt": prompt, "model": model, "language": options["language"], **({"images": files} if files else {})}
        return server.assist(options["task"], {**body, **sampling})
    system = [{"role": "system", "content": options["system"]}] if options["system"] else []
    return server.chat(model, [*system, {"role": "user", "content": content(prompt, files)}], sampling)


def _whole(model: str, answer: Iterator[Piece]) -> dict[str, Any]:
    pieces = list(answer)
    details = {name: value for piece in pieces for name, value in (piece.whole or {}).items() if name not in ("type", "model")}
    reason = next(piece.finish_reason for piece in pieces if piece.finish_reason)
    return {"model": model, "response": "".join(piece.text for piece in pieces), "finish_reason": reason, **details}
