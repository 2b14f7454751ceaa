"""`locallab keys`: makes, lists and revokes API keys. Running servers notice; none needs a restart."""

from __future__ import annotations

import datetime
import json
from typing import Any, get_args

import click

from locallab.keys import Key, KeyStore, Tier


@click.group("keys")
def command() -> None:
    """Make, list and revoke API keys.

    Servers on this machine ask for a key as soon as there is one, and notice changes without a restart.
    """


@command.command()
@click.option("--name", required=True, help="whose key it is; no two keys share a name")
@click.option("--tier", type=click.Choice(get_args(Tier)), default="free", show_default=True, help="its rate limit")
@click.option("--json", "as_json", is_flag=True, help="print an object of key, id, name, tier and created")
def create(name: str, tier: Tier, as_json: bool) -> None:
    """Make a key and print it. It is shown this once: only a hash of it is kept."""
    key, secret = KeyStore().create(name, tier)
    click.echo(json.dumps({"key": secret, **_entry(key)}) if as_json else secret)
    click.echo("This key is shown only now; keep it. Clients send it as Authorization: Bearer.", err=True)


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="print a list of objects")
def show(as_json: bool) -> None:
    """List the keys: never the keys themselves, which nobody has but their users."""
    keys = KeyStore().read()
    if as_json:
        click.echo(json.dumps([_entry(key) for key in keys]))
        return
    rows = [("id", "name", "tier", "created"), *((key.id, key.name, key.tier, _day(key)) for key in keys)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@command.command()
@click.argument("name")
def revoke(name: str) -> None:
    """Revoke the key of this NAME or id."""
    store = KeyStore()
    key = store.revoke(name)
    click.echo(f"revoked {key.name} ({key.id})")
    if not store.read():
        click.echo("No key is left: a server started on a loopback address asks for none.", err=True)


def _entry(key: Key) -> dict[str, Any]:
    return {"id": key.id, "name": key.name, "tier": key.tier, "created": key.created}


def _day(key: Key) -> str:
    return datetime.datetime.fromtimestamp(key.created).strftime("%Y-%m-%d %H:%M")
