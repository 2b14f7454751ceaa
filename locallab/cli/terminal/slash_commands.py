"""The commands inside `locallab chat`: /model, /set, /retry and so on."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import os
import signal
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence

import click

from locallab.cli.tables import table
from locallab.cli.terminal import sampling_fields, saved_files
from locallab.cli.terminal.answer_view import View, say, show_calls
from locallab.cli.terminal.conversation import Pieces, Talk
from locallab.cli.terminal.markdown_view import Reasoning
from locallab.errors import ConfigError, LocalLabError

UNSET = "default"
MODES = typing.get_args(Reasoning)
SWITCH = ("on", "off")

HINTS = '''
Tab completes commands, models, fields and files. Ctrl-C stops an answer.
A line that ends in a backslash continues on the next; """ begins and ends a
message of several lines. A message that begins with / needs a space before it.
The path of a picture or a sound in a message sends the file along.'''


class Leave(Exception):
    """The user wants to leave."""


@dataclasses.dataclass(frozen=True)
class Command:
    """A command: what follows its name, what it does, and what may follow.

    `run` returns an answer to show, or None. `complete` receives the beginning of the argument, and returns arguments; those
    that do not begin so are not shown.
    """

    argument: str
    about: str
    run: Callable[[Talk, View, str], Pieces | None]
    complete: Callable[[Talk, str], Iterable[str]] = lambda talk, begun: ()


def obey(talk: Talk, view: View, line: str) -> Pieces | None:
    """Run the command in a line that begins with /; return an answer to show, if the command asks for one. Errors are printed.

    Mutates `talk` and `view`. Raises Leave.
    """
    name, _, rest = line[1:].partition(" ")
    command = COMMANDS.get(name.lower())
    if command is None:
        near = difflib.get_close_matches(name.lower(), COMMANDS, n=1)
        say(f"unknown command /{name}; " + (f"did you mean /{near[0]}?" if near else "/help lists the commands"))
        return None
    if command.argument == "FILE" and not rest.strip():
        say(f"/{name} FILE: the name of the file is missing")
        return None
    try:
        return command.run(talk, view, rest.strip())
    except LocalLabError as error:
        say(str(error))
        return None


def completions(talk: Talk, line: str) -> Sequence[str]:
    """Return the lines that a line may become: commands, and what may follow them."""
    if not line.startswith("/"):
        return ()
    name, space, begun = line[1:].partition(" ")
    if not space:
        return [f"/{each} " if command.argument else f"/{each}" for each, command in COMMANDS.items() if each.startswith(name)]
    command = COMMANDS.get(name)
    with contextlib.suppress(LocalLabError):
        if command is not None:
            return [f"/{name} {each}" for each in command.complete(talk, begun) if each.lower().startswith(begun.lower())]
    return ()


def _model(talk: Talk, view: View, name: str) -> None:
    if name:
        talk.change(name, say)
        say(f"{talk.model} answers from now on")
    else:
        for each in talk.models():
            say(f"{'*' if each == talk.model else ' '} {each}")


def _system(talk: Talk, view: View, text: str) -> None:
    talk.system = text
    say("the system message is set" if text else "the system message is removed")


def _set(talk: Talk, view: View, argument: str) -> None:
    name, _, text = argument.partition(" ")
    if not name:
        known = sampling_fields.fields()
        names = sorted(known, key=lambda each: each not in talk.sampling)
        rows = [(each, _shown(talk.sampling.get(each)), known[each]) for each in names]
        table(("name", "value", "what it is"), rows)
        return
    name = sampling_fields.named(name)
    value = None if text.strip() in ("", UNSET) else sampling_fields.read(name, text.strip())
    if value is None:
        talk.sampling.pop(name, None)
    else:
        talk.sampling[name] = value
    say(f"{name} is {_shown(value)}" + ("" if text.strip() else f" ({sampling_fields.fields()[name]})"))


def _shown(value: typing.Any) -> str:
    return UNSET if value is None else json.dumps(value, ensure_ascii=False)


def _image(talk: Talk, view: View, name: str) -> None:
    talk.attach(name)
    say(f"{name} goes with the next message")


def _tools(talk: Talk, view: View, name: str) -> None:
    talk.tools = saved_files.tools(name) if name else []
    names = ", ".join(each["function"]["name"] for each in talk.tools)
    say(f"the model may call {names}" if names else "the model has no tools")


def _retry(talk: Talk, view: View, argument: str) -> Pieces:
    return talk.retry()


def _edit(talk: Talk, view: View, argument: str) -> Pieces | None:
    before = talk.question
    text = _edited(before).strip()
    if text in ("", before.strip()):
        say("the message is unchanged")
        return None
    say(text)
    return talk.edit(text)


def _undo(talk: Talk, view: View, argument: str) -> None:
    first, *more = talk.undo().strip().split("\n")
    say(f"took back: {first}{' ...' if more else ''}")


def _clear(talk: Talk, view: View, argument: str) -> None:
    talk.restart()
    talk.attached.clear()
    say("started a new conversation")


def _save(talk: Talk, view: View, name: str) -> None:
    say(f"saved to {saved_files.save(talk, name)}")


def _load(talk: Talk, view: View, name: str) -> None:
    count = saved_files.load(talk, name)
    say(f"loaded {count} message{'' if count == 1 else 's'} from {name}")
    if talk.messages and talk.messages[-1]["role"] == "user":
        say("the last one has no answer: /retry asks for it")
    show_calls(talk)


def _stats(talk: Talk, view: View, argument: str) -> None:
    if argument:
        view.stats = _one_of(SWITCH, argument) == "on"
    say(f"figures after each answer are {SWITCH[not view.stats]}")


def _reasoning(talk: Talk, view: View, argument: str) -> None:
    if argument:
        view.reasoning = _one_of(MODES, argument)
        say({"show": "reasoning is shown", "fold": "reasoning is one line", "hide": "reasoning is hidden"}[view.reasoning])
    else:
        say(talk.thought.strip() or "the last answer has no reasoning")


def _help(talk: Talk, view: View, argument: str) -> None:
    usages = [(f"/{name} {command.argument}".rstrip(), command.about) for name, command in COMMANDS.items() if command.about]
    width = max(len(usage) for usage, _ in usages)
    say("\n".join(f"  {usage:{width}}  {about}" for usage, about in usages) + "\n" + HINTS)


def _leave(talk: Talk, view: View, argument: str) -> None:
    raise Leave


def _one_of(known: Sequence[str], word: str) -> typing.Any:
    if word.lower() not in known:
        raise ConfigError(f"{word}: must be {', '.join(known[:-1])} or {known[-1]}")
    return word.lower()


def _edited(text: str) -> str:
    """Return the text as the user's editor leaves it. Raises ConfigError if there is none, or if it fails."""
    if not sys.stdin.isatty():
        raise ConfigError("/edit: an editor needs a terminal")
    # Ctrl-C in the editor is for the editor. A handler, unlike SIG_IGN, is not inherited by it.
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        return click.edit(text, extension=".md") or ""
    except click.ClickException as error:
        raise ConfigError(f"{error.format_message()}; set VISUAL or EDITOR to an editor that works") from None
    except (OSError, ValueError) as error:  # quotation marks without an end, a file that is not UTF-8
        raise ConfigError(f"the editor's file cannot be used: {error}") from None
    finally:
        signal.signal(signal.SIGINT, before)


def _names(talk: Talk, begun: str) -> Iterable[str]:
    return talk.known


def _settings(talk: Talk, begun: str) -> Iterable[str]:
    name, space, _ = begun.partition(" ")
    return [f"{name} {UNSET}"] if space else [f"{each} " for each in sampling_fields.fields()]


def _files(talk: Talk, begun: str) -> Iterator[str]:
    """Yield the files and folders that begin like a path; hidden ones only if it says so."""
    folder, slash, start = begun.rpartition("/")
    with contextlib.suppress(OSError, ValueError), os.scandir(os.path.expanduser(folder + slash) or ".") as found:
        for each in sorted(found, key=lambda entry: entry.name):
            if each.name.isprintable() and (start.startswith(".") or not each.name.startswith(".")):
                yield f"{folder}{slash}{each.name}{'/' if each.is_dir() else ''}"


COMMANDS = {
    "model": Command("[NAME]", "switch to another model, or list the models", _model, _names),
    "system": Command("[TEXT]", "set the system message, or remove it", _system),
    "set": Command("[NAME [VALUE]]", "set, unset or list sampling fields and max_tokens", _set, _settings),
    "image": Command("FILE", "send a picture or a sound with the next message", _image, _files),
    "tools": Command("[FILE]", "tools that the model may call, from a JSON file", _tools, _files),
    "retry": Command("", "ask the last question again", _retry),
    "edit": Command("", "edit the last question, and ask it instead", _edit),
    "undo": Command("", "take the last question and its answer back", _undo),
    "clear": Command("", "start anew; the system message stays", _clear),
    "save": Command("FILE", "save as JSON if FILE ends in .json, else Markdown", _save, _files),
    "load": Command("FILE", "go on with a conversation that was saved as JSON", _load, _files),
    "stats": Command("[on|off]", "tokens/s, time to the first, cached of the prompt", _stats, lambda talk, begun: SWITCH),
    "reasoning": Command(
        "[show|fold|hide]", "how to show it; alone: that of the last answer", _reasoning, lambda talk, begun: MODES
    ),
    "help": Command("", "show these lines", _help),
    "exit": Command("", "exit, as do Ctrl-D and Ctrl-C twice", _leave),
    "quit": Command("", "", _leave),
    "bye": Command("", "", _leave),
}
