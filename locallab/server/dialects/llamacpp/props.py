"""The properties of the server and its model, as in llama.cpp's server: /props."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from locallab.engine import build_features
from locallab.errors import EngineClosed
from locallab.pool import Pool
from locallab.pool.pool import NOTHING
from locallab.server.endpoint import Endpoint
from locallab.server.reply import reply


class SettingsProps(msgspec.Struct):
    n_ctx: Annotated[int, Meta(description="tokens one request may use")]


class Modalities(msgspec.Struct):
    vision: bool
    audio: bool


class TemplateCaps(msgspec.Struct):
    supports_tools: bool
    supports_tool_calls: bool
    supports_parallel_tool_calls: bool
    supports_system_role: bool


class Props(msgspec.Struct):
    """Properties of the server and its current model, under llama.cpp's names."""

    default_generation_settings: SettingsProps
    total_slots: Annotated[int, Meta(description="requests computed at once")]
    model_path: Annotated[str, Meta(description="the model's name; the path of its file stays private")]
    model_alias: str
    chat_template: str
    chat_template_caps: TemplateCaps
    modalities: Modalities
    bos_token: str
    eos_token: str
    build_info: str


class PropsRoute:
    """The routes."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def routes(self) -> list[BaseRoute]:
        return [Endpoint("/props", self.props, tag="llama.cpp", answer=Props, errors=(503,))]

    async def props(self, request: Request) -> Response:
        """Show the properties of the server and its current model, as llama.cpp's server does."""
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
