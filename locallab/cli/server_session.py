"""The server of `run` and `chat`: a running one, or one in this process for the length of the command."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from locallab import logs
from locallab.cli.api_client import ApiClient, default_url
from locallab.cli.download_progress import progress
from locallab.cli.llama_library import loading_llama
from locallab.cli.settings_options import layers, server_settings
from locallab.errors import ConfigError, UnknownModel
from locallab.settings import EngineSettings

if TYPE_CHECKING:
    from locallab import inprocess


@contextlib.contextmanager
def session(model: str | None, url: str | None, key: str | None, mmproj: str | None = None) -> Iterator[tuple[ApiClient, str]]:
    """Yield a client and the id of `model` on its server.

    Without `url`, a server is started here if none runs on this machine, if that one lacks a model named on the fly, or if a
    projector is named: `mmproj` is for a model that is loaded here. Raises ConfigError if it cannot be.
    """
    if mmproj is not None and url is not None:
        raise ConfigError("--mmproj: cannot be combined with --url: a running server has loaded its projector")
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(ApiClient(url, key))
        if url is None and (mmproj is not None or not _serves(client, model)):
            started = stack.enter_context(_started(model, mmproj))
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
def _started(model: str | None, mmproj: str | None) -> Iterator[inprocess.Server]:
    from locallab.models import Registry

    server = server_settings(model=model)
    with logs.configured("warning", server.log_format):
        with loading_llama():
            from locallab.inprocess import start
            from locallab.inprocess.launch import choose
        spec = choose(Registry.discover(server.registry), server.model, layers(EngineSettings, {}))
        cause = f"No server at {default_url()}; loading" if mmproj is None else "Loading"
        click.echo(f"{cause} {spec.id} for this command.", err=True)
        with progress(spec) as report:
            name = server.model or spec.id
            options: dict[str, Any] = {"host": "127.0.0.1", "port": 0, "grace": 0, "rate_limit": False, "mmproj": mmproj}
            options |= {"uds": "", "tls_cert": "", "tls_key": ""}
            started = start(name, tunnel=False, progress=report, **options)
        with started:
            yield started
