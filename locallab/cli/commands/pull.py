"""`locallab pull`: the download of a model's weights."""

from __future__ import annotations

import click

from locallab import logs
from locallab.cli.settings_options import model_names, server_settings


@click.command("pull")
@click.argument("model", shell_complete=model_names)
def command(model: str) -> None:
    """Fetch the weights of MODEL.

    MODEL is a registry id, or hf:owner/repo:Q4_K_M for a file on the Hugging Face Hub. Files on disk are not fetched again,
    and interrupted downloads resume. HF_TOKEN opens gated and private repositories, HF_ENDPOINT names a mirror.
    """
    from locallab.cli.download_progress import progress
    from locallab.models import Registry, Store, fetch
    from locallab.units import decimal_bytes

    server = server_settings()
    spec = Registry.discover(server.registry).resolve(model)
    store = Store()
    was_here = store.has(spec)
    with logs.configured(server.log_level, server.log_format), progress(spec) as report:
        path = fetch(spec, store, report)
    size = sum(file.stat().st_size for part in spec.parts for file in store.files(spec, part))
    click.echo(f"{spec.id} {'was already' if was_here else 'is'} on disk: {decimal_bytes(size)} at {path}")
