"""`locallab serve --tunnel` as a process, with the stand-in for ngrok."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest

from locallab import settings
from tests.support.cli_process import command, failed
from tests.support.fake_tunnel import TOKEN, FakeCloudflared, FakeNgrok
from tests.support.wait import LONG_PATIENCE

FLAGS = ("--tunnel", "--port", "0", "--context", "512", "--threads", "1", "--grace", "0")


@pytest.fixture
def ngrok(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNgrok:
    monkeypatch.setenv("LOCALLAB_NGROK_TOKEN", TOKEN)
    return FakeNgrok(tmp_path, monkeypatch)


def said(process: subprocess.Popen[str], until: Callable[[str], object]) -> str:
    """Return the output of the command up to the line that `until` accepts."""
    assert process.stdout
    text = ""
    for line in process.stdout:
        text += line
        if until(line):
            return text
    raise AssertionError(text)


def test_the_address_the_key_and_the_snippet_that_is_printed_work(ngrok: FakeNgrok, model_path: Path) -> None:
    with command("--model", str(model_path), *FLAGS) as process:
        text = said(process, lambda line: line.startswith("Anyone with the address"))
        local = re.search(r"listens on (\S+)", text)
        public = re.search(r"^Public address: (\S+)$", text, re.MULTILINE)
        assert local and public and text.index("listens on") < public.start()
        snippet = re.search(rf"^  (curl {public[1]}.*)$", text, re.MULTILINE)
        assert snippet
        answer = subprocess.run(snippet[1], shell=True, capture_output=True, text=True, timeout=LONG_PATIENCE).stdout
        without = httpx.get(f"{public[1]}/v1/models", timeout=LONG_PATIENCE).status_code
        page = httpx.get(public[1], headers={"accept": "text/html,*/*;q=0.8"}, timeout=LONG_PATIENCE)  # what the QR code opens
        everything = " ".join(word for each in psutil.Process(process.pid).children(recursive=True) for word in each.cmdline())
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=LONG_PATIENCE)
    assert '"finish_reason"' in answer
    assert without == 401
    assert page.headers["content-type"].startswith("text/html") and "page/app.js" in page.text
    assert process.returncode == 0
    assert TOKEN not in everything + text + err
    assert (len(ngrok.pids), ngrok.running) == (1, [])
    assert '"requests":' in (settings.home() / "tunnel.json").read_text()


def test_a_tunnel_that_fails_is_one_line_and_the_server_serves(ngrok: FakeNgrok, model_path: Path) -> None:
    ngrok.goes("bad token")
    with command("--model", str(model_path), *FLAGS) as process:
        text = said(process, lambda line: "print(" in line)
        assert process.stderr
        line = next(line for line in process.stderr if "no public address" in line)
        found = re.search(r"listens on (\S+)", text)
        assert found and httpx.get(f"{found[1]}/health/ready", timeout=LONG_PATIENCE).status_code == 200
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=LONG_PATIENCE)
    assert "ngrok does not know this token" in line and "ERR_NGROK_105" in line
    assert TOKEN not in text + line + err
    assert process.returncode == 0


def test_a_public_address_without_keys_is_refused(ngrok: FakeNgrok) -> None:
    reason = "locallab: tunnel: a public address requires a key; remove --no-auth\n"
    assert failed("--tunnel", "--no-auth", "--port", "0") == (2, reason)


def test_cloudflared_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_path: Path) -> None:
    agent = FakeCloudflared(tmp_path, monkeypatch)
    with command("--model", str(model_path), *FLAGS[1:], LOCALLAB_TUNNEL="cloudflared") as process:
        text = said(process, lambda line: line.startswith("Anyone with the address"))
        public = re.search(r"^Public address: (\S+)$", text, re.MULTILINE)
        key = re.search(r"^  key      (\S+)", text, re.MULTILINE)
        assert public and key
        headers = {"authorization": f"Bearer {key[1]}"}
        tunnel = httpx.get(f"{public[1]}/system/info", headers=headers, timeout=LONG_PATIENCE).json()["tunnel"]
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=LONG_PATIENCE)
    assert (tunnel["provider"], tunnel["state"], tunnel["url"]) == ("cloudflared", "open", public[1])
    assert process.returncode == 0
    assert (len(agent.pids), agent.running) == (1, [])
