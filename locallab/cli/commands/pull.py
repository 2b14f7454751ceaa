"""`locallab pull`: fetches a model's weights."""

from __future__ import annotations

import click

from locallab import logs, settings
from locallab.cli.settings_options import layers, model_names
from locallab.settings import ServerSettings


@click.command("pull")
@click.argument("model", shell_complete=model_names)
def command(model: str) -> None:
    """Fetch the weights of MODEL.

    MODEL is an id of the registry, or hf:owner/repo:Q4_K_M for a file on the Hugging Face Hub. What is on disk already is not
    fetched again; what was broken off goes on where it ended. HF_TOKEN opens closed repositories, HF_ENDPOINT names a mirror.
    """
    from locallab.cli.download_progress import progress
    from locallab.models import Registry, Store, fetch
    from locallab.units import decimal_bytes

    given = settings.resolve(ServerSettings, *layers(ServerSettings, {}))
    spec = Registry.discover(given.registry).resolve(model)
    store = Store()
    here = store.has(spec)
    with logs.configured(given.log_level, given.log_format), progress(spec) as report:
        path = fetch(spec, store, report)
    size = sum(file.stat().st_size for part in spec.parts for file in store.files(spec, part))
    click.echo(f"{spec.id} {'was on disk already' if here else 'is on disk'}: {decimal_bytes(size)} at {path}")
