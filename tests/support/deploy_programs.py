"""The programs that the files of scripts/deploy are for."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.wait import free_port, until

DEPLOY = Path(__file__).parents[2] / "scripts" / "deploy"
REQUIRED = "LOCALLAB_TEST_DEPLOY"
"""Where this is set, a machine without one of the programs fails the tests; elsewhere it skips them."""

WANTED = bool(os.environ.get(REQUIRED))
FOLDERS = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
UPSTREAM = "127.0.0.1:8000"
NAME = "llm.example.com"

MAIN = """\
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    scgi_temp_path {folder}/scgi;
    uwsgi_temp_path {folder}/uwsgi;
    include {site};
}}
"""
"""What a distribution's own nginx.conf does around the files of conf.d, with all folders in one."""


def program(name: str, package: str = "") -> str:
    """Return the path of a program of this machine. Skip the test where there is none, or fail it where REQUIRED is set."""
    found = shutil.which(name, path=FOLDERS)
    if found is None:
        missing(f"there is no {name}: install it, as by `apt-get install {package or name}`")
    return found


def missing(reason: str) -> None:
    (pytest.fail if WANTED else pytest.skip)(reason)


def replaced(file: str, values: Mapping[str, str]) -> str:
    """Return the text of a file of scripts/deploy with other values, each of which must be in it once outside of comments."""
    lines = (DEPLOY / file).read_text().splitlines()
    for old, new in values.items():
        at = [number for number, line in enumerate(lines) if old in line and not line.lstrip().startswith("#")]
        assert len(at) == 1, f"{file}: {old!r} is in {len(at)} lines"
        lines[at[0]] = lines[at[0]].replace(old, new)
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def nginx(folder: Path, upstream: str, root: str = "") -> Iterator[str]:
    """Run nginx with our file; yield its URL. `upstream` is the server's address, `root` the path that it is served below."""
    port = free_port()
    values = {UPSTREAM: upstream, "listen 80;": f"listen 127.0.0.1:{port};", NAME: "_"}
    if root:
        values["location / {"] = f"location {root}/ {{"
    site, main = folder / "site.conf", folder / "main.conf"
    site.write_text(replaced("nginx.conf", values))
    main.write_text(MAIN.format(folder=folder, site=site))
    with _running([program("nginx"), "-p", str(folder), "-c", str(main)], folder, port) as url:
        yield url


@contextlib.contextmanager
def caddy(folder: Path, upstream: str, root: str = "") -> Iterator[str]:
    """Run Caddy with our file, without TLS; yield its URL."""
    port = free_port()
    below = f"reverse_proxy {root}* " if root else "reverse_proxy "
    file = folder / "Caddyfile"
    file.write_text(replaced("Caddyfile", {f"reverse_proxy {UPSTREAM}": below + upstream, NAME: f"http://127.0.0.1:{port}"}))
    command = [program("caddy"), "run", "--config", str(file), "--adapter", "caddyfile"]
    with _running(command, folder, port) as url:
        yield url


@contextlib.contextmanager
def _running(command: list[str], folder: Path, port: int) -> Iterator[str]:
    own = {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    environment = {**os.environ, **own, "CADDY_ADMIN": f"unix/{folder}/admin"}
    with open(folder / "log", "w+") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            until(lambda: process.poll() is not None or _listens(port), 60)
            assert process.poll() is None, (folder / "log").read_text()
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(60)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False
