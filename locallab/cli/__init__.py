"""The `locallab` command, one file per subcommand. A failure is one line on stderr and an exit status.

0: success, or stopped on request. 2: a flag, setting, model name or registry entry is wrong. 130: interrupted. 1: other errors.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from locallab.cli.commands import (
    bench,
    cache,
    chat,
    cluster,
    completion,
    doctor,
    fit,
    import_models,
    keys,
    list_models,
    ps,
    pull,
    rm,
    run,
    serve,
    show,
    version,
)
from locallab.errors import ConfigError, LocalLabError, NotRemovable, UnknownModel
from locallab.settings import variable
from locallab.version import __version__

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class _Group(click.Group):
    def list_commands(self, context: click.Context) -> list[str]:
        """Return the commands in the order of `COMMANDS`, not by name."""
        return list(self.commands)

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> NoReturn:  # type: ignore[override]
        """Run the command and exit. Unlike click's own, report a failure in one line."""
        extra["standalone_mode"] = False
        _tolerate_any_text()
        try:
            status = super().main(args, prog_name or "locallab", **extra)
            sys.stdout.flush()
            sys.exit(status)
        except click.ClickException as error:
            _fail(error.format_message(), error.exit_code)
        except (ConfigError, NotRemovable, UnknownModel) as error:
            _fail(str(error), 2)
        except LocalLabError as error:
            _fail(str(error), 1)
        except (click.Abort, KeyboardInterrupt):
            _fail("interrupted", 130)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
            sys.exit(1)
        except OSError as error:
            _report(error, f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
        except Exception as error:
            _report(error, f"internal error: {type(error).__name__}: {error}")


def _tolerate_any_text() -> None:
    """Replace what cannot be decoded or encoded: old notes that are piped in, an answer's letters on an ASCII terminal."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _report(error: Exception, message: str) -> NoReturn:
    """Fail with an error that no part of LocalLab has foreseen, whose traceback is for those who ask for it."""
    if os.environ.get(variable("log_level")) == "debug":
        traceback.print_exception(error)
        _fail(message, 1)
    _fail(f"{message}; {variable('log_level')}=debug shows where", 1)


def _fail(message: str, status: int) -> NoReturn:
    click.echo(f"locallab: {' '.join(message.split())}", err=True)
    sys.exit(status)


@click.group(cls=_Group, invoke_without_command=True, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="locallab", message="%(prog)s %(version)s")
@click.pass_context
def main(context: click.Context) -> None:
    """A private, fast, OpenAI-style endpoint on your own machine.

    Exit status: 0 when the command succeeds or is stopped on request; 2 when a flag, a setting, a model name or a registry
    entry is wrong; 130 when Ctrl-C interrupts it; 1 for any other error. The error is one line on stderr.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


COMMANDS = (
    serve,
    pull,
    list_models,
    ps,
    cluster,
    rm,
    show,
    run,
    chat,
    fit,
    keys,
    cache,
    import_models,
    bench,
    doctor,
    version,
    completion,
)

for each in COMMANDS:
    main.add_command(each.command)
