"""`locallab keys`: API keys. Running servers notice changes without a restart."""

from __future__ import annotations

import dataclasses
import datetime
import json
import sys
from typing import TYPE_CHECKING, Any, get_args

import click

from locallab import redis_link, settings
from locallab.cli.settings_options import options
from locallab.cli.tables import table
from locallab.errors import LocalLabError
from locallab.keys import Key, KeyStore, Role, Tier
from locallab.settings import ServerSettings

if TYPE_CHECKING:
    from locallab.server.usage import Slot, Spent

shared = options(ServerSettings, only=("redis_url",))


@click.group("keys")
def command() -> None:
    """Create, list and revoke API keys.

    Servers on this machine require a key as soon as one exists, and notice changes without a restart.
    """


@command.command()
@click.option("--name", required=True, help="owner of the key; unique")
@click.option("--tier", type=click.Choice(get_args(Tier)), default="free", show_default=True, help="rate limit of the key")
@click.option(
    "--role",
    type=click.Choice(get_args(Role)),
    default="use",
    show_default=True,
    help="what the key may do: use models, or also load, unload and fetch them",
)
@click.option("--json", "as_json", is_flag=True, help="print an object of key, id, name, tier, role and created")
def create(name: str, tier: Tier, role: Role, as_json: bool) -> None:
    """Create a key and print it. It is shown only once, as LocalLab keeps only its hash."""
    store = KeyStore()
    key, secret = store.create(name, tier, role)
    try:
        click.echo(json.dumps({"key": secret, **_entry(key)}) if as_json else secret)
        sys.stdout.flush()
    except OSError:
        store.revoke(key.id)  # nobody has seen it
        raise
    click.echo("This key is shown only now; keep it. Clients send it as Authorization: Bearer.", err=True)


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="print a list of objects")
def show(as_json: bool) -> None:
    """List the keys by id and name; the keys themselves are not stored.

    The role says what a key may do. Keys made before there were roles are admin, as they could do everything.
    """
    keys = KeyStore().read()
    if as_json:
        click.echo(json.dumps([_entry(key) for key in keys]))
        return
    created = (datetime.datetime.fromtimestamp(key.created).strftime("%Y-%m-%d %H:%M") for key in keys)
    rows = ((key.id, key.name, key.tier, key.role, time) for key, time in zip(keys, created, strict=True))
    table(("id", "name", "tier", "role", "created"), rows)


@command.command()
@click.argument("name")
def revoke(name: str) -> None:
    """Revoke a key by NAME or id."""
    store = KeyStore()
    key = store.revoke(name)
    click.echo(f"revoked {key.name} ({key.id})")
    if not store.read():
        click.echo("No key is left: a server on a loopback address requires none.", err=True)


@command.command()
@shared
@click.option("--days", type=click.IntRange(1, 36_500), default=30, show_default=True, help="days to look back")
@click.option("--json", "as_json", is_flag=True, help="print a list of objects")
def usage(redis_url: str | None, days: int, as_json: bool) -> None:
    """Show the requests and tokens of each key by day and model, as this machine's servers have counted them.

    With --redis-url: as all servers have counted them that share a Redis. Days are in UTC. Tokens of prompts include cached
    ones. Requests without a key have no name.
    """
    from locallab.server.usage import first_day

    counts = _usage(_url(redis_url), first_day(days))
    if as_json:
        click.echo(json.dumps([{**slot._asdict(), **dataclasses.asdict(spent)} for slot, spent in counts.items()]))
        return
    table(
        ("day", "id", "name", "model", "requests", "prompt", "cached", "completion"),
        (
            (slot.day, slot.key, spent.name, slot.model, *map(str, dataclasses.astuple(spent)[1:]))
            for slot, spent in counts.items()
        ),
    )


def _url(redis_url: str | None) -> str | None:
    """Return the address of Redis in the flag, else that in the environment; an empty flag is none."""
    return settings.environment(ServerSettings).get("redis_url") if redis_url is None else redis_url or None


def _usage(url: str | None, since: str) -> dict[Slot, Spent]:
    import sqlite3

    from locallab.server.shared_usage import RedisUsage
    from locallab.server.usage import UsageFile

    if url is not None:
        with redis_link.asking(url) as client:
            return RedisUsage(client).read(since)
    file = UsageFile()
    try:
        return file.read(since)
    except (OSError, sqlite3.Error) as error:
        raise LocalLabError(f"{file.path}: the file of usage cannot be read: {error}") from None


def _entry(key: Key) -> dict[str, Any]:
    return {"id": key.id, "name": key.name, "tier": key.tier, "role": key.role, "created": key.created}
