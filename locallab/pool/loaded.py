"""A loaded model: its engine, its chat template and the memory it took."""

from __future__ import annotations

import dataclasses
import logging
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast, get_args

from locallab.chat.control_tokens import markup
from locallab.chat.known_templates import template_source
from locallab.chat.templates import ChatTemplate
from locallab.engine import EmbeddingEngine, Engine, ModelInfo, SamplingParams, TextEngine
from locallab.engine.adapters import AdapterFile, chosen
from locallab.engine.post import Post
from locallab.errors import ConfigError, InvalidField, ModelError, ModelLoadError
from locallab.models.gguf import Header
from locallab.models.projectors import modalities
from locallab.models.spec import Adapted, Modality, ModelSpec
from locallab.models.store import Store
from locallab.pool.memory import Memory, MemoryUse, Suited
from locallab.settings import EngineSettings

EngineFactory = Callable[[Path, EngineSettings, Post], Engine]
OpenEngine = Callable[[Suited], Engine]

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready to answer. `created` is the time of the load in seconds since the epoch, `memory` the measured use,
    `seconds` the duration of the load; `markup` matches the model's control tokens in a text, `reason` is that of its fit to
    this machine. As a request has it that chose an adapter by the model's name, `spec` is `Adapted`."""

    spec: ModelSpec
    engine: Engine
    template: ChatTemplate
    created: int
    memory: MemoryUse
    seconds: float
    markup: re.Pattern[str] | None = None
    reason: str = ""

    @property
    def system(self) -> str | None:
        """The system prompt of conversations without one."""
        return self.spec.system

    @property
    def text_engine(self) -> TextEngine:
        """The engine, if the model makes text. Raises InvalidField."""
        if self.engine.info.kind != "text":
            raise InvalidField("model", "this model makes no text; use one that does")
        return cast(TextEngine, self.engine)

    def adapted(self, params: SamplingParams) -> SamplingParams:
        """Return the parameters with the adapter that the name of the model chose, unless they choose some themselves."""
        if params.lora is not None or not isinstance(self.spec, Adapted):
            return params
        return dataclasses.replace(params, lora=((self.spec.adapter.name, self.spec.adapter.scale),))

    def name(self, params: SamplingParams) -> str:
        """Return the name of the model with the adapters that the parameters choose: what usage is counted for. Raises
        InvalidField."""
        names = chosen(self.engine.info.adapters, self.adapted(params).lora or ()).names
        return ":".join([self.spec.loaded_as, *(["+".join(names)] if names else [])])


def modalities_of(spec: ModelSpec, loaded: Loaded | None, store: Store) -> list[Modality]:
    """Return what the model's prompts may have in them, text first; of one that is not loaded as its projector says."""
    known = loaded.engine.info.modalities if loaded else modalities(spec, store)
    return [each for each in get_args(Modality) if each in known]


def open_engine(
    path: Path,
    settings: EngineSettings,
    post: Post,
    header: Header | None = None,
    digest: str | None = None,
    adapters: Sequence[AdapterFile] = (),
) -> Engine:
    """Load the file, as an EmbeddingEngine if `header` describes an embedding model or a reranker. `digest` is that of the
    weights, if it is known. Raises ModelLoadError."""
    if header and header.embeds:
        return EmbeddingEngine(path, settings)
    return TextEngine(path, settings, post, digest, adapters)


def open_model(spec: ModelSpec, suited: Suited, engine: OpenEngine, memory: Memory) -> Loaded:
    """Load the file; blocks for seconds. Raises ModelLoadError."""
    before, began = memory.reading(), time.perf_counter()
    path = suited.need.path
    made = engine(suited)
    try:
        chosen = suited.settings.chat_template or (str(spec.template) if spec.template else None)
        template = _template(made.info, chosen)
    except (ConfigError, ModelError) as error:
        made.close()
        raise ModelLoadError(path, str(error)) from None
    seconds = time.perf_counter() - began
    use = memory.reading().since(before)
    return Loaded(spec, made, template, int(time.time()), use, seconds, markup(made.info.control_tokens), suited.reason)


def _template(info: ModelInfo, chosen: str | None) -> ChatTemplate:
    """Return the chosen template, by name or file, or those of the model's file. One without end is none for chats alone."""
    if chosen:
        template = ChatTemplate(template_source(chosen), info.bos, info.eos, name=f"the chat template {chosen}")
    else:
        template = ChatTemplate(info.chat_template, info.bos, info.eos, named=info.named_templates)
    if error := template.examine():
        log.warning("chats will be refused: %s", error.reason)
    return template


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats:
    """Counts since the start; `load_seconds` is the sum over all loads, `loading` the number of models in the queue, and
    `deaths` that of engines that have ended by an error."""

    loads: int = 0
    failures: int = 0
    deaths: int = 0
    unloads: int = 0
    load_seconds: float = 0.0
    loading: int = 0
