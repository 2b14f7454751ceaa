from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import sys
import types
import webbrowser
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from locallab.cli.commands import serve
from locallab.inprocess import launch
from locallab.server import listener
from locallab.supervision import BlackBox, SetAside, Supervision
from tests.support.cli_process import ROOT, failed, serving
from tests.support.fake_pool import making
from tests.support.wait import LONG_PATIENCE, until


def test_a_model_file_is_served_and_tried_as_the_banner_says(model_path: Path) -> None:
    flags = ("--port", "0", "--context", "512", "--threads", "1", "--openmp", "gnu")
    with serving("--model", str(model_path), *flags) as (process, base, banner):
        name = model_path.stem
        assert f"model    {name} (" in banner
        assert "device   " in banner
        assert "context  512 tokens" in banner
        found = re.search(r"^  (curl .*)$", banner, re.MULTILINE)
        assert found
        curl = subprocess.run(found[1], shell=True, capture_output=True, text=True, timeout=LONG_PATIENCE)
        snippet = banner[banner.index("  from openai") :].replace("\n  ", "\n").strip()
        python = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, timeout=LONG_PATIENCE)
        client = OpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0)
        assert [model.id for model in client.models.list() if model.id == name] == [name]
        openmp = httpx.get(f"{base}/system/info").json()["process"]["openmp"]
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=LONG_PATIENCE)
    assert (openmp["name"], openmp["reason"]) == ("GNU", "LOCALLAB_OPENMP is gnu")
    assert err.count("the OpenMP runtime is GNU ") == 1
    assert '"finish_reason"' in curl.stdout
    assert (python.returncode, python.stderr) == (0, "")
    assert python.stdout.strip()
    assert (process.returncode, out.strip()) == (0, "")
    assert "Traceback" not in err


def test_a_stream_finishes_when_the_server_is_stopped(model_path: Path) -> None:
    body = {"prompt": "Once", "max_tokens": 40, "stream": True, "temperature": 0, "ignore_eos": True}
    with (
        serving("--model", str(model_path), "--port", "0", "--context", "512", "--grace", "60") as (process, base, _),
        httpx.stream("POST", f"{base}/v1/completions", json=body, timeout=LONG_PATIENCE) as response,
    ):
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        process.send_signal(signal.SIGINT)
        assert [line for line in lines if line][-1] == "data: [DONE]"
        process.communicate(timeout=LONG_PATIENCE)
    assert process.returncode == 0


def test_a_stream_is_ended_after_the_grace(model_path: Path) -> None:
    body = {"prompt": "Once", "max_tokens": 4000, "stream": True, "temperature": 0, "ignore_eos": True}
    with (
        serving("--model", str(model_path), "--port", "0", "--context", "4096", "--grace", "0") as (process, base, _),
        httpx.stream("POST", f"{base}/v1/completions", json=body, timeout=LONG_PATIENCE) as response,
    ):
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        process.send_signal(signal.SIGTERM)
        last = [line for line in lines if line][-1]
        _, err = process.communicate(timeout=LONG_PATIENCE)
    assert "the engine was closed before the answer was complete" in last
    assert process.returncode == 0
    assert "Traceback" not in err


def test_a_port_in_use_fails_before_anything_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, err = failed("--port", str(port))
    reason = f"port: {port} on 127.0.0.1 is in use; choose another with --port, or 0 for any free one"
    assert (status, err) == (2, f"locallab: {reason}\n")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--model", "smollm2:135"], "unknown model 'smollm2:135'; did you mean smollm2:135m"),
        (["--model", "nowhere.gguf"], "nowhere.gguf"),
        (["--lora", "x=nowhere.gguf"], "lora: x: there is no file"),
        (["--lora", "nowhere.gguf"], "lora: 'nowhere.gguf': expected NAME=FILE or NAME=FILE:SCALE"),
        (["--host", "no.such.host.invalid"], "host: 'no.such.host.invalid' is not an address of this machine"),
        (["--cache-disk", "setup.cfg"], "cache_disk: setup.cfg cannot be used: it is no directory; name a writable directory"),
        (["--cache-disk", "/proc/x"], "cache_disk: /proc/x cannot be used: No such file or directory"),
        (["--cache-disk-gib", "10GB"], "'--cache-disk-gib': '10GB' is not a valid"),
        (["--open", "--no-page"], "--open: --no-page leaves out the page that it would open"),
        (["--openmp", "/proc/x"], "LOCALLAB_OPENMP: this OpenMP runtime cannot be used: /proc/x: cannot open"),
    ],
    ids=[
        "unknown model",
        "missing file",
        "missing adapter",
        "bad adapter",
        "bad host",
        "no directory",
        "bad directory",
        "bad size",
        "no page to open",
        "no library",
    ],
)
def test_what_cannot_work_is_one_line_and_status_2(arguments: list[str], reason: str) -> None:
    status, err = failed(*arguments)
    assert status == 2
    assert err.startswith("locallab: ")
    assert reason in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("problem", ["missing", "protocol"])
def test_traces_that_cannot_be_sent_are_one_line_and_status_2(tmp_path: Path, model_path: Path, problem: str) -> None:
    environ = {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    if problem == "missing":
        (tmp_path / "opentelemetry.py").write_text("raise ImportError")
        environ = {"PYTHONPATH": str(tmp_path)}
    status, err = failed("--otel", "--model", str(model_path), "--port", "0", "--log-level", "error", **environ)
    reason = {
        "missing": "otel: needs OpenTelemetry: pip install ",
        "protocol": "OTEL_EXPORTER_OTLP_PROTOCOL: traces are sent by",
    }
    assert status == 2
    assert err.startswith(f"locallab: {reason[problem]}")
    assert err.count("\n") == 1


def test_a_wrong_variable_is_one_line_and_status_2() -> None:
    status, err = failed(LOCALLAB_PARALLEL="many")
    assert status == 2
    assert err.startswith("locallab: LOCALLAB_PARALLEL: ")
    assert err.count("\n") == 1


def test_a_file_that_is_no_model_is_named_with_status_1(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    status, err = failed("--model", str(broken), "--port", "0", "--log-level", "error")
    assert status == 1
    assert err.splitlines()[-1].startswith(f"locallab: cannot load {broken}: ")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::1", "[::1]"), ("::", "[::1]")]
)
def test_url_is_one_a_local_client_can_use(host: str, shown: str) -> None:
    if ":" in host and not socket.has_ipv6:
        pytest.skip("no IPv6")
    with contextlib.closing(listener.bind(host, 0)) as sock:
        assert listener.url(sock) == f"http://{shown}:{sock.getsockname()[1]}"


def test_a_signal_while_loading_ends_with_status_0(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []

    class LoadingPool:
        supervision = Supervision(BlackBox())

        def __init__(self, *arguments: Any, **options: Any) -> None:
            """Accept the arguments of Pool."""

        def on_loaded(self, *arguments: Any) -> None:
            """Do nothing: no model is loaded."""

        def load_now(self, *arguments: Any) -> None:
            signal.raise_signal(signal.SIGTERM)

        def close(self) -> None:
            closed.append(True)

    monkeypatch.setattr(launch, "Pool", LoadingPool)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        serve.command.callback(port=0, model="smollm2:135m")  # type: ignore[misc]
    assert ended.value.code == 0
    assert closed == [True]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_signal_is_left_to_the_supervisor() -> None:
    with pytest.raises(SystemExit) as ended, serve._stoppable(supervised=True):
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
    assert ended.value.code == 0


def test_a_restarted_server_goes_on_without_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aside = {"tiny:1b": SetAside("its load ended the server: SIGSEGV", 0)}  # an explicit load would try it
    with making(tmp_path, supervision=Supervision(BlackBox(), 1, set_aside=aside)) as made:
        assert serve._load_again(made.pool, "tiny:1b", print) is None and made.engines == []
        assert serve._load_again(made.pool, "broken:3b", print) is None
        monkeypatch.setattr(serve, "PATIENCE", 0.01)
        gate = made.hold("other")
        assert serve._load_again(made.pool, "other:2b", print) is None
        gate.set()
        until(lambda: made.pool.current is not None)
        assert serve._load_again(made.pool, "other:2b", print) is made.pool.current


def test_a_broken_llama_library_is_named() -> None:
    """Run with a llama_cpp that fails like one with missing libraries."""
    code = """if True:
        import sys
        class Broken:
            def find_spec(self, name, path=None, target=None):
                if name == "llama_cpp":
                    raise RuntimeError("Failed to load shared library 'libllama.so': libgomp.so.1: cannot open")
        sys.meta_path.insert(0, Broken())
        from locallab.cli import main
        main(["serve", "--port", "0"])
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=LONG_PATIENCE)
    assert done.returncode == 1
    assert done.stderr.startswith("locallab: llama.cpp cannot be loaded: Failed to load shared library")
    assert done.stderr.count("\n") == 1


def test_the_page_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    opened, browser = tmp_path / "opened", tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" > {opened}.part && mv {opened}.part {opened}\n')
    browser.chmod(0o755)
    monkeypatch.setenv("BROWSER", str(browser))
    with serving("--model", "smollm2:135m", "--port", "0", "--context", "512", "--open") as (_, base, _banner):
        until(opened.exists)
        assert opened.read_text() == base
    monkeypatch.setattr(webbrowser, "open", lambda url: False)
    serve.open_page("http://127.0.0.1:1")
    assert "the page is at http://127.0.0.1:1" in caplog.text


def test_banner() -> None:
    info = types.SimpleNamespace(description="llama 135M Q4_1", device="CPU (2 threads)", context=8192, kv_tokens=16384)
    loaded: Any = types.SimpleNamespace(engine=types.SimpleNamespace(info=info), spec=types.SimpleNamespace(id="smollm2:135m"))
    text = serve.banner(loaded, "http://127.0.0.1:8000")
    assert "listens on http://127.0.0.1:8000\n" in text
    assert "in a browser: http://127.0.0.1:8000\n" in text
    assert "smollm2:135m (llama 135M Q4_1)" in text
    assert "CPU (2 threads)" in text
    assert "8,192 tokens per request; the KV cache holds 16,384" in text
