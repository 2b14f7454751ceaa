"""`locallab serve`: fetches and loads the model, then answers until told to stop.

What is slow to import is imported where it is used, so that a wrong flag, or a port in use, is told at once.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from locallab import logs, settings
from locallab.cli.settings_options import Layer, layers, options, unknown
from locallab.errors import LocalLabError
from locallab.keys import Keyring, KeyStore, ensure_key
from locallab.settings import EngineSettings, ServerSettings
from locallab.version import __version__

if TYPE_CHECKING:
    from locallab.pool import Loaded

log = logging.getLogger(__name__)


@click.command("serve")
@options(ServerSettings, EngineSettings)
def command(**flags: Any) -> int:
    """Serve a model over HTTP.

    --model also takes hf:owner/repo:Q4_K_M and the path of a .gguf file. Every option can be given as an environment
    variable too: --kv-type as LOCALLAB_KV_TYPE. LOCALLAB_HOME is where models are kept.
    """
    server = settings.resolve(ServerSettings, *layers(ServerSettings, flags))
    engine = layers(EngineSettings, flags)
    settings.resolve(EngineSettings, *engine)
    with logs.configured(server.log_level, server.log_format), _stoppable():
        for name in unknown(os.environ, ServerSettings, EngineSettings):
            log.warning("the environment variable %s is no setting", name)
        return _serve(server, engine)


def _serve(server: ServerSettings, engine: Sequence[Layer]) -> int:
    from locallab.models import Registry, Store
    from locallab.server import runner

    registry = Registry.discover(server.registry)
    if server.model:
        registry.resolve(server.model)  # a wrong name is told at once
    with contextlib.closing(runner.bind(server.host, server.port)) as sock:
        from locallab.cli.download_progress import progress

        try:
            from locallab.inprocess.launch import choose, warn_of_idle_gpu
            from locallab.pool import Pool
        except (OSError, RuntimeError) as error:  # what llama-cpp-python raises when a library it was built with is missing
            raise LocalLabError(f"llama.cpp cannot be loaded: {error}; install llama-cpp-python again") from error
        from locallab.server.app import create_app
        from locallab.tunnel import announcement, wanted

        def announce(address: str) -> None:
            click.echo(announcement(address, loaded.spec.id, made or server.api_key))

        def ready() -> None:
            click.echo(banner(loaded, runner.url(sock), made, asks))
            if tunnel is not None:
                tunnel.start()

        tunnel = wanted(server, runner.url(sock), announce, lambda error: log.error("no public address: %s", error))
        pool = Pool(registry, Store(), engine, grace=server.grace, on_demand=server.on_demand, keep_alive=server.keep_alive)
        try:
            store = KeyStore()
            keyring = Keyring(server, store, public=runner.is_public(sock) or tunnel is not None)
            app = create_app(pool, server, keyring, tunnel)  # before the model loads, for it tells what is wrong with a setting
            warn_of_idle_gpu()
            spec = choose(registry, server.model, engine)
            with progress(spec) as report:
                loaded = pool.load_now(spec.id, report)
            made = ensure_key(server, store, keyring.public)
            asks = keyring.required
            return runner.serve(app, sock, server, ready)
        finally:
            if tunnel is not None:
                tunnel.close()
            pool.close()


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """While nothing is served yet, SIGINT and SIGTERM end the command as asked: status 0; a second one ends it at once."""

    def stop(number: int, frame: object) -> None:
        for each in before:
            signal.signal(each, lambda number, frame: os._exit(128 + number))
        raise SystemExit(0)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def banner(loaded: Loaded, base: str, made: str | None = None, asks: bool = False) -> str:
    """What is printed once the server is up: what it serves, and two ways to try it. `made` is a key to show this once;
    `asks` says that the server wants one, be it that or another."""
    info, model = loaded.engine.info, loaded.spec.id
    messages = [{"role": "user", "content": "Hello!"}]
    body = json.dumps({"model": model, "messages": messages})
    shown = f"\n  key      {made} (shown only now; `locallab keys` makes and revokes others)" if made else ""
    key = made or ("YOUR_KEY" if asks else "none")
    header = f" -H 'Authorization: Bearer {key}'" if asks else ""
    return f"""\
LocalLab {__version__} listens on {base}
  model    {model} ({info.description})
  device   {info.device}
  context  {info.context:,} tokens a request; the KV pool holds {info.kv_tokens:,}{shown}

Try it:
  curl {base}/v1/chat/completions{header} -H 'Content-Type: application/json' -d '{body}'
or in Python:
  from openai import OpenAI
  client = OpenAI(base_url="{base}/v1", api_key="{key}")
  print(client.chat.completions.create(model="{model}", messages={json.dumps(messages)}).choices[0].message.content)
"""
