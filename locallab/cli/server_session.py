"""The server that `run` and `chat` talk to: the one that runs already, else one in this process while it is needed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from locallab import logs, settings
from locallab.cli.api_client import ApiClient, default_url
from locallab.cli.download_progress import progress
from locallab.cli.settings_options import layers
from locallab.errors import LocalLabError, UnknownModel
from locallab.settings import EngineSettings, ServerSettings

if TYPE_CHECKING:
    from locallab import inprocess


@contextlib.contextmanager
def session(model: str | None, url: str | None, key: str | None) -> Iterator[tuple[ApiClient, str]]:
    """A server, and the id of the model to ask there. Without `url`, a model named on the fly that the server on this machine
    does not have, or no server at all, is no reason to fail: one is started here."""
    with contextlib.ExitStack() as held:
        server = held.enter_context(ApiClient(url, key))
        if url is None and not _serves(server, model):
            started = held.enter_context(_started(model))
            server = held.enter_context(ApiClient(started.local_url, started.api_key))
            model = started.model
        yield server, server.model_id(model)


def _serves(server: ApiClient, model: str | None) -> bool:
    from locallab.models.adhoc import is_adhoc

    if not server.alive():
        return False
    if model is None or not is_adhoc(model):
        return True
    try:
        return bool(server.model_id(model))
    except UnknownModel:
        return False


@contextlib.contextmanager
def _started(model: str | None) -> Iterator[inprocess.Server]:
    from locallab.models import Registry

    given = settings.resolve(ServerSettings, *layers(ServerSettings, {"model": model}))
    with logs.configured("warning", given.log_format):
        try:
            from locallab.inprocess import start
            from locallab.inprocess.launch import choose
        except (OSError, RuntimeError) as error:  # what llama-cpp-python raises when a library it was built with is missing
            raise LocalLabError(f"llama.cpp cannot be loaded: {error}; install llama-cpp-python again") from error
        spec = choose(Registry.discover(given.registry), given.model, layers(EngineSettings, {}))
        click.echo(f"No server at {default_url()}; loading {spec.id} for this command.", err=True)
        with progress(spec) as report:
            name = given.model or spec.id
            server = start(name, tunnel=False, progress=report, host="127.0.0.1", port=0, grace=0, rate_limit=False)
        with server:
            yield server
