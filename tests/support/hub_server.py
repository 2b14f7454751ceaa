"""A loopback server with the part of the Hub's protocol that huggingface_hub uses to list a repository and fetch files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PIECES = 16


@dataclass
class Repo:
    """One repository: its files, and who may read it ("public", "gated" or "private": the latter two want `token`)."""

    files: dict[str, bytes]
    access: str = "public"
    token: str = ""


@dataclass
class Hub:
    """The served repositories, and their misbehaviour.

    Every request: `fail` answers it with that status; `busy` holds (status, headers) for as many requests, then all is well.
    Downloads: `cuts` break off in the middle, that many; `stalls` send half and then nothing; `wrong` send other bytes;
    `ranges` False ignores Range. `hold` is waited for in the middle of each; `pieces` sends them bit by bit; `redirect` sends
    the client to another address, as the Hub does for large files. `commit` None leaves out the header that marks a Hub.

    `moved` maps former names of repositories to their present ones, where requests are sent on.

    `requests` collects the path of everything asked; `gets` (path, Range header) of each download; `sent` the bytes of their
    bodies; `tokens` the Authorization headers that came to the other address.
    """

    repos: dict[str, Repo] = field(default_factory=dict)
    fail: int | None = None
    busy: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    cuts: int = 0
    stalls: int = 0
    wrong: int = 0
    ranges: bool = True
    pieces: bool = False
    redirect: bool = False
    moved: dict[str, str] = field(default_factory=dict)
    commit: str | None = COMMIT
    hold: threading.Event | None = None
    half: threading.Event = field(default_factory=threading.Event)
    requests: list[str] = field(default_factory=list)
    gets: list[tuple[str, str | None]] = field(default_factory=list)
    sent: int = 0
    tokens: list[str | None] = field(default_factory=list)
    url: str = ""
    storage: str = ""
    closing: threading.Event = field(default_factory=threading.Event)


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Serve `hub` on two free ports of the loopback, the second for files it redirects to; set `url`, and stop."""
    with _listening(hub, _Handler) as hub.url, _listening(hub, _Storage) as hub.storage:
        try:
            yield hub
        finally:
            hub.closing.set()
            if hub.hold:
                hub.hold.set()


@contextmanager
def _listening(hub: Hub, kind: type[_Handler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (kind,), {"hub": hub}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
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
        """Log nothing."""

    def _answer(self) -> None:
        self.hub.requests.append(self.path)
        path = unquote(self.path.partition("?")[0])
        listing = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path)
        resolving = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        found = listing or resolving
        name, revision = found.group(1, 2) if found else ("", "")
        repo = self.hub.repos.get(name)
        authorization = self.headers.get("Authorization")
        allowed = repo is not None and (repo.access == "public" or authorization == f"Bearer {repo.token}")
        file = resolving[3] if resolving else None
        if self.hub.busy:
            status, headers = self.hub.busy.pop(0)
            self._refuse(status, None, headers)
        elif self.hub.fail:
            self._refuse(self.hub.fail, None)
        elif name in self.hub.moved:
            self._refuse(307, None, {"Location": self.path.replace(name, self.hub.moved[name])})
        elif repo is None or (repo.access == "private" and not allowed):
            self._refuse(404 if authorization else 401, "RepoNotFound")
        elif not allowed and file:
            self._refuse(403 if authorization else 401, "GatedRepo")
        elif revision not in ("main", None, COMMIT):
            self._refuse(404, "RevisionNotFound")
        elif file is None:
            self._list(name, repo)
        elif file not in repo.files:
            self._refuse(404, "EntryNotFound")
        elif self.hub.redirect:
            self._redirect(repo.files[file])
        else:
            self._send(repo.files[file])

    def _refuse(self, status: int, code: str | None, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _list(self, name: str, repo: Repo) -> None:
        siblings = [_sibling(file, content, "blobs=" in self.path) for file, content in repo.files.items()]
        body = json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _redirect(self, content: bytes) -> None:
        self.send_response(302)
        self._mark()
        self.send_header("Location", f"{self.hub.storage}{self.path}")
        self.send_header("X-Linked-Etag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Linked-Size", str(len(content)))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _mark(self) -> None:
        if self.hub.commit:
            self.send_header("X-Repo-Commit", self.hub.commit)

    def _send(self, content: bytes) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")) if self.hub.ranges else None
        start = int(wanted[1]) if wanted else 0
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self._mark()
        self.send_header("ETag", f'"{etag(content)}"')
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command == "GET":
            self.hub.gets.append((self.path, self.headers.get("Range")))
            with contextlib.suppress(ConnectionError):
                self._send_body(content[start:])

    def _send_body(self, body: bytes) -> None:
        if self.hub.wrong:
            self.hub.wrong -= 1
            body = body[::-1]
        half = len(body) // 2
        self._write(body[:half])
        self.hub.half.set()
        if self.hub.hold:
            self.hub.hold.wait(60)
        if self.hub.stalls:
            self.hub.stalls -= 1
            self.hub.closing.wait(60)
            self.close_connection = True
        elif self.hub.cuts:
            self.hub.cuts -= 1
            self.close_connection = True
        else:
            self._write(body[half:])

    def _write(self, body: bytes) -> None:
        size = max(1, len(body) // PIECES) if self.hub.pieces else max(1, len(body))
        for start in range(0, len(body), size):
            self.wfile.write(body[start : start + size])
            self.hub.sent += len(body[start : start + size])


class _Storage(_Handler):
    """The address that large files are redirected to: it checks no rights, and must get no token."""

    def _answer(self) -> None:
        self.hub.tokens.append(self.headers.get("Authorization"))
        name, file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", unquote(self.path)).groups()  # type: ignore[union-attr]
        self._send(self.hub.repos[name].files[file])


def etag(content: bytes) -> str:
    """Return the Hub's etag: the SHA-256 of a large file, git's SHA-1 of a small text."""
    if content.startswith(b"GGUF"):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _sibling(file: str, content: bytes, blobs: bool) -> dict[str, object]:
    """A file in a listing; with `blobs` its size and, as of all weights, its SHA-256 in LFS."""
    if not blobs:
        return {"rfilename": file}
    described: dict[str, object] = {"rfilename": file, "size": len(content), "blobId": "0" * 40}
    if content.startswith(b"GGUF"):
        described["lfs"] = {"sha256": etag(content), "size": len(content), "pointerSize": 135}
    return described
