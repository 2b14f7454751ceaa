"""The answer to a request, as a stream or in one piece."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.types import ASGIApp

from locallab.pool import Loaded
from locallab.server.inference.generation import Generation, Job, unless_gone
from locallab.server.inference.prompt import prepare_texts
from locallab.server.reply import cache_headers, noted, reply
from locallab.server.streaming import EVENTS, EventStream, Formatter


async def answer(
    request: Request,
    loaded: Loaded,
    jobs: Sequence[Job],
    formatter: Formatter,
    *,
    stream: bool | None,
    notes: Sequence[str] = (),
    urgent: bool = False,
    media_type: str = EVENTS,
) -> ASGIApp:
    """Submit the jobs, and answer with a stream of `media_type` or with the formatter's whole.

    Raises ClientGone when the client leaves first, what `TextEngine.submit` raises, and what ended an answer before its time.
    """
    await prepare_texts(loaded, jobs)
    generation = Generation(loaded.text_engine, jobs, caller=request.state.caller, urgent=urgent)
    if stream:
        return noted(EventStream(generation, formatter, media_type), notes)

    async def read() -> None:
        async for items in generation:
            formatter.take(items)

    with generation:
        await unless_gone(read(), request.receive)
    return noted(reply(formatter.whole(), headers=cache_headers(generation.cache)), notes)
