"""The `locallab` command. One file per subcommand; a failure is one line on stderr and an exit status.

0: done, or stopped as asked. 2: a flag, setting or registry entry is wrong. 1: anything else that failed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from locallab import __version__
from locallab.cli import doctor, fit, imports, keys, serve
from locallab.errors import ConfigError, LocalLabError, UnknownModel


class _Group(click.Group):
    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> NoReturn:  # type: ignore[override]
        """Runs the command and exits. Unlike click's own, tells a failure in one line."""
        extra["standalone_mode"] = False
        try:
            sys.exit(super().main(args, prog_name or "locallab", **extra))
        except click.ClickException as error:
            _fail(error.format_message(), error.exit_code)
        except (ConfigError, UnknownModel) as error:
            _fail(str(error), 2)
        except LocalLabError as error:
            _fail(str(error), 1)
        except click.Abort:
            _fail("interrupted", 130)


def _fail(message: str, status: int) -> NoReturn:
    click.echo(f"locallab: {' '.join(message.split())}", err=True)
    sys.exit(status)


@click.group(cls=_Group, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="locallab", message="%(prog)s %(version)s")
@click.pass_context
def main(context: click.Context) -> None:
    """A private, fast, OpenAI-style endpoint on a machine of your own."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


main.add_command(serve.command)
main.add_command(imports.command)
main.add_command(keys.command)
main.add_command(fit.command)
main.add_command(doctor.command)
