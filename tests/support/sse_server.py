"""A scripted chat server for the tests of scripts/bench and scripts/soak: it streams answers slowly or badly, by its flags."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import re
from pathlib import Path
from typing import Any

RIVALS = ("yes", "no")


class ScriptedServer:
    """Answers POST /v1/chat/completions; every `every`-th of them with `fault`."""

    def __init__(self, flags: argparse.Namespace) -> None:
        self.flags = flags
        self.count = 0

    async def serve(self) -> None:
        server = await asyncio.start_server(self.answer, "127.0.0.1", self.flags.port)
        print(server.sockets[0].getsockname()[1], flush=True)
        async with server:
            await server.serve_forever()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        if head.startswith("get /v1/models"):
            plain(writer, 200, {"data": [{"id": "scripted"}]})
        elif head.startswith("post /v1/chat/completions"):
            length = int(head.partition("content-length:")[2].split()[0])
            await self.chat(writer, json.loads(await reader.readexactly(length)))
        else:
            plain(writer, 404, {"error": {"message": "no such route"}})
        await writer.drain()
        writer.close()

    async def chat(self, writer: asyncio.StreamWriter, request: dict[str, Any]) -> None:
        if self.flags.record:
            with self.flags.record.open("a") as record:
                record.write(json.dumps(request) + "\n")
        self.count += 1
        fault = self.flags.fault if self.count % self.flags.every == 0 else "none"
        if fault == "status":
            plain(writer, 500, {"error": {"message": "scripted failure"}})
            return
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/event-stream\r\n\r\n")
        event(writer, choice({"role": "assistant", "content": None}))
        await asyncio.sleep(self.flags.first)
        tokens = request["max_tokens"] // 2 if fault in ("cut", "event", "short") else request["max_tokens"]
        choices = range(request.get("n", 1))
        words = itertools.repeat(self.flags.word)
        if self.flags.repeat:
            words = itertools.cycle(re.findall(r"\S+\s*", request["messages"][-2]["content"].partition("```python\n")[2]))
        for word in itertools.islice(words, tokens):
            for index in choices:
                event(writer, choice({"content": word}, index, logprobs=self.logprobs(request)))
            await writer.drain()
            await asyncio.sleep(self.flags.gap)
        if fault == "event":
            event(writer, {"error": {"message": "scripted event"}})
        if fault in ("cut", "event"):
            return
        for index in choices:
            event(writer, choice({}, index, "length"))
        if self.flags.usage:
            words = sum(len(message["content"].split()) for message in request["messages"])
            usage = {"prompt_tokens": words, "completion_tokens": tokens * len(choices)}
            details = {"prompt_tokens_details": {"cached_tokens": int(words * self.flags.cached)}}
            event(writer, {"choices": [], "usage": usage | details})
        writer.write(b"e\r\ndata: [DONE]\r\n\r\n0\r\n\r\n")

    def logprobs(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """Tell of the answer's only word, and of RIVALS, which trail it by `lead`."""
        if not (request.get("logprobs") and self.flags.logprobs):
            return None
        rivals = [{"token": word, "logprob": -1.0 - self.flags.lead} for word in RIVALS if word != self.flags.word]
        chosen = {"token": self.flags.word, "logprob": -1.0}
        return {"content": [{**chosen, "top_logprobs": [chosen, *rivals]}]}


def choice(delta: dict[str, Any], index: int = 0, finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": delta, "finish_reason": finish, **fields}], "usage": None}


def event(writer: asyncio.StreamWriter, content: dict[str, Any]) -> None:
    data = b"data: " + json.dumps(content).encode() + b"\r\n\r\n"
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


def plain(writer: asyncio.StreamWriter, status: int, content: dict[str, Any]) -> None:
    body = json.dumps(content).encode()
    writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--first", type=float, default=0.0)
    parser.add_argument("--gap", type=float, default=0.0)
    parser.add_argument("--fault", choices=("none", "status", "cut", "event", "short"), default="none")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--no-usage", dest="usage", action="store_false")
    parser.add_argument("--cached", type=float, default=0.0)
    parser.add_argument("--no-logprobs", dest="logprobs", action="store_false")
    parser.add_argument("--word", default='a "content": "word')
    parser.add_argument("--repeat", action="store_true", help="answer with the code of the question")
    parser.add_argument("--lead", type=float, default=0.0)
    parser.add_argument("--record", type=Path)
    asyncio.run(ScriptedServer(parser.parse_args()).serve())
