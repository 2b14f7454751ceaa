from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import os
import queue
import re
import shlex
import signal
import subprocess
import sys
import tarfile
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import websockets
from hypothesis import given
from hypothesis import strategies as st
from pyngrok import installer

from locallab import settings
from locallab.errors import TunnelError
from locallab.server import listener, runner
from locallab.server.app import create_app
from locallab.server.middleware import AccessLog
from locallab.server.middleware.tunnel import TunnelCounter
from locallab.settings import ServerSettings
from locallab.tunnel import Tunnel, Usage, announcement
from locallab.tunnel.ngrok_errors import explained
from locallab.tunnel.process import sweep
from locallab.tunnel.tunnel import pause
from locallab.tunnel.usage import FREE_BYTES, FREE_REQUESTS, Month
from tests.support.fake_pool import making
from tests.support.fake_tunnel import TOKEN, App, FakeNgrok, News, heard
from tests.support.http_server import running
from tests.support.wait import PATIENCE, until


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def target(app: App) -> Iterator[str]:
    with running(AccessLog(app, enabled=False)) as url:
        yield url


@pytest.fixture
def ngrok(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNgrok:
    return FakeNgrok(tmp_path, monkeypatch)


Open = Callable[..., tuple[Tunnel, News]]


@pytest.fixture
def opened(ngrok: FakeNgrok, target: str) -> Iterator[Open]:
    """Starts a tunnel; gives it and the queue of what it announces and complains."""
    with contextlib.ExitStack() as stack:

        def start(token: str | None = TOKEN, **options: Any) -> tuple[Tunnel, News]:
            news: News = queue.Queue()
            given = {"announce": news.put, "complain": news.put, "every": 0.02, "pause": lambda failures: 0.02, **options}
            tunnel = Tunnel(target, token, **given)
            stack.callback(tunnel.close)
            tunnel.start()
            return tunnel, news

        yield start
    assert ngrok.running == []
    assert [thread.name for thread in threading.enumerate() if thread.name in ("tunnel", "agent's log")] == []
    assert list((settings.home() / "tunnel").glob("*")) == []


def test_the_address_is_announced_once_a_request_through_it_has_come_back(opened: Open, app: App) -> None:
    seen: News = queue.Queue()
    tunnel, _ = opened(announce=lambda url: seen.put((url, tunnel.url, list(app.paths))))
    url, current, paths = heard(seen)
    assert url == current == tunnel.wait()
    assert paths == ["/health/live"]
    assert httpx.get(f"{url}/anything").text == "done"


def test_streams_and_websockets_pass(opened: Open) -> None:
    _, news = opened()
    url = heard(news)
    with httpx.stream("GET", f"{url}/stream", timeout=PATIENCE) as response:
        assert "".join(response.iter_text()) == "data: 0\n\ndata: 1\n\ndata: 2\n\ndone"

    async def talk() -> list[str]:
        async with websockets.connect(f"ws{url.removeprefix('http')}/ws") as socket:
            for word in ("a", "b"):
                await socket.send(word)
            return [str(await socket.recv()), str(await socket.recv())]

    assert asyncio.run(talk()) == ["a", "b"]


@pytest.mark.parametrize(
    ("behaviour", "reason", "lasting"),
    [
        ("bad token", r"ngrok does not know this token: check .* \(ERR_NGROK_105\)$", True),
        ("old token", r"ngrok no longer accepts this token.* \(ERR_NGROK_107\)$", True),
        ("limit", r"another agent of this ngrok account is running.* \(ERR_NGROK_108\)$", False),
        ("offline", r"ngrok's servers cannot be reached: failed to dial .* no such host$", False),
        ("mute", r"the ngrok agent failed: it does not come up$", False),
        ("error page", r"a request through http://\S+ was answered 404 by ERR_NGROK_3200$", False),
        ("domain", r"tunnel_domain: ngrok refuses 'a\.example': .*reserved for another account \(ERR_NGROK_319\)$", True),
        ("fine\n", r"a request through http://\S+ did not come back: ", False),
    ],
    ids=lambda value: str(value).strip() if isinstance(value, str) and " through " not in value else None,
)
def test_each_misfortune_is_one_clear_line(
    opened: Open, ngrok: FakeNgrok, behaviour: str, reason: str, lasting: bool, caplog: Any, capfd: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    ngrok.goes(behaviour.strip())
    if behaviour.endswith("\n"):
        ngrok.silent(True)
    patience = {"mute": 0.5, "offline": 3.0}.get(behaviour, PATIENCE)
    tunnel, news = opened(patience=patience, trial=0.1, domain="a.example", pause=lambda failures: PATIENCE)
    error = heard(news)
    assert isinstance(error, TunnelError) and error.lasting == lasting
    assert re.search(reason, str(error)), str(error)
    assert "\n" not in str(error)
    with pytest.raises(TunnelError):
        tunnel.wait()
    tunnel.close()
    assert TOKEN not in caplog.text
    assert TOKEN not in "".join(capfd.readouterr())
    assert len(ngrok.pids) <= 1
    assert tunnel.facts().error == str(error)
    assert tunnel.facts().state == ("failed" if lasting else "closed")


def test_no_token(opened: Open, ngrok: FakeNgrok) -> None:
    _, news = opened(token=None)
    error = heard(news)
    assert error.lasting
    assert "set LOCALLAB_NGROK_TOKEN" in str(error)
    assert ngrok.pids == []


def test_a_server_that_refuses_its_public_name_is_told_apart(opened: Open, app: App) -> None:
    app.paths.append("forbidden")
    _, news = opened()
    assert str(heard(news)).endswith("was answered 403 by this server: --allowed-hosts must allow that name")


def test_another_server_behind_the_address_is_not_ours(ngrok: FakeNgrok) -> None:
    news: News = queue.Queue()
    with running(App()) as other:  # does not send the nonce back
        tunnel = Tunnel(other, TOKEN, announce=news.put, complain=news.put, trial=0.1)
        tunnel.start()
        assert str(heard(news)).endswith("was answered by another server")
        tunnel.close()


def test_an_agent_that_cannot_be_downloaded(opened: Open, ngrok: FakeNgrok, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installer, "get_ngrok_cdn_url", lambda version: "http://127.0.0.1:1/ngrok.tgz")
    monkeypatch.setenv("PYNGROK_NGROK_PATH", str(ngrok.folder / "there" / "ngrok"))
    _, news = opened(pause=lambda failures: PATIENCE)
    error = heard(news)
    assert not error.lasting
    assert str(error).startswith("the ngrok agent cannot be downloaded: ")
    assert str(error).endswith(f"put it at {ngrok.folder / 'there' / 'ngrok'} yourself")


def test_a_missing_agent_is_downloaded(
    opened: Open, ngrok: FakeNgrok, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        tar.add(ngrok.path, "ngrok")
    place = tmp_path_factory.mktemp("place") / "ngrok"
    monkeypatch.setenv("PYNGROK_NGROK_PATH", str(place))
    monkeypatch.setattr("tempfile.tempdir", str(place.parent))

    async def files(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": archive.getvalue()})
        else:
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})

    with running(files) as base:
        monkeypatch.setattr(installer, "get_ngrok_cdn_url", lambda version: f"{base}/ngrok.tgz")
        _, news = opened()
        assert heard(news).startswith("http://")
    assert place.exists()


@pytest.mark.parametrize("content", ["", "no program"], ids=["empty", "text"])
def test_an_agent_that_is_no_program(opened: Open, ngrok: FakeNgrok, content: str) -> None:
    ngrok.path.write_text(content)
    _, news = opened(pause=lambda failures: PATIENCE)
    assert str(heard(news)).startswith("the ngrok agent failed: ")


def test_a_dead_agent_is_noticed_and_the_new_address_announced(opened: Open, ngrok: FakeNgrok) -> None:
    tunnel, news = opened()
    first = heard(news)
    ngrok.signal(signal.SIGKILL)
    assert str(heard(news)) == "the tunnel is lost: the ngrok agent has ended"
    second = heard(news)
    assert first != second == tunnel.url
    assert httpx.get(second).text == "done"
    assert tunnel.facts().opened == 2


def test_a_reserved_domain_comes_back_as_it_was(opened: Open, ngrok: FakeNgrok, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    tunnel, news = opened(domain="a.example")
    url = heard(news)
    ngrok.signal(signal.SIGKILL)
    assert "lost" in str(heard(news))
    until(lambda: "open again at the same address" in caplog.text)
    assert news.empty()
    assert tunnel.url == url
    assert httpx.get(url).text == "done"


def test_a_fault_of_ours_is_told_to_who_waits(opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    def announce(url: str) -> None:
        raise ValueError("no paper")

    tunnel, news = opened(announce=announce)
    assert str(heard(news)) == "the tunnel is lost: the tunnel failed: no paper"
    tunnel._thread.join(PATIENCE)
    assert tunnel.facts().state == "failed"
    assert "Traceback" in caplog.text


def test_a_tunnel_that_answers_no_more_is_lost_and_opened_again(opened: Open, ngrok: FakeNgrok) -> None:
    _, news = opened(trial=0.1)
    heard(news)
    ngrok.silent(True)
    ngrok.signal(signal.SIGUSR1)
    assert str(heard(news)).startswith("the tunnel is lost: a request through")
    ngrok.silent(False)
    while not isinstance(found := heard(news), str):
        pass
    assert httpx.get(found).text == "done"


def test_trouble_that_passes_costs_nothing(opened: Open, ngrok: FakeNgrok, app: App) -> None:
    tunnel, news = opened()
    url = heard(news)
    ngrok.signal(signal.SIGUSR1)
    until(lambda: app.paths.count("/health/live") >= 2)
    assert tunnel.url == url
    assert news.empty()
    assert len(ngrok.pids) == 1


def test_what_may_pass_is_tried_again_and_told_once(opened: Open, ngrok: FakeNgrok) -> None:
    tunnel, news = opened()
    heard(news)
    ngrok.goes("limit")
    ngrok.signal(signal.SIGKILL)
    assert "lost" in str(heard(news))
    assert "ERR_NGROK_108" in str(heard(news))
    until(lambda: len(ngrok.pids) >= 4)
    assert news.empty()
    assert tunnel.facts().state == "lost"
    ngrok.goes("fine")
    assert heard(news) == tunnel.wait()


def test_what_lasts_is_not_tried_again(opened: Open, ngrok: FakeNgrok) -> None:
    ngrok.goes("bad token")
    tunnel, news = opened()
    heard(news)
    tunnel._thread.join(PATIENCE)
    assert len(ngrok.pids) == 1
    assert tunnel.facts().state == "failed"


def test_closing_while_the_agent_says_nothing(opened: Open, ngrok: FakeNgrok) -> None:
    ngrok.goes("mute")
    tunnel, news = opened(patience=3600.0)
    until(lambda: bool(ngrok.pids))
    tunnel.close()
    tunnel.close()
    assert news.empty()
    with pytest.raises(TunnelError, match="closed"):
        tunnel.wait()


def test_closing_without_start(ngrok: FakeNgrok) -> None:
    Tunnel("http://127.0.0.1:1", TOKEN, announce=pytest.fail, complain=pytest.fail).close()
    assert ngrok.pids == []


def test_the_token_is_in_no_process_list_and_not_left_on_disk(
    opened: Open, ngrok: FakeNgrok, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NGROK_AUTHTOKEN", "another-" + TOKEN)
    ngrok.goes("fine")
    _, news = opened()
    heard(news)
    agent = psutil.Process(ngrok.pids[-1])
    assert TOKEN not in " ".join(agent.cmdline())
    assert TOKEN not in " ".join(agent.environ().values())
    found = [path for path in settings.home().rglob("*") if path.is_file() and TOKEN in path.read_text()]
    assert found == []


OWNER = """if True:
    import signal, sys
    from locallab.tunnel import Tunnel
    tunnel = Tunnel(sys.argv[1], sys.argv[2], announce=lambda url: print(url, flush=True), complain=print)
    tunnel.start()
    tunnel.wait()
    signal.pause()
"""


def test_the_agent_ends_with_a_process_that_is_killed(ngrok: FakeNgrok, target: str) -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER, target, TOKEN], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout and owner.stdout.readline().startswith("http://")
        agent = psutil.Process(ngrok.pids[-1])
        owner.kill()
    psutil.wait_procs([agent], timeout=PATIENCE)
    assert ngrok.running == []


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    left, mine, other = (tmp_path / name for name in (f"{dead.pid}-a", f"{os.getpid()}-b", "notes"))
    for folder in (left, mine, other):
        folder.mkdir()
    code = "import time; time.sleep(3600)"
    with subprocess.Popen([sys.executable, "-c", code, "--config", str(left / "ngrok.yml")]) as orphan:
        sweep(tmp_path)
        assert orphan.wait(PATIENCE) == -signal.SIGKILL
    assert sorted(tmp_path.iterdir()) == sorted([mine, other])


def test_the_pauses_grow_to_a_minute() -> None:
    assert [pause(failures) for failures in (1, 2, 3, 6, 7, 1000)] == [2, 4, 8, 60, 60, 60]


@given(st.text(min_size=1), st.text(min_size=8, alphabet="abcDEF012_"), st.sampled_from(["", "105", "108", "319", "9999"]))
def test_a_reason_is_one_line_without_the_token(said: str, token: str, code: str) -> None:
    error = explained(f"{said}: Your authtoken: {token}\r\n\r\nERR_NGROK_{code}", token, "a.example")
    assert token not in str(error)
    assert len(str(error).splitlines()) == 1


MONTHS = st.builds(Month, st.sampled_from(["2026-01", "2026-02"]), *[st.integers(0, 10**6)] * 3)


@given(st.lists(MONTHS))
def test_months_add_up_in_any_order_and_only_the_last_counts(months: list[Month]) -> None:
    def total(each: list[Month]) -> Month:
        found = Month("")
        for month in each:
            found = found.plus(month)
        return found

    last = max((month.month for month in months), default="")
    assert total(months).requests == sum(month.requests for month in months if month.month == last)
    assert total(months) == total(months[::-1])


def test_usage_is_kept_for_all_servers() -> None:
    first, second = Usage(month=lambda: "2026-01"), Usage(month=lambda: "2026-01")
    first.add(requests=1, bytes_out=10, bytes_in=5)
    second.add(requests=2, bytes_out=20)
    first.save()
    second.save()
    first.save()
    assert second.now() == Usage(month=lambda: "2026-01").now() == Month("2026-01", 3, 30, 5)
    assert Usage(month=lambda: "2026-02").now() == Month("2026-02")


def test_a_damaged_usage_file_counts_as_none() -> None:
    (settings.home() / "tunnel.json").write_text("{")
    usage = Usage(month=lambda: "2026-01")
    usage.add(requests=1)
    usage.save()
    assert json.loads((settings.home() / "tunnel.json").read_text())["requests"] == 1


@pytest.mark.parametrize(
    ("requests", "sent", "used"), [(FREE_REQUESTS // 2, 0, 0.5), (0, FREE_BYTES, 1.0), (FREE_REQUESTS, FREE_BYTES * 2, 2.0)]
)
def test_how_much_of_the_free_plan_is_used(requests: int, sent: int, used: float) -> None:
    assert Month("2026-01", requests, sent).used == used


def test_nearly_all_of_the_plan_used_is_a_warning(opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    usage = Usage()
    usage.add(requests=FREE_REQUESTS * 9 // 10)
    _, news = opened(usage=usage)
    heard(news)
    until(lambda: "has used 90%" in caplog.text)
    assert caplog.text.count("has used") == 1


def test_what_goes_through_the_tunnel_is_counted_and_nothing_else(ngrok: FakeNgrok) -> None:
    news: News = queue.Queue()
    tunnel: Tunnel

    async def app(scope: Any, receive: Any, send: Any) -> None:
        inner = AccessLog(App(), enabled=False)
        await (inner if scope["type"] == "lifespan" else TunnelCounter(inner, tunnel))(scope, receive, send)

    with running(app) as target:
        tunnel = Tunnel(target, TOKEN, announce=news.put, complain=news.put, every=0.02)
        tunnel.start()
        url = heard(news)
        before = tunnel.usage.now()
        assert before.requests == 1  # the one that tried it
        response = httpx.post(f"{url}/stream", content=b"x" * 1000, headers={"connection": "close"})
        httpx.post(f"{target}/stream", content=b"x" * 1000)
        until(lambda: tunnel.facts().requests >= 2)
        after = tunnel.usage.now()
        facts = tunnel.facts()
        tunnel.close()
    assert after.requests - before.requests == 1
    assert 1000 < after.bytes_in - before.bytes_in < 1400
    assert len(response.content) < after.bytes_out - before.bytes_out < len(response.content) + 300
    assert (facts.url, facts.state, facts.error, facts.opened) == (url, "open", None, 1)
    assert facts.month.requests == after.requests
    assert (facts.month.free_plan.requests, facts.month.free_plan.bytes_out) == (20_000, 10**9)
    assert json.loads((settings.home() / "tunnel.json").read_text())["requests"] == after.requests


def test_the_bytes_of_a_websocket_are_counted(ngrok: FakeNgrok) -> None:
    counted: list[dict[str, int]] = []

    class Counting:
        usage = type("Usage", (), {"add": staticmethod(lambda **counts: counted.append(counts))})

        def carries(self, host: bytes) -> bool:
            return True

    async def talk(url: str) -> None:
        async with websockets.connect(f"ws{url.removeprefix('http')}/ws") as socket:
            await socket.send("ä" * 500)
            await socket.recv()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await TunnelCounter(App(), Counting())(scope, receive, send)  # type: ignore[arg-type]

    with running(app) as url:
        asyncio.run(talk(url))
    assert counted[0]["requests"] == 1
    assert 1000 <= counted[0]["bytes_out"] < 1100 < counted[0]["bytes_in"] < 1500


@pytest.mark.parametrize("key", ["ll-secret", None])
def test_the_announcement(key: str | None) -> None:
    url = "https://some-name.ngrok-free.app"
    text = announcement(url, "tiny:1b", key)
    lines = text.splitlines()
    assert lines[0] == f"Public address: {url}"
    command = shlex.split(next(line for line in lines if line.strip().startswith("curl")))
    assert command[1] == f"{url}/v1/chat/completions"
    assert f"Authorization: Bearer {key or '$LOCALLAB_API_KEY'}" in command
    assert json.loads(command[-1])["model"] == "tiny:1b"
    program = text[text.index("or in Python:\n") :].split("\n", 1)[1].rpartition("Anyone with")[0]
    compile(textwrap.dedent(program), "snippet", "exec")
    assert f'base_url="{url}/v1"' in program
    assert sum(line.count("█") + line.count("▀") + line.count("▄") for line in lines) > 100
    if key:
        assert key in text
    else:
        assert "locallab keys" in text


def test_clients_that_come_through_it_are_told_apart(ngrok: FakeNgrok, tmp_path: Path) -> None:
    """All of them come from the agent, which says for whom."""
    given = ServerSettings(auth=False, native_rate="2/hour")
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(contextlib.closing(listener.bind("127.0.0.1", 0)))
        tunnel = Tunnel(listener.url(sock), TOKEN, announce=lambda url: None, complain=lambda error: None)
        made = stack.enter_context(making(tmp_path))
        stack.callback(runner.Background(create_app(made.pool, given, tunnel=tunnel), sock, given).stop)
        stack.callback(tunnel.close)
        tunnel.start()
        url = tunnel.wait()

        def left(*clients: str) -> list[int]:
            answers = [httpx.get(f"{url}/system/info", headers={"x-forwarded-for": client}) for client in clients]
            return [int(answer.headers["x-ratelimit-remaining"]) for answer in answers]

        assert left("1.1.1.1", "1.1.1.1", "2.2.2.2", "9.9.9.9, 2.2.2.2", "3.3.3.3") == [1, 0, 1, 0, 1]
