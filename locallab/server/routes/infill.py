"""What editors ask for while one types: /v1/fim/completions, and llama.cpp's /infill, /completion and /props."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from locallab.engine import build_features
from locallab.errors import EngineClosed, InvalidField
from locallab.pool import Pool
from locallab.pool.pool import NOTHING
from locallab.server.answers import FinishReason, UsageFigures
from locallab.server.chunks import Head, OpenAIChunks, usage_body
from locallab.server.endpoint import Endpoint, Generating
from locallab.server.fields.body import first, read
from locallab.server.inference.generation import Generation, collect
from locallab.server.inference.lease import lease
from locallab.server.inference.prompt import constrained, gap_prompt, jobs_for
from locallab.server.llamacpp import InfillBody, LlamaAnswer, LlamaChunks, LlamaCompletionBody, answer_body
from locallab.server.openai_chat import OpenAIBody
from locallab.server.reply import noted, reply
from locallab.server.streaming import EventStream
from locallab.settings import ServerSettings


class FimBody(OpenAIBody, kw_only=True):
    prompt: Annotated[str, Meta(description="what stands before the gap")]
    suffix: Annotated[str | None, Meta(description="what stands behind it")] = None
    random_seed: Annotated[int | None, Meta(description="another name of seed")] = None
    min_tokens: Annotated[int | None, Meta(description="only 0: the model ends when it likes")] = None


class FimMessage(msgspec.Struct):
    role: str
    content: str


class FimChoice(msgspec.Struct):
    index: int
    message: FimMessage
    text: Annotated[str, Meta(description="the same text as in the message")]
    finish_reason: FinishReason


class FimCompletion(msgspec.Struct):
    """The answer of /v1/fim/completions: what fills the gap, under the names that clients look for."""

    id: str
    object: str
    created: int
    model: str
    choices: list[FimChoice]
    usage: UsageFigures


class SettingsProps(msgspec.Struct):
    n_ctx: Annotated[int, Meta(description="tokens that one request may use")]


class Modalities(msgspec.Struct):
    vision: bool
    audio: bool


class TemplateCaps(msgspec.Struct):
    supports_tools: bool
    supports_tool_calls: bool
    supports_parallel_tool_calls: bool
    supports_system_role: bool


class Props(msgspec.Struct):
    """What the server and its current model are, under llama.cpp's names."""

    default_generation_settings: SettingsProps
    total_slots: Annotated[int, Meta(description="requests that are computed at once")]
    model_path: Annotated[str, Meta(description="the model's name: where its file lies is nobody's business")]
    model_alias: str
    chat_template: str
    chat_template_caps: TemplateCaps
    modalities: Modalities
    bos_token: str
    eos_token: str
    build_info: str


class Fim:
    """The routes."""

    def __init__(self, pool: Pool, settings: ServerSettings) -> None:
        self._pool = pool
        self._settings = settings

    def routes(self) -> list[BaseRoute]:
        return [Generating("/v1/fim/completions", self.fim, tag="openai", body=FimBody, answer=FimCompletion)]

    async def fim(self, request: Request) -> ASGIApp:
        """Fill in what is between a prompt and a suffix."""
        body = await read(request, FimBody)
        if body.min_tokens:
            raise InvalidField("min_tokens", "is not supported; leave it out")
        loaded = await lease(request, self._pool, body.model, strict=self._settings.strict_models)
        body.seed = first(body.seed, body.random_seed)
        params = body.params(loaded.engine.info.n_vocab, self._settings.completion_tokens)
        params = await constrained(loaded, params, body.constraint())
        n = body.n or 1
        jobs = jobs_for([await gap_prompt(loaded, body.prompt, body.suffix or "")], params, n)
        head = Head.make("fim", body.model or loaded.spec.id)
        if body.stream:
            chunks = FimChunks(head, n, n=n, include_usage=body.include_usage)
            return EventStream(Generation(loaded.engine, jobs, urgent=True), chunks)
        answers = await collect(loaded.engine, jobs, request.receive, urgent=True)
        choices = [_choice(i, each.text, each.finish_reason) for i, each in enumerate(answers)]
        usage = usage_body([each.usage for each in answers], n)
        return reply(head.body("chat.completion", choices, usage=usage))


class PropsRoute:
    """The routes."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def routes(self) -> list[BaseRoute]:
        return [Endpoint("/props", self.props, tag="llama.cpp", answer=Props, errors=(503,))]

    async def props(self, request: Request) -> Response:
        """What the server and its current model are, as llama.cpp's server says it."""
        loaded = self._pool.current
        if loaded is None:
            raise EngineClosed(NOTHING)
        info = loaded.engine.info
        props = Props(
            default_generation_settings=SettingsProps(info.context),
            total_slots=info.parallel,
            model_path=loaded.spec.id,
            model_alias=loaded.spec.id,
            chat_template=loaded.template.source,
            chat_template_caps=TemplateCaps(True, True, True, True),
            modalities=Modalities(False, False),
            bos_token=info.bos,
            eos_token=info.eos,
            build_info=f"llama-cpp-python {build_features()['llama_cpp_python']}",
        )
        return reply(props)


class LlamaCpp:
    """The routes."""

    def __init__(self, pool: Pool, settings: ServerSettings) -> None:
        self._pool = pool
        self._settings = settings

    def routes(self) -> list[BaseRoute]:
        return [
            Generating("/infill", self.infill, tag="llama.cpp", body=InfillBody, answer=LlamaAnswer),
            Generating("/completion", self.completion, tag="llama.cpp", body=LlamaCompletionBody, answer=LlamaAnswer),
        ]

    async def infill(self, request: Request) -> ASGIApp:
        """Fill in what is between a prefix and a suffix, as llama.cpp's server does."""
        return await self._answer(request, await read(request, InfillBody), urgent=True)

    async def completion(self, request: Request) -> ASGIApp:
        """Go on with a prompt as it stands, as llama.cpp's server does."""
        return await self._answer(request, await read(request, LlamaCompletionBody), urgent=False)

    async def _answer(self, request: Request, body: InfillBody | LlamaCompletionBody, urgent: bool) -> ASGIApp:
        loaded = await lease(request, self._pool, body.model, strict=self._settings.strict_models)
        notes: list[str] = []
        params = body.sampling(loaded.engine.info.n_vocab, self._settings.completion_tokens, notes)
        params = await constrained(loaded, params, body.constraint())
        job = (await body.tokens(loaded, notes), params)
        model, told = body.model or loaded.spec.id, params.logprobs is not None
        if body.stream:
            return noted(EventStream(Generation(loaded.engine, [job], urgent=urgent), LlamaChunks(model, told)), notes)
        [answer] = await collect(loaded.engine, [job], request.receive, urgent=urgent)
        return noted(reply(answer_body(answer, model, told)), notes)


class FimChunks(OpenAIChunks):
    """Chunks of a chat that have the text by itself too."""

    kind = "chat.completion.chunk"

    def opening(self, index: int) -> list[dict[str, Any]]:
        return []

    def choice(self, index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
        delta = {"role": "assistant", "content": text}
        return {"index": index, "delta": delta, "text": text, "finish_reason": finish_reason}


def _choice(index: int, text: str, finish_reason: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {"index": index, "message": message, "text": text, "finish_reason": finish_reason}
