"""`locallab serve`: the server, with its model fetched and loaded first.

Slow imports stand where they are needed, so that a wrong flag or a port in use is reported at once.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, TimeoutError
from typing import TYPE_CHECKING, Any

import click

from locallab import cache_files, logs, settings
from locallab.cli.llama_library import loading_llama
from locallab.cli.settings_options import Layer, check_address, layers, options, server_settings, unknown
from locallab.errors import LocalLabError
from locallab.keys import Keyring, KeyStore, ensure_key, with_key_file
from locallab.settings import EngineSettings, ServerSettings
from locallab.supervisor import Child
from locallab.version import __version__

if TYPE_CHECKING:
    from locallab.models import Progress
    from locallab.pool import Loaded, Pool

PATIENCE = 10.0
"""Seconds that a restarted server waits for its model before it accepts connections."""

log = logging.getLogger(__name__)


@click.command("serve")
@options(ServerSettings, EngineSettings)
@click.option("--open", "opens", is_flag=True, help="Open the page in a browser once the server is up.")
@click.option("--cluster", metavar="FILE", help="serve the models of a cluster, which this file describes, with Ray Serve")
def command(opens: bool = False, cluster: str | None = None, **flags: Any) -> int:
    """Serve a model over HTTP.

    --model also takes hf:owner/repo:Q4_K_M and the path of a .gguf file. Every option is also an environment variable:
    --kv-type is LOCALLAB_KV_TYPE. LOCALLAB_HOME is the folder of the models.
    """
    context = click.get_current_context(silent=True)
    child = (context and context.find_object(Child)) or Child()
    engine = layers(EngineSettings, flags)
    if cluster is not None:
        return _serve_cluster(cluster, flags, engine, child, opens)
    server = with_key_file(server_settings(**flags))
    cache_files.check(settings.resolve(EngineSettings, *engine))
    with logs.configured(server.log_level, server.log_format), _stoppable(child.supervised):
        for name in unknown(os.environ, ServerSettings, EngineSettings):
            log.warning("the environment variable %s is not a setting", name)
        if opens and not server.page:
            raise click.UsageError("--open: --no-page leaves out the page that it would open")
        if opens and server.uds:
            raise click.UsageError("--open: no browser opens the Unix socket of --uds")
        return _serve(server, engine, child, opens)


def _serve(server: ServerSettings, engine: Sequence[Layer], child: Child, opens: bool) -> int:
    from locallab.models import Registry, adhoc
    from locallab.server import listener, runner, tls

    registry = Registry.discover(server.registry)
    if server.model:
        registry.resolve(server.model)  # reports a wrong name at once
    adhoc.adapters(server.lora)  # and a wrong file
    certificates = tls.configured(server)
    with contextlib.ExitStack() as running:
        sock = running.enter_context(listener.opened(server, child.listener))
        child.bound(sock, server.max_deaths, server.log_format)
        from locallab.cli.download_progress import progress

        os.environ[settings.variable("openmp")] = (
            server.openmp
        )  # read when llama.cpp is loaded, also by processes that try files
        with loading_llama():
            from locallab.inprocess.launch import open_app
        from locallab.server.middleware.hosts import Hosts
        from locallab.tunnel import announcement, configured_tunnel

        def announce(address: str) -> None:
            click.echo(announcement(address, spec.id, new_key or server.api_key))

        def ready() -> None:
            names = Hosts(server.allowed_hosts).patterns if listener.is_public(sock) and not keyring.required else ()
            if told.announced:
                log.warning("restarted: LocalLab listens on %s again", shown)
            elif loaded:
                click.echo(banner(loaded, shown, new_key, keyring.required, names, server.page))
            else:
                click.echo(empty_banner(shown, pool.error(spec.id)))
            if tunnel is not None:
                tunnel.start()
            child.ready()
            if opens and not told.restarts:
                threading.Thread(target=open_page, args=(shown,), name="browser", daemon=True).start()  # some browsers block

        url, told = listener.url(sock, certificates is not None), child.supervision
        shown = listener.url(sock, True, certificates.name) if certificates else url
        tunnel = configured_tunnel(server, url, announce, lambda error: log.error("no public address: %s", error))
        store = KeyStore()
        public = listener.is_public(sock) or tunnel is not None
        keyring = Keyring(server, store, public, restarted=bool(told.restarts))
        running.callback(keyring.close)
        pool, app, spec = running.enter_context(open_app(registry, server, engine, keyring, tunnel, told))
        if tunnel is not None:
            running.callback(tunnel.close)
        with progress(spec) as report:
            loaded = _load_again(pool, spec.id, report) if told.restarts else pool.load_now(spec.id, report)
        new_key = ensure_key(server, store, keyring.public)
        keyring.reload()
        return runner.serve(app, sock, server, ready, child.supervised)


def _serve_cluster(path: str, flags: Mapping[str, Any], engine: Sequence[Layer], child: Child, opens: bool) -> int:
    from locallab.cli import cluster_session

    found = layers(ServerSettings, flags)
    session = cluster_session.session(path, found, settings.configured(EngineSettings, *engine))
    check_address(session.server, found)
    with logs.configured(session.server.log_level, session.server.log_format), _stoppable(child.supervised):
        return cluster_session.serve(session, child, opens)


def _load_again(pool: Pool, model: str, progress: Progress) -> Loaded | None:
    """Load the model after a restart. Return None if it fails, which is logged, or takes long: requests then wait for it."""
    try:
        pool.set_aside.refuse(model)
        loading = ThreadPoolExecutor(1).submit(pool.load_now, model, progress)
        return loading.result(PATIENCE)
    except TimeoutError:
        log.warning("%s is still loading: its requests wait", model)
    except LocalLabError as error:
        log.error("serving without a model: %s", error)
    return None


@contextlib.contextmanager
def _stoppable(supervised: bool) -> Iterator[None]:
    """Until the server runs, exit with status 0 on SIGINT or SIGTERM, and at once on a second one, if `supervised` by the
    supervisor."""

    def stop(number: int, frame: object) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN if supervised else lambda number, frame: os._exit(128 + number))
        raise SystemExit(0)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def open_page(url: str) -> None:
    """Open the page in the user's browser (BROWSER names one); log where it is if there is none."""
    import webbrowser

    if not webbrowser.open(url):
        log.warning("no browser could be opened: the page is at %s", url)


def empty_banner(base: str, reason: str | None) -> str:
    """Return what is printed instead of the banner if no model is loaded."""
    return f"LocalLab {__version__} listens on {base}\n  model    none{f': {reason}' if reason else ' yet'}\n"


def banner(
    loaded: Loaded,
    base: str,
    new_key: str | None = None,
    needs_key: bool = False,
    names: Sequence[str] = (),
    page: bool = True,
) -> str:
    """Return the text printed once the server is up: the model, and three ways to try it, two without the `page`.

    `new_key` was just created and is shown once; `needs_key` tells that requests need a key, that or another. `names` are the
    only host names that the server answers to, besides addresses.
    """
    info, model = loaded.engine.info, loaded.spec.id
    messages = [{"role": "user", "content": "Hello!"}]
    body = json.dumps({"model": model, "messages": messages})
    key_line = f"\n  key      {new_key} (shown only now; `locallab keys` creates and revokes keys)" if new_key else ""
    only = f"\n  names    any address, {', '.join(names)} (--allowed-hosts adds others)" if names else ""
    key = new_key or ("YOUR_KEY" if needs_key else "none")
    header = f" -H 'Authorization: Bearer {key}'" if needs_key else ""
    path, web = base.removeprefix("unix:"), base
    curl, first, given = "", "", ""
    if path != base:
        web, page = "http://localhost", False
        curl = f" --unix-socket {shlex.quote(path)}"
        first = "\n  import httpx"
        given = f", http_client=httpx.Client(transport=httpx.HTTPTransport(uds={path!r}))"
    trying = f"Try it in a browser: {base}\nor with curl:" if page else "Try it:"
    return f"""\
LocalLab {__version__} listens on {base}
  model    {model} ({info.description})
  device   {info.device}
  context  {info.context:,} tokens per request; the KV cache holds {info.kv_tokens:,}{key_line}{only}

{trying}
  curl{curl} {web}/v1/chat/completions{header} -H 'Content-Type: application/json' -d '{body}'
or in Python:{first}
  from openai import OpenAI
  client = OpenAI(base_url="{web}/v1", api_key="{key}"{given})
  print(client.chat.completions.create(model="{model}", messages={json.dumps(messages)}).choices[0].message.content)
"""
