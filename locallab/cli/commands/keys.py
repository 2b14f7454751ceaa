"""`locallab keys`: API keys. Running servers notice changes without a restart."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, get_args

import click

from locallab import redis_link, settings
from locallab.cli.settings_options import options
from locallab.cli.tables import table
from locallab.errors import LocalLabError
from locallab.keys import Key, KeyStore, Role, SharedKeyStore, Tier
from locallab.settings import ServerSettings

if TYPE_CHECKING:
    from locallab.server.usage import Slot, Spent

redis_option = options(ServerSettings, only=("redis_url",))


@click.group("keys")
def command() -> None:
    """Create, list and revoke API keys.

    Servers on this machine require a key as soon as one exists, and notice changes without a restart. With --redis-url (or
    LOCALLAB_REDIS_URL) keys are in Redis, and valid on all servers that share it; those of this machine stay valid on it.
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
@redis_option
@click.option("--json", "as_json", is_flag=True, help="print an object of key, id, name, tier, role and created")
def create(name: str, tier: Tier, role: Role, redis_url: str | None, as_json: bool) -> None:
    """Create a key and print it. It is shown only once, as LocalLab keeps only its hash."""
    url = _url(redis_url)
    with _stores(url) as stores:
        key, secret = stores[0].create(name, tier, role)
    try:
        click.echo(json.dumps({"key": secret, **_entry(key)}) if as_json else secret)
        sys.stdout.flush()
    except OSError:
        with _stores(url) as stores:
            stores[0].revoke(key.id)  # nobody has seen it
        raise
    click.echo("This key is shown only now; keep it. Clients send it as Authorization: Bearer.", err=True)


@command.command("list")
@redis_option
@click.option("--json", "as_json", is_flag=True, help="print a list of objects")
def show(redis_url: str | None, as_json: bool) -> None:
    """List the keys by id and name; the keys themselves are not stored.

    The role says what a key may do. Keys made before there were roles are admin, as they could do everything. With --redis-url
    the keys in Redis come first, then those of this machine.
    """
    with _stores(_url(redis_url)) as stores:
        found = [(key, isinstance(store, SharedKeyStore)) for store in stores for key in store.read()]
    several = len(stores) > 1
    if as_json:
        click.echo(json.dumps([{**_entry(key), **({"shared": shared} if several else {})} for key, shared in found]))
        return
    rows = []
    for key, shared in found:
        created = datetime.datetime.fromtimestamp(key.created).strftime("%Y-%m-%d %H:%M")
        place = ("all servers" if shared else "this machine",) if several else ()
        rows.append((key.id, key.name, key.tier, key.role, created, *place))
    table(("id", "name", "tier", "role", "created", *(("valid on",) if several else ())), rows)


@command.command()
@click.argument("name")
@redis_option
def revoke(name: str, redis_url: str | None) -> None:
    """Revoke a key by NAME or id; with --redis-url one in Redis, or else one of this machine."""
    with _stores(_url(redis_url)) as stores:
        holders = [store for store in stores if any(name in (key.name, key.id) for key in store.read())]
        key = (holders or stores)[0].revoke(name)
        left = any(store.read() for store in stores)
    click.echo(f"revoked {key.name} ({key.id})")
    if not left:
        click.echo("No key is left: a server on a loopback address requires none.", err=True)


@command.command()
@redis_option
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


@contextlib.contextmanager
def _stores(url: str | None) -> Iterator[Sequence[KeyStore | SharedKeyStore]]:
    """Yield where keys are; a new one goes to the first. Raises ConfigError, and LocalLabError when Redis fails."""
    if url is None:
        yield [KeyStore()]
        return
    with redis_link.asking(url) as client:
        yield [SharedKeyStore(client), KeyStore()]


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
