"""`locallab serve` as a process behind a certificate and at a Unix socket."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.certificates import Certificate, issue
from tests.support.cli_process import ROOT, command, failed
from tests.support.wait import LONG_PATIENCE, until

FLAGS = ("--context", "512", "--threads", "1", "--grace", "0")


@contextlib.contextmanager
def started(*flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a server; yield the process and its banner."""
    with command(*flags, *FLAGS) as process:
        try:
            assert process.stdout
            banner = ""
            while "print(" not in banner:
                line = process.stdout.readline()
                assert line, process.stderr and process.stderr.read()
                banner += line
            yield process, banner
        finally:
            process.kill()


def tried(banner: str, **environ: str) -> list[str]:
    """Return what the banner's two examples print."""
    curl = re.search(r"^  (curl .*)$", banner, re.MULTILINE)
    assert curl
    snippet = banner[banner.index("or in Python:") :].partition("\n")[2].replace("\n  ", "\n").strip()
    commands = [shlex.split(curl[1]), [sys.executable, "-c", snippet]]
    return [
        subprocess.run(each, env=os.environ | environ, capture_output=True, text=True, timeout=LONG_PATIENCE, check=True).stdout
        for each in commands
    ]


def ps(**environ: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "locallab", "ps"],
        cwd=ROOT,
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=LONG_PATIENCE,
    )
    return done.stdout + done.stderr


def test_https_as_the_banner_says(model_path: Path, tmp_path: Path) -> None:
    certificate = issue(tmp_path)
    with started("--model", str(model_path), "--port", "0", *certificate.flags()) as (process, banner):
        found = re.search(r"listens on https://localhost:(\d+)$", banner, re.MULTILINE)
        assert found
        answers = tried(banner, CURL_CA_BUNDLE=str(certificate.authority), SSL_CERT_FILE=str(certificate.authority))
        [server] = psutil.Process(process.pid).children()
        server.send_signal(signal.SIGABRT)
        server.wait(LONG_PATIENCE)
        next_one = httpx.get(f"https://localhost:{found[1]}/health", verify=certificate.trusting(), timeout=LONG_PATIENCE)
        shown = ps(LOCALLAB_PORT=found[1], LOCALLAB_TLS_CERT=str(certificate.cert))
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=LONG_PATIENCE)
    assert '"finish_reason"' in answers[0] and answers[1].strip()
    assert next_one.json()["status"] == "healthy"
    assert f"at https://127.0.0.1:{found[1]}" in shown and model_path.stem in shown
    assert process.returncode == 0
    assert "Traceback" not in err


def test_a_unix_socket_as_the_banner_says_also_after_a_death(model_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "locallab.sock"
    with started("--model", str(model_path), "--uds", str(path)) as (process, banner):
        assert f"listens on unix:{path}\n" in banner
        answers = tried(banner)
        shown = ps(LOCALLAB_UDS=str(path))
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://localhost") as client:
            [server] = psutil.Process(process.pid).children()
            server.send_signal(signal.SIGABRT)
            server.wait(LONG_PATIENCE)
            assert client.get("/health", timeout=LONG_PATIENCE).json()["status"] == "healthy"  # it waits in the backlog
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=LONG_PATIENCE)
    assert '"finish_reason"' in answers[0] and answers[1].strip()
    assert f"at unix:{path}" in shown
    assert process.returncode == 0
    assert f"restarted: LocalLab listens on unix:{path} again" in err
    assert not path.exists()


def test_a_server_that_dies_too_often_leaves_no_socket(model_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "locallab.sock"
    with started("--model", str(model_path), "--uds", str(path), "--max-deaths", "1") as (process, _):
        [server] = psutil.Process(process.pid).children()
        server.send_signal(signal.SIGABRT)
        process.communicate(timeout=LONG_PATIENCE)
    assert process.returncode == 1
    until(lambda: not path.exists())


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    return issue(tmp_path)


@pytest.mark.parametrize("what", ["no key", "no certificate", "missing", "damaged", "another's"])
def test_a_certificate_that_cannot_be_used_is_one_line_and_status_2(
    certificate: Certificate, tmp_path: Path, what: str
) -> None:
    flags = certificate.flags()
    match what:
        case "no key":
            del flags[2:]
        case "no certificate":
            del flags[:2]
        case "missing":
            certificate.key.unlink()
        case "damaged":
            certificate.cert.write_text("text")
        case _:
            (tmp_path / "other").mkdir()
            flags[3] = str(issue(tmp_path / "other").key)
    status, err = failed("--port", "0", *flags)
    assert status == 2
    assert err.startswith("locallab: tls_")
    assert err.count("\n") == 1


@pytest.mark.parametrize("what", ["long", "no folder", "file", "in use", "port", "variable", "mode", "tunnel"])
def test_a_socket_that_cannot_be_made_is_one_line_and_status_2(tmp_path: Path, what: str) -> None:
    path, more, environ = tmp_path / "x.sock", (), {}
    with contextlib.ExitStack() as held:
        match what:
            case "long":
                path = tmp_path / ("x" * 120)
            case "no folder":
                path = tmp_path / "none" / "x.sock"
            case "file":
                path.write_text("data")
            case "in use":
                held.enter_context(socket.socket(socket.AF_UNIX)).bind(str(path))
            case "port":
                more = ("--port", "8000")
            case "variable":
                environ = {"LOCALLAB_HOST": "0.0.0.0"}
            case "mode":
                more = ("--uds-mode", "888")
            case "tunnel":
                more = ("--tunnel",)
        status, err = failed("--uds", str(path), *more, **environ)
    expected = {"port": "--port: ", "variable": "LOCALLAB_HOST: ", "mode": "--uds-mode: ", "tunnel": "tunnel: "}
    assert status == 2
    assert err.startswith("locallab: " + expected.get(what, "uds: "))
    assert err.count("\n") == 1
    assert what != "file" or path.read_text() == "data"
    assert path.exists() == (what in ("file", "in use"))
