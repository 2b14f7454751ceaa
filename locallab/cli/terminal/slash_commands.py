"""The commands inside `locallab chat`: /model, /system, /save and so on."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from locallab.cli.tables import note
from locallab.errors import LocalLabError

if TYPE_CHECKING:
    from locallab.cli.terminal.conversation import Talk

HELP = '''\
  /model [NAME]   go on with another model, or list those there are
  /system [TEXT]  set the system message, or take it away
  /save FILE      write the conversation to FILE: JSON if it ends in .json, else Markdown
  /clear          begin a new conversation; the system message stays
  /help           these lines
  /exit           leave; so does Ctrl-D, or Ctrl-C twice

A line that ends in a backslash goes on in the next; """ begins and ends a message of several lines.
Ctrl-C stops an answer. A message that begins with / is sent when a space goes before it.'''


class Leave(Exception):
    """The user wants to leave."""


def obey(talk: Talk, line: str) -> None:
    """Does what a line that begins with / says. Raises Leave; what cannot be done is told."""
    name, _, rest = line[1:].partition(" ")
    command = COMMANDS.get(name.lower())
    if command is None:
        near = difflib.get_close_matches(name.lower(), COMMANDS, n=1)
        note(f"/{name} is no command; " + (f"did you mean /{near[0]}?" if near else "/help lists them"))
        return
    try:
        command(talk, rest.strip())
    except LocalLabError as error:
        note(str(error))


def _model(talk: Talk, name: str) -> None:
    if not name:
        for each in talk.models():
            note(f"{'*' if each == talk.model else ' '} {each}")
        return
    talk.change(name, note)
    note(f"{talk.model} answers from now on")


def _system(talk: Talk, text: str) -> None:
    talk.system = text
    note("this is the system message from now on" if text else "there is no system message now")


def _save(talk: Talk, name: str) -> None:
    if not name:
        note("/save FILE: name the file")
        return
    path = Path(name).expanduser()
    as_json = path.suffix == ".json"
    text = json.dumps(talk.conversation, ensure_ascii=False, indent=2) + "\n" if as_json else talk.markdown()
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        note(f"{path}: {error.strerror or error}")
        return
    note(f"saved to {path}")


def _clear(talk: Talk, rest: str) -> None:
    talk.messages.clear()
    note("a new conversation")


def _help(talk: Talk, rest: str) -> None:
    note(HELP)


def _exit(talk: Talk, rest: str) -> None:
    raise Leave


COMMANDS: Mapping[str, Callable[[Talk, str], None]] = {
    "model": _model,
    "system": _system,
    "save": _save,
    "clear": _clear,
    "help": _help,
    "exit": _exit,
    "quit": _exit,
    "bye": _exit,
}
