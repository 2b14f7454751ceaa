"""The tunnel by cloudflared: what differs from ngrok, and that the same rules hold."""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from locallab import settings
from locallab.errors import ConfigError, TunnelError
from locallab.server import listener, runner
from locallab.server.middleware import AccessLog
from locallab.server.middleware.tunnel import TunnelCounter
from locallab.settings import Provider, ServerSettings
from locallab.tunnel import Tunnel, Usage, configured_tunnel
from tests.support.certificates import issue
from tests.support.fake_tunnel import CLOUDFLARE_TOKEN, TOKEN, App, FakeCloudflared, FakeNgrok, News, heard
from tests.support.http_server import running
from tests.support.wait import PATIENCE, free_port, until


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def target(app: App) -> Iterator[str]:
    with running(AccessLog(app, enabled=False)) as url:
        yield url


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCloudflared:
    (tmp_path / "public").write_text(str(free_port()))
    return FakeCloudflared(tmp_path, monkeypatch)


Open = Callable[..., tuple[Tunnel, News]]


@pytest.fixture
def opened(agent: FakeCloudflared, target: str) -> Iterator[Open]:
    """Starts a tunnel; gives it and the queue of what it announces and complains."""
    with contextlib.ExitStack() as stack:

        def start(token: str | None = None, **options: Any) -> tuple[Tunnel, News]:
            news: News = queue.Queue()
            given = {"announce": news.put, "complain": news.put, "every": 0.02, "pause": lambda failures: 0.02, **options}
            tunnel = Tunnel(target, token, **{"provider": "cloudflared", "program": str(agent.path), **given})
            stack.callback(tunnel.close)
            tunnel.start()
            return tunnel, news

        yield start
    assert agent.running == []
    assert [thread.name for thread in threading.enumerate() if thread.name in ("tunnel", "agent's log")] == []
    assert list((settings.home() / "tunnel").glob("*")) == []


def public(agent: FakeCloudflared) -> str:
    """Return the address of the tunnel with an account."""
    return f"http://127.0.0.1:{(agent.folder / 'public').read_text()}"


def test_a_quick_tunnel_is_announced_once_a_request_through_it_has_come_back(opened: Open, app: App) -> None:
    seen: News = queue.Queue()
    tunnel, _ = opened(announce=lambda url: seen.put((url, list(app.paths))))
    url, paths = heard(seen)
    assert url == tunnel.wait()
    assert paths == ["/health/live"]
    assert httpx.get(f"{url}/anything").text == "done"
    with httpx.stream("GET", f"{url}/stream", timeout=PATIENCE) as response:
        assert "".join(response.iter_text()) == "data: 0\n\ndata: 1\n\ndata: 2\n\ndone"


def test_the_tunnel_of_an_account_has_the_name_that_is_set(opened: Open, agent: FakeCloudflared) -> None:
    tunnel, news = opened(CLOUDFLARE_TOKEN, domain=public(agent))
    assert heard(news) == public(agent)
    assert httpx.get(public(agent)).text == "done"
    process = psutil.Process(agent.pids[-1])
    assert process.environ()["TUNNEL_TOKEN"] == CLOUDFLARE_TOKEN
    assert CLOUDFLARE_TOKEN not in " ".join(process.cmdline())
    assert [path for path in settings.home().rglob("*") if path.is_file() and CLOUDFLARE_TOKEN in path.read_text()] == []
    agent.signal(signal.SIGKILL)
    assert "lost" in str(heard(news))
    until(lambda: tunnel.facts().opened == 2)
    assert news.empty()  # the same address


def test_variables_of_the_agent_change_nothing_but_how_it_connects(
    opened: Open, agent: FakeCloudflared, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {
        "TUNNEL_URL": "http://a",
        "TUNNEL_TOKEN": "b",
        "TUNNEL_TRANSPORT_PROTOCOL": "http2",
        "LOCALLAB_CLOUDFLARED_TOKEN": "c",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    _, news = opened()
    heard(news)
    environ = psutil.Process(agent.pids[-1]).environ()
    assert {name for name in given if name in environ} == {"TUNNEL_TRANSPORT_PROTOCOL"}


@pytest.mark.parametrize(
    ("behaviour", "token", "reason", "lasting"),
    [
        ("offline", None, r"^Cloudflare's servers cannot be reached: failed to request .* no such host$", False),
        ("limit", None, r"^Cloudflare opens no more quick tunnels for this network at the moment", False),
        (
            "no UDP",
            None,
            r"^Cloudflare's servers cannot be reached: failed to dial .*; where UDP is blocked, set TUNNEL_",
            False,
        ),
        ("mute", None, r"^cloudflared failed: it does not come up$", False),
        ("error page", None, r"^a request through http://\S+ was answered 530 by cloudflare$", False),
        ("silent", None, r"^a request through http://\S+ did not come back: ", False),
        ("fine", "no token", r"^LOCALLAB_CLOUDFLARED_TOKEN is not the token of a Cloudflare tunnel", True),
        ("unknown token", CLOUDFLARE_TOKEN, r"^Cloudflare refuses this token", True),
    ],
    ids=lambda value: value if isinstance(value, str) and value.replace(" ", "").isalpha() else "",
)
def test_each_misfortune_is_one_clear_line(
    opened: Open,
    agent: FakeCloudflared,
    behaviour: str,
    token: str | None,
    reason: str,
    lasting: bool,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    agent.goes("fine" if behaviour == "silent" else behaviour)
    if behaviour == "silent":
        agent.silent(True)
    patience = {"mute": 0.5, "no UDP": 3.0}.get(behaviour, PATIENCE)
    tunnel, news = opened(token, domain=token and public(agent), patience=patience, trial=0.1, pause=lambda failures: PATIENCE)
    error = heard(news)
    assert isinstance(error, TunnelError) and error.lasting == lasting
    assert re.search(reason, str(error)), str(error)
    assert "\n" not in str(error)
    with pytest.raises(TunnelError):
        tunnel.wait()
    tunnel.close()
    assert CLOUDFLARE_TOKEN not in caplog.text + "".join(capfd.readouterr())
    assert tunnel.facts().state == ("failed" if lasting else "closed")


@pytest.mark.parametrize("program", ["/nowhere/cloudflared", None])
def test_a_missing_program_is_told_where_to_get(target: str, monkeypatch: pytest.MonkeyPatch, program: str | None) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    news: News = queue.Queue()
    tunnel = Tunnel(target, None, provider="cloudflared", program=program, announce=news.put, complain=news.put)
    tunnel.start()
    error = heard(news)
    tunnel.close()
    assert error.lasting
    assert "get it from github.com/cloudflare/cloudflared/releases" in str(error)
    assert (program or "it is not on the PATH") in str(error)


def test_what_is_no_program(opened: Open, agent: FakeCloudflared) -> None:
    agent.path.write_text("no program")
    _, news = opened(pause=lambda failures: PATIENCE)
    assert str(heard(news)).startswith("cloudflared failed: ")


def test_a_dead_agent_is_noticed_and_the_new_address_announced(opened: Open, agent: FakeCloudflared) -> None:
    tunnel, news = opened()
    first = heard(news)
    agent.signal(signal.SIGKILL)
    assert str(heard(news)).startswith("the tunnel is lost: ")
    second = heard(news)
    assert first != second == tunnel.url
    assert httpx.get(second).text == "done"


def test_a_connection_that_comes_back_costs_nothing(opened: Open, agent: FakeCloudflared, app: App) -> None:
    tunnel, news = opened()
    url = heard(news)
    agent.signal(signal.SIGUSR1)
    until(lambda: app.paths.count("/health/live") >= 2)
    assert (tunnel.url, news.empty(), len(agent.pids)) == (url, True, 1)


def test_a_connection_that_stays_away_is_noticed_by_a_request(opened: Open, agent: FakeCloudflared) -> None:
    agent.goes("stays lost")
    _, news = opened(trial=0.1)
    heard(news)
    agent.silent(True)
    agent.signal(signal.SIGUSR1)
    assert str(heard(news)).startswith("the tunnel is lost: a request through")
    agent.silent(False)
    while not isinstance(found := heard(news), str):
        pass
    assert httpx.get(found).text == "done"


@pytest.mark.parametrize("provider", ["ngrok", "cloudflared"])
def test_a_server_with_a_certificate(app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, provider: Provider) -> None:
    kind = FakeNgrok if provider == "ngrok" else FakeCloudflared
    kind(tmp_path, monkeypatch)
    agents: dict[str, Any] = {"ngrok_token": TOKEN, "cloudflared_path": str(tmp_path / "cloudflared")}
    given = ServerSettings(host="127.0.0.1", port=0, grace=0, tunnel=provider, **agents, **issue(tmp_path).settings())
    news: News = queue.Queue()
    with listener.opened(given) as sock:
        server = runner.Background(AccessLog(app, enabled=False), sock, given)
        tunnel = configured_tunnel(given, listener.url(sock, tls=True), news.put, news.put)
        assert tunnel
        tunnel.start()
        try:
            assert httpx.get(heard(news)).text == "done"
        finally:
            tunnel.close()
            server.stop()


OWNER = """if True:
    import signal, sys
    from locallab.tunnel import Tunnel
    say = lambda text: print(text, flush=True)
    tunnel = Tunnel(sys.argv[1], None, provider="cloudflared", program=sys.argv[2], announce=say, complain=say)
    tunnel.start()
    tunnel.wait()
    signal.pause()
"""


def test_the_agent_ends_with_a_process_that_is_killed(agent: FakeCloudflared, target: str) -> None:
    command = [sys.executable, "-c", OWNER, target, str(agent.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout and owner.stdout.readline().startswith("http://")
        process = psutil.Process(agent.pids[-1])
        owner.kill()
    psutil.wait_procs([process], timeout=PATIENCE)
    assert agent.running == []


def test_its_traffic_is_counted_apart_and_has_no_plan(agent: FakeCloudflared, app: App) -> None:
    tunnels: list[Tunnel] = []

    async def counting(scope: Any, receive: Any, send: Any) -> None:
        await (TunnelCounter(app, tunnels[0]) if tunnels else app)(scope, receive, send)  # type: ignore[arg-type]

    news: News = queue.Queue()
    with running(AccessLog(counting, enabled=False)) as target:
        options: dict[str, Any] = {"provider": "cloudflared", "program": str(agent.path), "every": 0.02}
        tunnels.append(Tunnel(target, None, announce=news.put, complain=news.put, **options))
        tunnels[0].start()
        url = heard(news)
        before = tunnels[0].usage.now().requests
        httpx.post(f"{url}/stream", content=b"x" * 1000)
        until(lambda: tunnels[0].facts().requests >= 2)
        facts = tunnels[0].facts()
        tunnels[0].close()
    assert (facts.url, facts.state, facts.provider, facts.connections) == (url, "open", "cloudflared", None)
    assert facts.month.requests == before + 1
    assert (facts.month.free_plan, facts.month.free_plan_used) == (None, None)
    assert json.loads((settings.home() / "tunnel-cloudflared.json").read_text())["requests"] == facts.month.requests
    assert Usage().now().requests == 0  # of ngrok


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"cloudflared_token": CLOUDFLARE_TOKEN}, "tunnel_domain: must be the public host name"),
        ({"tunnel_domain": "chat.example.com"}, "tunnel_domain: Cloudflare needs LOCALLAB_CLOUDFLARED_TOKEN"),
        ({"auth": False}, "tunnel: a public address requires a key"),
        ({"uds": "x.sock"}, "tunnel: leads to a port"),
    ],
)
def test_settings_that_do_not_fit(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        configured_tunnel(ServerSettings(tunnel="cloudflared", **given), "http://127.0.0.1:1", pytest.fail, pytest.fail)


@pytest.mark.parametrize(
    ("tunnel", "provider"), [(True, "ngrok"), ("ngrok", "ngrok"), ("cloudflared", "cloudflared"), (False, None)]
)
def test_whose_tunnel_the_settings_call_for(tunnel: Any, provider: str | None) -> None:
    found = configured_tunnel(ServerSettings(tunnel=tunnel), "http://127.0.0.1:1", pytest.fail, pytest.fail)
    assert (found and found.facts().provider) == provider
