"""The answer to a request, as a stream or in one piece."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from starlette.requests import Request
from starlette.types import ASGIApp

from locallab.pool import Loaded
from locallab.server.inference.generation import Generation, Job, unless_gone
from locallab.server.inference.prompt import prepare_texts
from locallab.server.reply import cache_headers, noted, reply
from locallab.server.streaming import EVENTS, Ending, EventStream, Formatter, WholeFormatter


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
    seconds: float | None = None,
    ending: Ending | None = None,
) -> ASGIApp:
    """Submit the jobs, and answer with a stream of `media_type` or with the formatter's whole; the answers end after `seconds`.

    `ending` is awaited when the formatter has finished, before the client gets the end of the answer.
    Raises ClientGone when the client leaves first, what `TextEngine.submit` raises, and what ended an answer before its time.
    """
    if not stream:
        return await whole_answer(request, loaded, jobs, formatter, notes=notes, urgent=urgent, seconds=seconds, ending=ending)
    generation = await _generation(request, loaded, jobs, urgent, seconds)
    return noted(EventStream(generation, formatter, media_type, ending), notes)


async def whole_answer(
    request: Request,
    loaded: Loaded,
    jobs: Sequence[Job],
    formatter: WholeFormatter,
    *,
    notes: Sequence[str] = (),
    urgent: bool = False,
    seconds: float | None = None,
    ending: Ending | None = None,
) -> ASGIApp:
    """Submit the jobs, and answer with the formatter's whole. Raises what `answer` does."""
    generation = await _generation(request, loaded, jobs, urgent, seconds)

    async def read() -> None:
        async for items in generation:
            formatter.take(items)

    with generation:
        await unless_gone(read(), request.receive)
    whole = formatter.whole()
    if ending is not None:
        await ending()
    return noted(reply(whole, headers=cache_headers(generation.cache)), notes)


async def _generation(request: Request, loaded: Loaded, jobs: Sequence[Job], urgent: bool, seconds: float | None) -> Generation:
    jobs = [(prompt, loaded.adapted(params)) for prompt, params in jobs]
    await prepare_texts(loaded, jobs)
    spent = functools.partial(request.state.spend, loaded.name(jobs[0][1]))  # the jobs of a request have the same adapters
    caller = request.state.caller
    return Generation(loaded.text_engine, jobs, caller=caller, urgent=urgent, seconds=seconds, spent=spent)
