"""Settings as command-line flags: --kebab-case options with the types, ranges and help texts of the settings classes."""

from __future__ import annotations

import contextlib
import types
import typing
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import click
from click.shell_completion import CompletionItem
from msgspec import Meta

from locallab import settings
from locallab.errors import ConfigError, LocalLabError
from locallab.settings import ServerSettings

Command = TypeVar("Command", bound=Callable[..., Any])
Layer = tuple[str, Mapping[str, Any]]


def flag(name: str) -> str:
    """Return the flag of a setting."""
    return "--" + name.replace("_", "-")


def options(*classes: type, only: Container[str] | None = None) -> Callable[[Command], Command]:
    """Add to a click command one option per setting of `classes`, or per setting in `only`.

    Secrets get no option. The command receives None for an unused option.
    """

    def decorate(command: Command) -> Command:
        found = [field for cls in classes for field in settings.fields(cls) if only is None or field[0] in only]
        for name, annotated, default in reversed(found):
            if settings.is_secret(annotated):
                continue
            kind, words = _type(annotated), settings.words(annotated)
            switch = flag(name)
            opposite = f"--no-{switch.removeprefix('--')}"
            alone: dict[str, Any] = {}
            if kind is click.BOOL:
                switch += f"/{opposite}"
            elif words:
                alone = {"is_flag": False, "flag_value": words[0]}
                command = click.option(opposite, f"no_{name}", is_flag=True, help=f"the opposite of {switch}")(command)
            if isinstance(default, bool):
                default = "on" if default else "off"
            text = settings.describe(annotated) + ("" if default is None else f"  [default: {default}]")
            each = settings.each(annotated)
            metavar = each or {"integer range": "INTEGER", "float range": "NUMBER"}.get(kind.name)
            complete = model_names if name == "model" else None
            option = click.option(
                *(switch, name),
                type=kind,
                default=None,
                help=text,
                metavar=metavar,
                shell_complete=complete,
                multiple=each is not None,
                callback=_joined if each else None,
                **alone,
            )
            command = option(command)
        return command

    return decorate


def layers(cls: type, flags: Mapping[str, Any]) -> Sequence[Layer]:
    """Return the settings of `cls` in the environment and in `flags`, one layer per value, for `settings.resolve`.

    The origin of a layer is the variable or flag, so that an error names it.
    """
    used = {name: flags[name] for name, _, _ in settings.fields(cls) if flags.get(name) is not None}
    used |= {name: False for name, _, _ in settings.fields(cls) if flags.get(f"no_{name}")}
    return [
        *((settings.variable(name), {name: value}) for name, value in settings.environment(cls).items()),
        *((flag(name), {name: value}) for name, value in used.items()),
    ]


def server_settings(**flags: Any) -> ServerSettings:
    """Return the server settings of the environment and `flags`. Raises ConfigError."""
    found = layers(ServerSettings, flags)
    server = settings.resolve(ServerSettings, *found)
    check_address(server, found)
    return server


def check_address(server: ServerSettings, found: Sequence[Layer]) -> None:
    """Raise ConfigError if the settings have a Unix socket, and their layers an address too."""
    for origin, values in found if server.uds else ():
        if not {"host", "port"}.isdisjoint(values):
            raise ConfigError(f"{origin}: cannot be combined with --uds, which is an address of its own")


def unknown(environ: Mapping[str, str], *classes: type) -> list[str]:
    """Return the LOCALLAB_* variables that set nothing, most likely misspelled."""
    known = {settings.variable(name) for cls in classes for name, _, _ in settings.fields(cls)}
    known |= {settings.variable(name) for name in ("home", "config", "url", "chat_history", "cluster")}
    return sorted(name for name in environ if name.startswith("LOCALLAB_") and name not in known)


def _joined(context: click.Context, parameter: click.Parameter, values: Sequence[str] | None) -> str | None:
    """Return the values of an option that was given several times as one text."""
    return ",".join(values or ()) or None


def _type(annotated: Any) -> click.ParamType[Any]:
    """Return the click type of an annotated type, with its limits."""
    base, *notes = typing.get_args(annotated)
    if words := settings.words(annotated):
        return click.Choice(words)
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
        return click.FloatRange(meta.ge if meta.gt is None else meta.gt, meta.le, min_open=meta.gt is not None)
    return {bool: click.BOOL, int: click.INT, str: click.STRING}[base]


def model_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete a model: registry ids, or files if none matches."""
    from locallab.models import Registry

    found: list[CompletionItem] = []
    with contextlib.suppress(LocalLabError):  # the command reports a broken registry; a completion must not
        registry = Registry.discover(server_settings().registry)
        specs = [spec for spec in registry.with_adapters if spec.id.lower().startswith(incomplete.lower())]
        found = [CompletionItem(spec.id, help=spec.description) for spec in specs]
    return found or [CompletionItem(incomplete, type="file")]
