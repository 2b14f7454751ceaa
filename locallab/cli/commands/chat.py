"""`locallab chat`: a conversation in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from locallab import settings
from locallab.cli import api_client
from locallab.cli.attachments import begins_with_file, pasted
from locallab.cli.settings_options import model_names
from locallab.cli.tables import note
from locallab.errors import LocalLabError, NoServer

if TYPE_CHECKING:
    from locallab.cli.terminal.answer_view import View
    from locallab.cli.terminal.conversation import Talk
    from locallab.cli.terminal.input_history import InputHistory
    from locallab.cli.terminal.line_input import Lines


@click.command("chat")
@click.argument("model", required=False, shell_complete=model_names)
@api_client.options
@click.option("--system", default="", help="system message")
@click.option("--max-tokens", type=click.IntRange(min=1), metavar="INTEGER", help="maximum tokens per answer")
@click.option("--temperature", type=click.FloatRange(min=0), metavar="NUMBER", help="sampling temperature; 0 is greedy")
@click.option(
    "--history/--no-history",
    default=True,
    envvar=settings.variable("chat_history"),
    help="keep the lines you type for later chats, in a file that only you may read (LOCALLAB_CHAT_HISTORY)  [default: on]",
)
def command(model: str | None, url: str | None, api_key: str | None, system: str, history: bool, **sampling: Any) -> None:
    """Chat with MODEL, or with the server's loaded model.

    Loads the model in this process if no server runs. /help lists the commands of a chat; Ctrl-C stops an answer, Ctrl-D
    exits.
    """
    from locallab.cli.server_session import session
    from locallab.cli.terminal.conversation import Talk
    from locallab.cli.terminal.line_input import Lines, is_typed
    from locallab.cli.terminal.slash_commands import completions

    options = {name: value for name, value in sampling.items() if value is not None}
    with session(model, url, api_key) as (server, model_id):
        talk = Talk(server, model_id, system, options)
        lines = Lines(lambda text: completions(talk, text), _history(api_key) if history and is_typed() else None)
        if lines.typed:
            note(f"{model_id} at {server.url}; /help lists the commands, Ctrl-D exits")
        _converse(talk, lines)


def _history(key: str | None) -> InputHistory | None:
    """Return the lines of earlier chats; None, with a word why, where they cannot be kept."""
    from locallab.cli.terminal.input_history import InputHistory

    path = None
    try:
        path = settings.home() / "chat-history"
        return InputHistory(path, key)
    except (LocalLabError, OSError) as error:
        note(f"the lines you type are not kept: {f'{path}: {error.strerror}' if isinstance(error, OSError) else error}")
        return None


def _converse(talk: Talk, lines: Lines) -> None:
    """Answer messages until the user exits, also by pressing Ctrl-C twice on empty lines."""
    from locallab.cli.terminal.answer_view import View
    from locallab.cli.terminal.slash_commands import Leave

    view = View()
    interrupted = False
    while True:
        try:
            message = lines.read()
        except KeyboardInterrupt:
            click.echo()
            if interrupted and not lines.left:
                return
            if not lines.left:
                note("press Ctrl-C again or Ctrl-D to exit")
            interrupted = not lines.left
            continue
        if message is None:
            if lines.typed:
                click.echo()
            return
        try:
            interrupted = not _respond(talk, view, message, lines.typed)
        except Leave:
            return


def _respond(talk: Talk, view: View, message: str, typed: bool) -> bool:
    """Obey a command, or print the answer to a message; return whether it ended without Ctrl-C.

    Errors are printed, but raised if the server is gone or if nobody types (`typed` is False). Raises Leave.
    """
    from locallab.cli.terminal.answer_view import show
    from locallab.cli.terminal.markdown_view import harmless
    from locallab.cli.terminal.slash_commands import obey

    try:
        if message.startswith("/") and not begins_with_file(message):
            answer = obey(talk, view, message)
        else:
            answer = talk.ask(_attached(talk, message.strip())) if message.strip() else None
        if answer is not None:
            show(talk, answer, view, typed)
    except KeyboardInterrupt:
        note("(stopped)")
        return False
    except LocalLabError as error:
        if isinstance(error, NoServer) or not typed:
            raise
        click.echo(f"locallab: {harmless(str(error))}\n", err=True)
    return True


def _attached(talk: Talk, message: str) -> str:
    """Attach the pictures and sounds whose paths are in a message, if the model takes any; return the rest of it."""
    text, files = pasted(message)
    if not files or not talk.takes_files():
        return message
    for name in files:
        talk.attach(name)
        note(f"{name} goes with this message")
    return text
