"""Settings as flags: --kebab-case options, their types, ranges and help texts, all taken from the settings classes."""

from __future__ import annotations

import contextlib
import os
import types
import typing
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import click
from click.shell_completion import CompletionItem
from msgspec import Meta

from locallab import settings
from locallab.errors import LocalLabError
from locallab.settings import ServerSettings

Command = TypeVar("Command", bound=Callable[..., Any])
Layer = tuple[str, Mapping[str, Any]]


def flag(name: str) -> str:
    """The flag of a setting."""
    return "--" + name.replace("_", "-")


def options(*classes: type, only: Container[str] | None = None) -> Callable[[Command], Command]:
    """Gives a click command one option for each setting of `classes` that is no secret, or for those called `only`; one not
    used is passed as None."""

    def decorate(command: Command) -> Command:
        found = [field for cls in classes for field in settings.fields(cls) if not settings.is_secret(field[1])]
        for field in reversed(found):
            if only is None or field[0] in only:
                command = _option(*field)(command)
        return command

    return decorate


def layers(cls: type, flags: Mapping[str, Any]) -> Sequence[Layer]:
    """What the environment and `flags` say about `cls`, for `settings.resolve`: one layer a value, under its user's name."""
    environment = settings.environment(cls, os.environ)
    given = {name: flags[name] for name, _, _ in settings.fields(cls) if flags.get(name) is not None}
    return [
        *((f"LOCALLAB_{name.upper()}", {name: value}) for name, value in environment.items()),
        *((flag(name), {name: value}) for name, value in given.items()),
    ]


def unknown(environ: Mapping[str, str], *classes: type) -> list[str]:
    """The LOCALLAB_* variables that are no setting of `classes`: most likely a slip."""
    known = {f"LOCALLAB_{name.upper()}" for cls in classes for name, _, _ in settings.fields(cls)} | {
        "LOCALLAB_HOME",
        "LOCALLAB_CONFIG",
        "LOCALLAB_URL",
    }
    return sorted(name for name in environ if name.startswith("LOCALLAB_") and name not in known)


def _option(name: str, annotated: Any, default: Any) -> Callable[[Command], Command]:
    text = settings.describe(annotated)
    kind = _type(annotated)
    switch = flag(name)
    if kind is click.BOOL:
        switch += f"/--no-{switch.removeprefix('--')}"
        default = "on" if default else "off"
    help_text = text if default is None else f"{text}  [default: {default}]"
    metavar = {"integer range": "INTEGER", "float range": "NUMBER"}.get(kind.name)
    names = model_names if name == "model" else None
    return click.option(switch, name, type=kind, default=None, help=help_text, metavar=metavar, shell_complete=names)


def _type(annotated: Any) -> click.ParamType[Any]:
    """The click type of an annotated type, within the limits it states."""
    base, *notes = typing.get_args(annotated)
    meta = next(note for note in notes if isinstance(note, Meta))
    if types.NoneType in typing.get_args(base):
        (base,) = (each for each in typing.get_args(base) if each is not types.NoneType)
        if typing.get_origin(base) is Annotated:
            return _type(base)
    if typing.get_origin(base) is Literal:
        return click.Choice(typing.get_args(base))
    if base is int and (meta.ge, meta.le) != (None, None):
        return click.IntRange(meta.ge, meta.le)  # type: ignore[arg-type]
    if base is float:
        return click.FloatRange(meta.ge, meta.le)
    return {bool: click.BOOL, int: click.INT, str: click.STRING}[base]


def model_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes a model: the names of the registry, and files."""
    from locallab.models import Registry

    found: list[CompletionItem] = []
    with contextlib.suppress(LocalLabError):  # a broken registry is told by the command, not in the middle of a word
        given = settings.resolve(ServerSettings, *layers(ServerSettings, {}))
        specs = [spec for spec in Registry.discover(given.registry) if spec.id.lower().startswith(incomplete.lower())]
        found = [CompletionItem(spec.id, help=spec.description) for spec in specs]
    return found or [CompletionItem(incomplete, type="file")]
