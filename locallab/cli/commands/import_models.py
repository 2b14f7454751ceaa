"""`locallab import`: models that other programs downloaded to this machine, used in place."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from locallab.cli.settings_options import server_settings
from locallab.cli.tables import table
from locallab.errors import ConfigError, UnknownModel

if TYPE_CHECKING:
    from locallab.models import Registry
    from locallab.models.other_stores import Importable


@click.command("import")
@click.argument("name", required=False)
@click.option("--id", "model_id", help="registry id of the model; default: from its name")
@click.option("--json", "as_json", is_flag=True, help="print objects of name, store, size, path, and id once imported")
def command(name: str | None, model_id: str | None, as_json: bool) -> None:
    """List the models of the Hugging Face cache and of Ollama, or add NAME to your own registry.

    Nothing is copied: the file is used in place, and is lost when that program deletes it. HF_HOME and
    OLLAMA_MODELS override the usual folders.
    """
    from locallab.models import Registry
    from locallab.models.other_stores import scan
    from locallab.units import decimal_bytes

    if model_id is not None and name is None:
        raise ConfigError("--id: requires the NAME of a model")
    registry = Registry.discover(server_settings().registry)
    found = scan()
    if name is not None:
        names = {each.name.lower(): each for each in reversed(found)}
        if name.lower() not in names:
            raise UnknownModel.near(name, {lower: each.name for lower, each in names.items()})
        chosen = names[name.lower()]
        added = _add(registry, chosen, model_id)
        plain = f"{chosen.name} is {added}: locallab serve --model {added}"
        click.echo(json.dumps(_entry(chosen, added)) if as_json else plain)
    elif as_json:
        click.echo(json.dumps([_entry(each, _known(registry, each)) for each in found]))
    elif not found:
        click.echo("No models of other programs found.")
    else:
        rows = ((each.name, decimal_bytes(each.size), each.keeper, _known(registry, each) or "-") for each in found)
        table(("name", "size", "store", "imported as"), rows)
        click.echo("`locallab import NAME` adds one to your registry.", err=True)


def _add(registry: Registry, chosen: Importable, wanted: str | None) -> str:
    """Add an entry to the user's registry unless it has this file, and return the entry's id. Raises ConfigError."""
    import msgspec

    from locallab.models import user_path
    from locallab.models.registry_file import append
    from locallab.models.spec import ModelId

    if wanted is None and (known := _known(registry, chosen)):
        return known
    for model_id in [wanted] if wanted is not None else [chosen.model_id, f"{chosen.model_id}-{chosen.keeper}"]:
        try:
            msgspec.convert(model_id, ModelId)
            taken = registry.get(model_id).id
        except msgspec.ValidationError:
            raise ConfigError(f"--id: {model_id!r}: an id has letters, digits, '.', '_', '-' and at most one ':'") from None
        except UnknownModel:
            append(user_path(), chosen.spec(model_id))
            return model_id
    raise ConfigError(f"--id: {model_id!r} is already taken by {taken}; choose another")


def _known(registry: Registry, each: Importable) -> str | None:
    """Return the id of this very file in the registry."""
    return next((spec.id for spec in registry if getattr(spec.source, "path", None) == each.path), None)


def _entry(each: Importable, model_id: str | None) -> dict[str, Any]:
    return {"name": each.name, "store": each.keeper, "size": each.size, "path": str(each.path), "id": model_id}
