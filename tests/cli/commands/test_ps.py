from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

from click.testing import CliRunner

from locallab import __version__, cli
from tests.support.fake_engine import say
from tests.support.http_server import Serve


def test_what_is_loaded(serve: Serve) -> None:
    gate = threading.Event()
    with serve(on_demand="keep") as served, ThreadPoolExecutor() as pool:
        served.http.post("/models/load", json={"model_id": "other:2b"})
        served.script(*say("a"), gate, *say("b"))
        answer = pool.submit(served.http.post, "/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}]})
        while not served.engine.submitted:
            assert not answer.done()
        shown = CliRunner().invoke(cli.main, ["ps", "--url", served.url])
        report = json.loads(CliRunner().invoke(cli.main, ["ps", "--url", served.url, "--json"]).stdout)
        gate.set()
        assert answer.result().status_code == 200
    assert shown.stderr.startswith(f"LocalLab {__version__} at {served.url}, up for ")
    heading, first, second = (line.split() for line in shown.stdout.splitlines())
    assert heading == ["model", "memory", "device", "context", "kv", "cache", "running", "waiting", "loaded"]
    assert (first[0], second[0]) == ("other:2b", "tiny:1b")
    assert first[1:4] == ["100", "MB", "RAM"] and "attention, unified" in shown.stdout
    kept = [tuple(model[name] for name in ("memory_kind", "kv_layout", "prefix_reuse")) for model in report["models"]]
    assert kept == [("attention", "unified", "prefix")] * 2
    assert (report["url"], report["version"], report["models"][0]["id"]) == (served.url, __version__, "other:2b")
    assert [(model["running"], model["ram_bytes"]) for model in report["models"]] == [(1, 10**8), (0, 10**8)]


def test_nothing_is_loaded(serve: Serve) -> None:
    with serve(load=None) as served:
        shown = CliRunner().invoke(cli.main, ["ps", "--url", served.url])
    assert (shown.exit_code, shown.stdout.count("\n")) == (0, 1)


def test_no_server(nowhere: str) -> None:
    shown = CliRunner().invoke(cli.main, ["ps"])
    assert (shown.exit_code, shown.stdout) == (1, "")
    assert shown.stderr.startswith(f"locallab: no server answers at {nowhere};")
