"""Requests of Open WebUI."""

from __future__ import annotations

from collections.abc import Sequence

from locallab.replay.builders import CHAT, get, ollama, streaming
from locallab.replay.checks import service
from locallab.replay.checks.openai import stream
from locallab.replay.exchange import Exchange

PAGE = {
    "origin": "http://localhost:3000",
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-api-key,ngrok-skip-browser-warning",
}
OPEN_WEBUI: Sequence[Exchange] = [
    get("Open WebUI", "lists models", "/v1/models", service.models),
    get("Open WebUI", "lists models below another base", "/models", service.models),
    streaming(
        "Open WebUI",
        "streams with fields of its own",
        stream(),
        stream_options=None,
        session_id="a",
        chat_id="b",
        id="c",
        features={"web_search": False},
        variables={"{{USER_NAME}}": "ada"},
        background_tasks={"title_generation": True},
    ),
    Exchange(
        client="Open WebUI",
        doing="sends a preflight",
        method="OPTIONS",
        path=CHAT,
        headers=PAGE,
        key="none",
        check=service.granted(PAGE["access-control-request-headers"].split(",")),
    ),
    get("Open WebUI", "asks for Ollama's version", "/api/version", service.has("version")),
    get("Open WebUI", "asks which of Ollama's models run", "/api/ps", service.has("models", kind=list)),
    ollama("Open WebUI", "sends an invalid body through Ollama's API", service.ollama_refused(400), messages="hello"),
]
