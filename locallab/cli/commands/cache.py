"""`locallab cache`: the prefixes that `locallab serve --cache-disk` keeps on disk. Running servers need not be stopped."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from locallab import cache_files, settings
from locallab.cli.settings_options import layers
from locallab.cli.tables import table
from locallab.errors import ConfigError, LocalLabError
from locallab.settings import EngineSettings
from locallab.units import decimal_bytes

directory_option = click.option(
    "--cache-disk", metavar="DIR", help="directory of the prefixes, or auto; default: LOCALLAB_CACHE_DISK, else auto"
)


@click.group("cache")
def command() -> None:
    """List and remove the prefixes that `locallab serve --cache-disk` keeps on disk."""


@command.command("ls")
@directory_option
@click.option("--json", "as_json", is_flag=True, help="print a list of objects, with all that the states depend on")
def show(cache_disk: str | None, as_json: bool) -> None:
    """List the prefixes by model and owner, most recently used first."""
    found = sorted(_kept(_directory(cache_disk)), key=lambda each: -each["last_used"])
    if as_json:
        click.echo(json.dumps(found))
        return
    rows = (
        (
            each["model"],
            each["owner"] or "-",
            f"{each['prefixes']:,}",
            f"{each['tokens']:,}",
            decimal_bytes(each["size"]),
            datetime.datetime.fromtimestamp(each["last_used"]).strftime("%Y-%m-%d %H:%M"),
        )
        for each in found
    )
    table(("model", "owner", "prefixes", "tokens", "size", "last used"), rows)


@command.command()
@directory_option
@click.option("--yes", "-y", is_flag=True, help="skip the confirmation")
def clear(cache_disk: str | None, yes: bool) -> None:
    """Remove all prefixes. Other files in the directory stay."""
    directory = _directory(cache_disk)
    size = sum(entry.size for entry in cache_files.entries(directory))
    if not yes and not sys.stdin.isatty():
        raise ConfigError("cannot ask for confirmation without a terminal: pass --yes")
    if not yes and not click.confirm(f"Remove all prefixes in {directory}, {decimal_bytes(size)}?", err=True):
        raise LocalLabError("nothing was removed")
    try:
        cache_files.clear(directory)
    except OSError as error:
        raise LocalLabError(f"{error.filename}: cannot be removed: {error.strerror}") from None
    click.echo(f"removed all prefixes in {directory}: {size:,} bytes freed")


def _directory(cache_disk: str | None) -> Path:
    """Return the directory that the flag or the environment names. Raises ConfigError for one that the flag names in vain."""
    found = settings.resolve(EngineSettings, *layers(EngineSettings, {"cache_disk": cache_disk})).cache_disk or "auto"
    directory = settings.cache_directory(found)
    if cache_disk not in (None, "auto") and not directory.is_dir():
        raise ConfigError(f"--cache-disk: there is no directory {directory}")
    return directory


def _kept(directory: Path) -> Iterator[dict[str, Any]]:
    """Describe each folder that has files."""
    found = list(cache_files.entries(directory))
    for folder in sorted({entry.path.parent for entry in found}):
        files = [entry for entry in found if entry.path.parent == folder]
        about = cache_files.read_about(folder) or cache_files.About({})
        yield {
            "model": about.facts.get("model", "?"),
            "owner": about.owner,
            "prefixes": len({entry.prefix for entry in files}),
            "tokens": sum(end - start for _, start, end in {(entry.prefix, entry.start, entry.end) for entry in files}),
            "size": sum(entry.size for entry in files),
            "last_used": max(entry.used for entry in files) // 10**9,
            "depends_on": about.facts,
        }
