"""The dialect of vLLM's server, as far as it is not OpenAI's: /score, /tokenizer_info and /version.

Its /tokenize and /detokenize are among llama.cpp's routes, which have the same paths.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from locallab.errors import EngineClosed
from locallab.pool import Pool
from locallab.pool.pool import NOTHING
from locallab.server.dialects.dialect import Dialect, Services
from locallab.server.dialects.openai.errors import OpenAIProblem, openai_body
from locallab.server.dialects.vllm.score import Score
from locallab.server.endpoint import Endpoint
from locallab.server.reply import reply
from locallab.version import __version__


class AddedToken(msgspec.Struct):
    content: str
    special: bool


class TokenizerInfo(msgspec.Struct):
    """The tokenizer of the current model, under the names of a tokenizer_config.json."""

    tokenizer_class: str
    bos_token: str
    eos_token: str
    add_bos_token: bool
    model_max_length: Annotated[int, Meta(description="tokens that one request may use")]
    chat_template: str | None
    added_tokens_decoder: Annotated[dict[str, AddedToken], Meta(description="the control tokens by their ids")]


class Version(msgspec.Struct):
    version: Annotated[str, Meta(description="LocalLab's own")]


class Server:
    """The routes."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def routes(self) -> list[BaseRoute]:
        return [
            Endpoint("/tokenizer_info", self.tokenizer_info, tag="vllm", answer=TokenizerInfo, errors=(503,)),
            Endpoint("/version", self.version, tag="vllm", answer=Version),
        ]

    async def tokenizer_info(self, request: Request) -> Response:
        """Describe the tokenizer of the current model."""
        loaded = self._pool.current
        if loaded is None:
            raise EngineClosed(NOTHING)
        info = loaded.engine.info
        special = {str(token): AddedToken(text, True) for text, token in info.control_tokens.items()}
        template = loaded.template.source or None
        return reply(TokenizerInfo("llama.cpp", info.bos, info.eos, info.add_bos, info.context, template, special))

    async def version(self, request: Request) -> Response:
        """Show the server's version."""
        return reply(Version(__version__))


def routes(services: Services) -> list[BaseRoute]:
    return [*Server(services.pool).routes(), *Score(services.pool, services.settings).routes()]


VLLM = Dialect(
    name="vllm",
    prefixes=("/score", "/v1/score", "/tokenizer_info", "/version"),
    error_body=openai_body,
    problem=OpenAIProblem,
    routes=routes,
    tags={"vllm": "What vLLM's server has besides OpenAI's API."},
    prompts={"/score": "text_1", "/v1/score": "text_1"},
    areas={"/version": "open"},
)
