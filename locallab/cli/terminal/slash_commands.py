"""The commands inside `locallab chat`: /model, /system, /save and so on."""

from __future__ import annotations

import difflib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from locallab.cli.tables import note
from locallab.errors import LocalLabError

if TYPE_CHECKING:
    from locallab.cli.terminal.conversation import Talk

COMMANDS = ("model", "system", "image", "save", "clear", "help", "exit", "quit", "bye")
HELP = '''\
  /model [NAME]   switch to another model, or list the models
  /system [TEXT]  set the system message, or remove it
  /image FILE     send a picture or a sound with the next message; the path of one in a message does the same
  /save FILE      save the conversation to FILE: JSON if it ends in .json, else Markdown
  /clear          start a new conversation; the system message stays
  /help           show these lines
  /exit           exit, as do Ctrl-D and Ctrl-C twice

A line that ends in a backslash continues on the next; """ begins and ends a message of several lines.
Ctrl-C stops an answer. Put a space before a message that begins with /.'''


class Leave(Exception):
    """The user wants to leave."""


def obey(talk: Talk, line: str) -> None:
    """Run the command in a line that begins with /, and print errors. Raises Leave."""
    name, _, rest = line[1:].partition(" ")
    argument = rest.strip()
    try:
        match name.lower():
            case "model" if argument:
                talk.change(argument, note)
                note(f"{talk.model} answers from now on")
            case "model":
                for each in talk.models():
                    note(f"{'*' if each == talk.model else ' '} {each}")
            case "system":
                talk.system = argument
                note("the system message is set" if argument else "the system message is removed")
            case "image" if argument:
                talk.attach(argument)
                note(f"{argument} goes with the next message")
            case "image":
                note("/image FILE: the name of the file is missing")
            case "save":
                _save(talk, argument)
            case "clear":
                talk.messages.clear()
                talk.attached.clear()
                note("started a new conversation")
            case "help":
                note(HELP)
            case "exit" | "quit" | "bye":
                raise Leave
            case unknown:
                near = difflib.get_close_matches(unknown, COMMANDS, n=1)
                note(f"unknown command /{name}; " + (f"did you mean /{near[0]}?" if near else "/help lists the commands"))
    except LocalLabError as error:
        note(str(error))


def _save(talk: Talk, name: str) -> None:
    if not name:
        note("/save FILE: the name of the file is missing")
        return
    path = Path(os.path.expanduser(name))
    as_json = path.suffix == ".json"
    text = json.dumps(talk.conversation, ensure_ascii=False, indent=2) + "\n" if as_json else talk.markdown()
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        note(f"{path}: {error.strerror or error}")
        return
    note(f"saved to {path}")
