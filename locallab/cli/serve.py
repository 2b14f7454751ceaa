"""`locallab serve`: fetches and loads the model, then answers until told to stop.

What is slow to import is imported where it is used, so that a wrong flag, or a port in use, is told at once.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from locallab import __version__, logs, settings
from locallab.cli.options import Layer, layers, options, unknown
from locallab.errors import ConfigError, LocalLabError
from locallab.settings import EngineSettings, ServerSettings

if TYPE_CHECKING:
    from locallab.models import ModelSpec, Registry
    from locallab.pool import Loaded

log = logging.getLogger(__name__)


@click.command("serve")
@options(ServerSettings, EngineSettings)
def command(**flags: Any) -> int:
    """Serve a model over HTTP.

    --model also takes the path of a .gguf file. Every option can be given as an environment variable too: --kv-type as
    LOCALLAB_KV_TYPE. LOCALLAB_HOME is where models are kept.
    """
    server = settings.resolve(ServerSettings, *layers(ServerSettings, flags))
    engine = layers(EngineSettings, flags)
    settings.resolve(EngineSettings, *engine)
    with logs.configured(server.log_level, server.log_format), _stoppable():
        for name in unknown(os.environ, ServerSettings, EngineSettings):
            log.warning("the environment variable %s is no setting", name)
        return _serve(server, engine)


def _serve(server: ServerSettings, engine: Sequence[Layer]) -> int:
    from locallab.models import Registry, Store, default_path
    from locallab.server import runner

    registry = Registry.load(default_path())
    spec = find(registry, server.model)
    with contextlib.closing(runner.bind(server.host, server.port)) as sock:
        from locallab.cli.fetching import progress

        try:
            from locallab.pool import Pool
        except (OSError, RuntimeError) as error:  # what llama-cpp-python raises when a library it was built with is missing
            raise LocalLabError(f"llama.cpp cannot be loaded: {error}; install llama-cpp-python again") from error
        from locallab.server.app import create_app

        pool = Pool(registry, Store(), engine, grace=server.grace)
        try:
            with progress(spec) as report:
                loaded = pool.load_now(spec.id, report)
            return runner.serve(create_app(pool, server), sock, server, lambda: click.echo(banner(loaded, url(sock))))
        finally:
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


def find(registry: Registry, model: str) -> ModelSpec:
    """The registry's model of this name; for the path of a .gguf file a new entry named after the file."""
    if not model.lower().endswith(".gguf") and os.sep not in model:
        return registry.get(model)
    from locallab.models import FileSource, ModelSpec

    path = Path(model).expanduser().absolute()
    if not path.is_file():
        raise ConfigError(f"model: there is no file {path}")
    spec = ModelSpec(
        id=re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("._-") or "model",
        source=FileSource(path),
        size=path.stat().st_size,
        description=f"the file {path}",
    )
    registry.add("--model", spec)
    return spec


def url(sock: socket.socket) -> str:
    """Where a client on this machine reaches the socket."""
    host, port = sock.getsockname()[:2]
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{local}]:{port}" if ":" in local else f"http://{local}:{port}"


def banner(loaded: Loaded, base: str) -> str:
    """What is printed once the server is up: what it serves, and two ways to try it."""
    info, model = loaded.engine.info, loaded.spec.id
    messages = [{"role": "user", "content": "Hello!"}]
    body = json.dumps({"model": model, "messages": messages})
    return f"""\
LocalLab {__version__} listens on {base}
  model    {model} ({info.description})
  device   {info.device}
  context  {info.context:,} tokens a request; the KV pool holds {info.kv_tokens:,}

Try it:
  curl {base}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'
or in Python:
  from openai import OpenAI
  client = OpenAI(base_url="{base}/v1", api_key="none")
  print(client.chat.completions.create(model="{model}", messages={json.dumps(messages)}).choices[0].message.content)
"""
