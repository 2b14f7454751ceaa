"""`locallab chat`: a conversation in the terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from locallab.cli import api_client
from locallab.cli.settings_options import model_names
from locallab.cli.tables import note
from locallab.errors import LocalLabError, NoServer

if TYPE_CHECKING:
    from locallab.cli.terminal.conversation import Talk
    from locallab.cli.terminal.line_input import Lines


@click.command("chat")
@click.argument("model", required=False, shell_complete=model_names)
@api_client.options
@click.option("--system", default="", help="the system message")
@click.option("--max-tokens", type=click.IntRange(min=1), metavar="INTEGER", help="longest answer, in tokens")
@click.option("--temperature", type=click.FloatRange(min=0), metavar="NUMBER", help="how freely it is drawn; 0: the likeliest")
def command(model: str | None, url: str | None, api_key: str | None, system: str, **sampling: Any) -> None:
    """Talk to MODEL, or to the one that the server has loaded.

    Where no server runs, the model is loaded here. /help tells of the commands inside; Ctrl-C stops an answer, Ctrl-D leaves.
    """
    from locallab.cli.server_session import session
    from locallab.cli.terminal.conversation import Talk
    from locallab.cli.terminal.line_input import Lines

    given = {name: value for name, value in sampling.items() if value is not None}
    with session(model, url, api_key) as (server, model_id):
        talk = Talk(server, model_id, system, given)
        lines = Lines(lambda text: completions(talk, text))
        if lines.typed:
            note(f"{model_id} at {server.url}; /help tells of the commands, Ctrl-D leaves")
        _converse(talk, lines)


def completions(talk: Talk, line: str) -> Sequence[str]:
    """What a line may become: commands, and models behind /model."""
    from locallab.cli.terminal.slash_commands import COMMANDS

    if line.startswith("/model "):
        with contextlib.suppress(LocalLabError):
            return [whole for model in talk.known if (whole := f"/model {model}").lower().startswith(line.lower())]
        return ()
    return [whole for name in COMMANDS if line.startswith("/") and (whole := f"/{name}").startswith(line)]


def _converse(talk: Talk, lines: Lines) -> None:
    """Until the user leaves. Ctrl-C leaves too when it comes twice with nothing in between."""
    from locallab.cli.terminal.slash_commands import Leave, obey

    interrupted = False
    while True:
        try:
            message = lines.read()
        except KeyboardInterrupt:
            click.echo()
            if interrupted and not lines.left:
                return
            if not lines.left:
                note("Ctrl-C again, or Ctrl-D, leaves")
            interrupted = not lines.left
            continue
        if message is None:
            if lines.typed:
                click.echo()
            return
        interrupted = False
        if message.startswith("/"):
            try:
                obey(talk, message)
            except Leave:
                return
        elif message.strip():
            interrupted = not _answer(talk, message.strip(), lines.typed)


def _answer(talk: Talk, message: str, typed: bool) -> bool:
    """Shows the answer; returns whether it came to its end without Ctrl-C. What goes wrong is told, but ends a conversation
    that nobody types, as it does when the server is gone."""
    from locallab.cli.terminal.markdown_view import writing

    reason = None
    try:
        with contextlib.closing(talk.ask(message)) as pieces, writing() as writer:
            for piece in pieces:
                writer.think(piece.thought)
                writer.write(piece.text)
                reason = piece.finish_reason or reason
    except KeyboardInterrupt:
        note("(stopped)")
        return False
    except LocalLabError as error:
        if isinstance(error, NoServer) or not typed:
            raise
        click.echo(f"locallab: {error}", err=True)
    if reason == "length":
        note("(cut off: --max-tokens, or the end of the context)")
    if typed:
        click.echo()
    return True
