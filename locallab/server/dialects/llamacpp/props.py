"""The properties of the server and its model, as in llama.cpp's server: /props and /slots."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from locallab.engine import build_features
from locallab.engine.request import SamplingParams
from locallab.errors import ModelNotLoaded, Overloaded
from locallab.pool import Loaded, Pool
from locallab.server.dialects.llamacpp.settings import settings_body
from locallab.server.endpoint import Endpoint
from locallab.server.reply import reply

NOT_LOADED = "none"
"""The model's name while none is loaded, as llama.cpp's server has it."""


class SettingsProps(msgspec.Struct):
    n_ctx: Annotated[int, Meta(description="tokens one request may use; 0 while no model is loaded")]
    params: Annotated[dict[str, Any], Meta(description="what a request gets that sets nothing")]


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
    model_path: Annotated[str, Meta(description="the model's name, or none; the path of its file stays private")]
    model_alias: str
    chat_template: str
    chat_template_caps: TemplateCaps
    modalities: Modalities
    bos_token: str
    eos_token: str
    build_info: str
    endpoint_slots: bool
    endpoint_props: Annotated[bool, Meta(description="whether POST /props changes properties")]
    endpoint_metrics: bool


class Slot(msgspec.Struct):
    """A place for one request at a time."""

    id: int
    n_ctx: Annotated[int, Meta(description="tokens one request may use")]
    speculative: bool
    is_processing: bool
    model: str


class PropsRoutes:
    """The routes."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def routes(self) -> list[BaseRoute]:
        return [
            Endpoint("/props", self.props, tag="llama.cpp", answer=Props, errors=(404,)),
            Endpoint("/slots", self.slots, tag="llama.cpp", answer=list[Slot], errors=(404, 503)),
        ]

    async def props(self, request: Request) -> Response:
        """Show the properties of the server and its current model, or of the loaded one that `?model=` names."""
        loaded = named(self._pool, request)
        info = loaded.engine.info if loaded else None
        settings = settings_body(SamplingParams(**info.sampling), info) if info else {}
        name = loaded.spec.id if loaded else NOT_LOADED
        takes: frozenset[str] = loaded.engine.info.modalities if loaded else frozenset()
        props = Props(
            default_generation_settings=SettingsProps(info.context if info else 0, settings),
            total_slots=info.parallel if info else 0,
            model_path=name,
            model_alias=name,
            chat_template=loaded.template.source if loaded else "",
            chat_template_caps=TemplateCaps(True, True, True, True),
            modalities=Modalities("image" in takes, "audio" in takes),
            bos_token=info.bos if info else "",
            eos_token=info.eos if info else "",
            build_info=f"llama-cpp-python {build_features()['llama_cpp_python']}",
            endpoint_slots=True,
            endpoint_props=False,
            endpoint_metrics=True,
        )
        return reply(props)

    async def slots(self, request: Request) -> Response:
        """Show which of the places for requests are taken: of the loaded models, or of the one that `?model=` names.

        With `?fail_on_no_slot=1` the answer is 503 while none is free.
        """
        name = request.query_params.get("model")
        found: list[Slot] = []
        loaded = named(self._pool, request)
        for each in [loaded] if name and loaded else self._pool.loaded:
            info, running, first = each.engine.info, each.engine.stats().running, len(found)
            found += [Slot(first + place, info.context, False, place < running, each.spec.id) for place in range(info.parallel)]
        if request.query_params.get("fail_on_no_slot") and all(slot.is_processing for slot in found):
            raise Overloaded(0, retry_after=1)
        return reply(found)


def named(pool: Pool, request: Request) -> Loaded | None:
    """Return the model that the query names, or the current one if one is loaded. Raises UnknownModel, ModelNotLoaded."""
    name = request.query_params.get("model")
    if not name:
        return pool.current
    loaded = pool.get(name)
    if loaded is None:
        raise ModelNotLoaded(pool.registry.get(name).id)
    return loaded
