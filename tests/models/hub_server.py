"""A loopback server that speaks as much of the Hub's protocol as huggingface_hub uses to fetch one file."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repo:
    """One repository: its files, and who may read it ("public", "gated" or "private": the latter two want `token`)."""

    files: dict[str, bytes]
    access: str = "public"
    token: str = ""


@dataclass
class Hub:
    """What is served, and how it misbehaves.

    `fail` answers everything with that status; `cuts` breaks off that many downloads in the middle; `commit` None leaves out
    the header that marks a Hub. `gets` collects (path, Range header) of each file that was downloaded.
    """

    repos: dict[str, Repo] = field(default_factory=dict)
    fail: int | None = None
    cuts: int = 0
    commit: str | None = COMMIT
    gets: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Serves `hub` on a free port of the loopback, sets its `url`, and stops."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *args: object) -> None:
        """Quiet."""

    def _answer(self) -> None:
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", unquote(self.path))
        name, revision, file = found.groups() if found else ("", "", "")
        repo = self.hub.repos.get(name)
        authorization = self.headers.get("Authorization")
        allowed = repo is not None and (repo.access == "public" or authorization == f"Bearer {repo.token}")
        if self.hub.fail:
            self._refuse(self.hub.fail, None)
        elif repo is None or (repo.access == "private" and not allowed):
            self._refuse(404 if authorization else 401, "RepoNotFound")
        elif not allowed:
            self._refuse(403 if authorization else 401, "GatedRepo")
        elif revision not in ("main", COMMIT):
            self._refuse(404, "RevisionNotFound")
        elif file not in repo.files:
            self._refuse(404, "EntryNotFound")
        else:
            self._send(repo.files[file])

    def _refuse(self, status: int, code: str | None) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, content: bytes) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted else 0
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        if self.hub.commit:
            self.send_header("X-Repo-Commit", self.hub.commit)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command == "GET":
            self.hub.gets.append((self.path, self.headers.get("Range")))
            self._send_body(content[start:])

    def _send_body(self, body: bytes) -> None:
        if self.hub.cuts:
            self.hub.cuts -= 1
            self.close_connection = True
            body = body[: len(body) // 2]
        self.wfile.write(body)
