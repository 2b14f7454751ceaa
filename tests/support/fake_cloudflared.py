"""A stand-in for cloudflared: its flags, its log, its metrics server, and a public address that really forwards to loopback.

    cloudflared FOLDER tunnel --config FILE --no-autoupdate --metrics 127.0.0.1:0 --grace-period 1s --url URL
    cloudflared FOLDER tunnel ... run --url URL    with TUNNEL_TOKEN; behind a URL with https, --no-tls-verify

FOLDER/behaviour says how it goes: "fine" or some misfortune. FOLDER/pids gets a line for each start. While FOLDER/silent is
there the public address answers nothing. SIGUSR1: the agent loses its connection, and has it again. With a token the public
address is that of FOLDER/public.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import sys
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.fake_ngrok import Ngrok

LOST = "failed to dial to edge with quic: timeout: no recent network activity"
UNKNOWN = "Unauthorized: Invalid tunnel secret"
OFFLINE = (
    'failed to request quick Tunnel: Post "https://api.trycloudflare.com/tunnel": dial tcp: '
    "lookup api.trycloudflare.com: no such host"
)


class Cloudflared(Ngrok):
    """One agent."""

    error = b"530 <none>\r\nserver: cloudflare"

    def __init__(self, folder: Path, token: str, target: str) -> None:
        super().__init__(folder, token)
        self.target = target
        self.connected = False

    async def run(self) -> int:
        if self.behaviour == "mute":
            await asyncio.Event().wait()
        if self.token:
            if not is_token(self.token):
                print("Provided Tunnel token is not valid.\nSee 'cloudflared tunnel run --help'.", file=sys.stderr, flush=True)
                return 255
        else:
            say(
                "INF",
                "Thank you for trying Cloudflare Tunnel. The terms (https://www.cloudflare.com/website-terms/) apply.",
            )
            say("INF", "Requesting new quick Tunnel on trycloudflare.com...")
            if self.behaviour == "offline":
                print(OFFLINE, file=sys.stderr, flush=True)
                return 1
            if self.behaviour == "limit":
                reason = "invalid character 'e' looking for beginning of value"
                message = "Error unmarshaling QuickTunnel response: error code: 1015"
                say("ERR", message, error=reason, status_code="429 Too Many Requests")
                print(f"failed to unmarshal quick Tunnel: {reason}", file=sys.stderr, flush=True)
                return 1
        host, port = self.origin(self.target)
        known = self.folder / "public"
        public = await asyncio.start_server(
            lambda r, w: self.forward(r, w, host, port), "127.0.0.1", int(known.read_text()) if self.token else 0
        )
        url = f"http://127.0.0.1:{public.sockets[0].getsockname()[1]}"
        if not self.token:
            box(["Your quick Tunnel has been created! Visit it at (it may take some time to be reachable):", url])
        metrics = await asyncio.start_server(self.facts, "127.0.0.1", 0)
        say("INF", "Generated Connector ID: 11111111-2222-3333-4444-555555555555")
        say("INF", f"Starting metrics server on 127.0.0.1:{metrics.sockets[0].getsockname()[1]}/metrics")
        if self.behaviour == "unknown token":
            say("ERR", "Register tunnel error from server side", error=UNKNOWN, connIndex=0, event=0, ip="198.51.100.7")
            say("ERR", "initial tunnel connection failed", error=UNKNOWN)
            say("ERR", "Initiating shutdown", error=UNKNOWN)
            print(UNKNOWN, file=sys.stderr, flush=True)
            return 1
        while self.behaviour == "no UDP":
            self.lose()
            await asyncio.sleep(0.1)
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self.stumble)
        self.connect()
        await asyncio.Event().wait()
        return 0

    def connect(self) -> None:
        self.connected = True
        say("INF", "Registered tunnel connection", connIndex=0, ip="198.51.100.7", location="fra01", protocol="quic")

    def lose(self) -> None:
        self.connected = False
        say("ERR", "Failed to dial a quic connection", error=LOST, connIndex=0, event=0, ip="198.51.100.7")
        say("INF", "Retrying connection in up to 2s", connIndex=0, event=0, ip="198.51.100.7")

    def stumble(self) -> None:
        self.lose()
        if self.behaviour != "stays lost":
            self.connect()

    async def facts(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The metrics server."""
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1]
        status, body = (
            200,
            f"# TYPE cloudflared_tunnel_total_requests counter\ncloudflared_tunnel_total_requests {self.requests}\n",
        )
        if path == b"/ready":
            status = 200 if self.connected else 503
            body = json.dumps({"status": status, "readyConnections": int(self.connected), "connectorId": "x"})
        writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (status, len(body), body.encode()))
        await writer.drain()
        writer.close()


def is_token(text: str) -> bool:
    try:
        return {"a", "t", "s"} <= set(json.loads(base64.b64decode(text, validate=True)))
    except ValueError:
        return False


def box(lines: list[str]) -> None:
    width = max(map(len, lines))
    border = "+" + "-" * (width + 4) + "+"
    for line in (border, *(f"|  {line:<{width}}  |" for line in lines), border):
        say("INF", line)


def say(level: str, message: str, **more: object) -> None:
    fields = "".join(f" {name}={json.dumps(value) if ' ' in str(value) else value}" for name, value in more.items())
    print(f"2026-01-31T12:00:00Z {level} {message}{fields}", file=sys.stderr, flush=True)


def main() -> None:
    folder, command, *flags = Path(sys.argv[1]), *sys.argv[2:]
    token = os.environ.get("TUNNEL_TOKEN", "")
    known = ["--config", flags[1], "--no-autoupdate", "--metrics", "127.0.0.1:0", "--grace-period", "1s"]
    known += ["run", "--url"] if token else ["--url"]
    target, *more = flags[len(known) :]
    more_known = ["--no-tls-verify"] if target.startswith("https:") else []
    if (
        command != "tunnel"
        or flags[: len(known)] != known
        or more != more_known
        or not isinstance(yaml.safe_load(Path(flags[1]).read_text()), dict)
    ):
        sys.exit(f"wrong arguments: {sys.argv}")
    with (folder / "pids").open("a") as pids:
        pids.write(f"{os.getpid()}\n")
    sys.exit(asyncio.run(Cloudflared(folder, token, target).run()))


if __name__ == "__main__":
    main()
