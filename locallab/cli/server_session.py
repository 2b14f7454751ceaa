"""The server of `run` and `chat`: a running one, or one in this process for the length of the command."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from locallab import logs
from locallab.cli.api_client import ApiClient, default_url
from locallab.cli.download_progress import progress
from locallab.cli.llama_library import loading_llama
from locallab.cli.settings_options import layers, server_settings
from locallab.errors import UnknownModel
from locallab.settings import EngineSettings

if TYPE_CHECKING:
    from locallab import inprocess


@contextlib.contextmanager
def session(model: str | None, url: str | None, key: str | None) -> Iterator[tuple[ApiClient, str]]:
    """Yield a client and the id of `model` on its server.

    Without `url`, a server is started here if none runs on this machine, or if that one lacks a model named on the fly.
    """
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(ApiClient(url, key))
        if url is None and not _serves(client, model):
            started = stack.enter_context(_started(model))
            client = stack.enter_context(ApiClient(started.local_url, started.api_key))
            model = started.model
        yield client, client.model_id(model)


def _serves(client: ApiClient, model: str | None) -> bool:
    from locallab.models.adhoc import is_adhoc

    if not client.alive():
        return False
    if model is None or not is_adhoc(model):
        return True
    try:
        return bool(client.model_id(model))
    except UnknownModel:
        return False


@contextlib.contextmanager
def _started(model: str | None) -> Iterator[inprocess.Server]:
    from locallab.models import Registry

    server = server_settings(model=model)
    with logs.configured("warning", server.log_format):
        with loading_llama():
            from locallab.inprocess import start
            from locallab.inprocess.launch import choose
        spec = choose(Registry.discover(server.registry), server.model, layers(EngineSettings, {}))
        click.echo(f"No server at {default_url()}; loading {spec.id} for this command.", err=True)
        with progress(spec) as report:
            name = server.model or spec.id
            started = start(name, tunnel=False, progress=report, host="127.0.0.1", port=0, grace=0, rate_limit=False)
        with started:
            yield started
