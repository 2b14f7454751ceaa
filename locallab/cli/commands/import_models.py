"""`locallab import`: models that other programs have on this machine, used where they lie instead of fetched again."""

from __future__ import annotations

import difflib
import json
from typing import TYPE_CHECKING, Any

import click

from locallab import settings
from locallab.cli.settings_options import layers
from locallab.errors import ConfigError, UnknownModel
from locallab.settings import ServerSettings

if TYPE_CHECKING:
    from locallab.models import Registry
    from locallab.models.other_stores import Importable


@click.command("import")
@click.argument("name", required=False)
@click.option("--id", "model_id", help="id to give it; default: one made of its name")
@click.option("--json", "as_json", is_flag=True, help="print objects of name, store, size, path, and id once imported")
def command(name: str | None, model_id: str | None, as_json: bool) -> None:
    """List the models of the Hugging Face cache and of Ollama, or add the one called NAME to your own registry.

    Nothing is copied: the file is used where it lies, and is gone when that program deletes it. HF_HOME and OLLAMA_MODELS say
    where to look if they are not in the usual places.
    """
    from locallab.models import Registry
    from locallab.models.other_stores import scan

    if model_id is not None and name is None:
        raise ConfigError("--id: name the model that shall get this id")
    server = settings.resolve(ServerSettings, *layers(ServerSettings, {}))
    registry = Registry.discover(server.registry)
    found = scan()
    if name is None:
        _show(registry, found, as_json)
        return
    chosen = _named(found, name)
    added = _add(registry, chosen, model_id)
    if as_json:
        click.echo(json.dumps(_entry(chosen, added)))
    else:
        click.echo(f"{chosen.name} is {added}: locallab serve --model {added}")


def _show(registry: Registry, found: list[Importable], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([_entry(each, _known(registry, each)) for each in found]))
        return
    if not found:
        click.echo("No models of other programs were found.")
        return
    from locallab.units import decimal_bytes

    rows = [("name", "size", "store", "imported as")]
    rows += [(each.name, decimal_bytes(each.size), each.keeper, _known(registry, each) or "-") for each in found]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    click.echo("`locallab import NAME` adds one to your registry.", err=True)


def _named(found: list[Importable], name: str) -> Importable:
    names = {each.name.lower(): each for each in reversed(found)}
    if name.lower() not in names:
        nearest = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
        raise UnknownModel(name, [names[near].name for near in nearest])
    return names[name.lower()]


def _add(registry: Registry, chosen: Importable, wanted: str | None) -> str:
    """Writes the entry, unless there is one of this file already, and returns its id."""
    from locallab.models import user_path
    from locallab.models.registry_file import append

    if wanted is None and (known := _known(registry, chosen)):
        return known
    model_id = _free(registry, chosen, wanted)
    append(user_path(), chosen.spec(model_id))
    return model_id


def _free(registry: Registry, chosen: Importable, wanted: str | None) -> str:
    import msgspec

    from locallab.models.spec import ModelId

    for model_id in [wanted] if wanted is not None else [chosen.model_id, f"{chosen.model_id}-{chosen.keeper}"]:
        try:
            msgspec.convert(model_id, ModelId)
            taken = registry.get(model_id).id
        except msgspec.ValidationError:
            raise ConfigError(f"--id: {model_id!r}: letters, digits, '.', '_', '-' and at most one ':' make an id") from None
        except UnknownModel:
            return model_id
    raise ConfigError(f"--id: {model_id!r} is taken already by {taken}; give another")


def _known(registry: Registry, each: Importable) -> str | None:
    """The id under which the registry has this very file."""
    return next((spec.id for spec in registry if getattr(spec.source, "path", None) == each.path), None)


def _entry(each: Importable, model_id: str | None) -> dict[str, Any]:
    return {"name": each.name, "store": each.keeper, "size": each.size, "path": str(each.path), "id": model_id}
