"""locallab-client: every method of both of its clients."""

from __future__ import annotations

import asyncio
import json
import sys
import urllib.request
from collections.abc import Callable
from typing import Any

from cases import CASES, case, main
from locallab_client import LocalLabClient, SyncLocalLabClient, SystemInfo

USER = [{"role": "user", "content": "What is Oslo?"}]
PROMPT = "Counting:\n\n1, 2, 3, 4, 5, 6, 7, 8,"
COLD: dict[str, Any] = {"temperature": 0.01, "top_k": 1, "repetition_penalty": 1.0, "max_length": 24}


async def collected(stream: Any) -> list[Any]:
    return [piece async for piece in stream]


METHODS: dict[str, Callable[[Any], Any]] = {
    "health_check": lambda client: client.health_check(),
    "list_models": lambda client: client.list_models(),
    "get_current_model": lambda client: client.get_current_model(),
    "get_system_info": lambda client: client.get_system_info(),
    "generate_in_a_stream": lambda client: client.generate(PROMPT, stream=True, **COLD),
    "generate": lambda client: client.generate(PROMPT, **COLD),
    "generate_for_a_time": lambda client: client.generate(PROMPT, max_length=4000, max_time=0.5),
    "stream_generate": lambda client: client.stream_generate(PROMPT, **COLD),
    "chat": lambda client: client.chat(USER, **COLD),
    "stream_chat": lambda client: client.stream_chat(USER, **COLD),
    "batch_generate": lambda client: client.batch_generate([PROMPT, "One, two,"], **COLD),
    "stream_of_an_unknown_model": lambda client: client.stream_generate(PROMPT, model_id="no/such"),
    "unload_model": lambda client: client.unload_model(),
    "load_model": lambda client: client.load_model(current["name"]),
}


def both(call: Callable[[Any], Any]) -> Callable[[str], Any]:
    def run(url: str) -> dict[str, Any]:
        with SyncLocalLabClient(url, timeout=120) as client:
            result = call(client)
            told = result if isinstance(result, bool | str | dict | list) else list(result)
        return {"sync": told, "async": asyncio.run(awaited(url))}

    async def awaited(url: str) -> Any:
        client = LocalLabClient({"base_url": url, "api_key": "none", "timeout": 120})
        try:
            result = call(client)
            result = await result if asyncio.iscoroutine(result) else result
            return await collected(result) if hasattr(result, "__aiter__") else result
        finally:
            await client.close()

    return run


@case
def system_info(url: str) -> dict[str, Any]:
    with SyncLocalLabClient(url) as client:
        return SystemInfo(**client.get_system_info()).model_dump()


CASES.update({name: both(call) for name, call in METHODS.items()})


if __name__ == "__main__":
    with urllib.request.urlopen(f"{sys.argv[1]}/models/current") as answer:
        current = json.load(answer)
    main()
