"""A stand-in for the ngrok agent: its flags, its log, its local API, and a public address that really forwards to loopback.

    ngrok.py FOLDER start --none --log stdout --config FILE

FOLDER/behaviour says how it goes: "fine" or some misfortune. FOLDER/pids gets a line for each start. While FOLDER/silent is
there the public address answers nothing. SIGUSR1: the agent tells of trouble. A reserved domain is a port that stays.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

BAD = (
    "authentication failed: The authtoken you specified does not look like a proper ngrok tunnel authtoken."
    "\\nYour authtoken: {token}"
)
LIMIT = "authentication failed: Your account is limited to 1 simultaneous ngrok agent sessions.\\nYou can run more with a plan."
DIAL = 'failed to dial ngrok server with address \\"connect.example:443\\": dial tcp: lookup connect.example: no such host'
REFUSALS = {
    "bad token": (BAD, "105"),
    "old token": ("authentication failed: The authtoken you specified is properly formed, but it is invalid.", "107"),
    "limit": (LIMIT, "108"),
}


class Ngrok:
    """One agent. Public connections are piped unchanged, so streams and WebSockets pass too."""

    error = b"404 Not Found\r\nngrok-error-code: ERR_NGROK_3200"

    def __init__(self, folder: Path, token: str) -> None:
        self.folder = folder
        self.token = token
        self.behaviour = (folder / "behaviour").read_text()
        self.tunnels: dict[str, dict[str, Any]] = {}
        self.conns = 0
        self.requests = 0
        self.tls: ssl.SSLContext | None = None

    async def run(self) -> int:
        if self.behaviour == "mute":
            await asyncio.Event().wait()
        web = await asyncio.start_server(self.api, "127.0.0.1", 0)
        addr = f"127.0.0.1:{web.sockets[0].getsockname()[1]}"
        say("info", "starting web service", obj="web", addr=addr)
        if self.behaviour in REFUSALS:
            reason, code = REFUSALS[self.behaviour]
            self.refuse(f"{reason.format(token=self.token)}\\r\\n\\r\\nERR_NGROK_{code}\\r\\n")
            return 1
        while self.behaviour == "offline":
            say("eror", "failed to reconnect session", obj="tunnels.session", err=DIAL)
            await asyncio.sleep(0.1)
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self.stumble)
        say("info", "client session established", obj="tunnels.session")
        say("info", "tunnel session started", obj="tunnels.session")
        await asyncio.Event().wait()
        return 0

    def stumble(self) -> None:
        """Log what the agent does when it loses its session."""
        say("eror", "failed to reconnect session", obj="tunnels.session", err=DIAL)

    def refuse(self, reason: str) -> None:
        for message in ("failed to reconnect session", "session closing", "terminating with error"):
            say("eror", message, obj="tunnels.session", err=reason)
        for line in reason.replace("\\r", "").split("\\n"):
            print("ERROR: ", line, file=sys.stderr)

    async def api(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, path, _ = head[0].split()
        length = next((int(line.split(":")[1]) for line in head if line.lower().startswith("content-length:")), 0)
        status, answer = await self.answer(method, path, await reader.readexactly(length))
        body = json.dumps(answer).encode()
        writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (status, len(body), body))
        await writer.drain()
        writer.close()

    async def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        name = path.removeprefix("/api/tunnels").strip("/")
        if method == "POST":
            return await self.open(json.loads(body))
        if not name:
            return 200, {"tunnels": list(self.tunnels.values()), "uri": path}
        if name not in self.tunnels:
            return 404, {"error_code": 100, "status_code": 404, "msg": "tunnel not found", "details": {"tunnel": name}}
        metrics = {"conns": {"count": self.conns}, "http": {"count": self.requests}}
        return 200, {**self.tunnels[name], "metrics": metrics}

    async def open(self, wanted: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self.behaviour == "domain":
            reason = f"failed to start tunnel: The domain '{wanted['domain']}' is reserved for another account."
            err = f"{reason}\r\n\r\nERR_NGROK_319\r\n"
            return 502, {"error_code": 103, "status_code": 502, "msg": "failed to start tunnel", "details": {"err": err}}
        host, port = self.origin(wanted["addr"])
        reserved = self.folder / wanted.get("domain", "none")
        known = int(reserved.read_text()) if reserved.exists() else 0
        public = await asyncio.start_server(lambda r, w: self.forward(r, w, host, port), "127.0.0.1", known)
        url = f"http://127.0.0.1:{public.sockets[0].getsockname()[1]}"
        if "domain" in wanted:
            reserved.write_text(url.rpartition(":")[2])
        self.tunnels[wanted["name"]] = {**wanted, "public_url": url, "uri": f"/api/tunnels/{wanted['name']}"}
        return 201, self.tunnels[wanted["name"]]

    def origin(self, url: str) -> tuple[str, int]:
        """Return where a URL leads; as the real ones do, any certificate there is good."""
        parts = urlsplit(url)
        if parts.scheme == "https":
            self.tls = ssl.create_default_context()
            self.tls.check_hostname, self.tls.verify_mode = False, ssl.CERT_NONE
        assert parts.hostname and parts.port
        return parts.hostname, parts.port

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int) -> None:
        self.conns += 1
        if (self.folder / "silent").exists():
            writer.close()
            return
        if self.behaviour == "error page":
            writer.write(b"HTTP/1.1 %b\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" % self.error)
            writer.close()
            return
        inner_reader, inner_writer = await asyncio.open_connection(host, port, ssl=self.tls)
        await asyncio.gather(self.pipe(reader, inner_writer, count=True), self.pipe(inner_reader, writer))

    async def pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: bool = False) -> None:
        try:
            while data := await reader.read(65536):
                self.requests += count and b" HTTP/1.1\r\n" in data
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()


def say(level: str, message: str, **more: str) -> None:
    fields = " ".join(f'{name}="{value}"' for name, value in more.items())
    print(f't=2026-01-31T12:00:00+0000 lvl={level} msg="{message}" {fields}', flush=True)


def main() -> None:
    folder, command, *flags = Path(sys.argv[1]), *sys.argv[2:]
    if [command, *flags[:4]] != ["start", "--none", "--log", "stdout", "--config"] or len(flags) != 5:
        sys.exit(f"wrong arguments: {sys.argv}")
    config = yaml.safe_load(Path(flags[4]).read_text())
    with (folder / "pids").open("a") as pids:
        pids.write(f"{os.getpid()}\n")
    sys.exit(asyncio.run(Ngrok(folder, os.environ.get("NGROK_AUTHTOKEN") or config["authtoken"]).run()))


if __name__ == "__main__":
    main()
