"""From a file to a model that answers: its settings, its engine, its chat template, what memory it took."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable
from pathlib import Path

from locallab.chat.control_tokens import markup
from locallab.chat.templates import ChatTemplate
from locallab.engine import Embedder, Engine
from locallab.engine.post import Post
from locallab.errors import ModelError, ModelLoadError
from locallab.models import gguf
from locallab.models.spec import ModelSpec
from locallab.pool.memory import Memory, MemoryUse
from locallab.settings import EngineSettings

EngineFactory = Callable[[Path, EngineSettings, Post], Engine]
OpenEngine = Callable[[Path, EngineSettings], Engine]


@dataclasses.dataclass(frozen=True, slots=True)
class Loaded:
    """A model that answers. `created` is when it was loaded, in seconds since the epoch; `memory` what the load was measured
    to take; `seconds` how long it took; `markup` finds the model's control tokens in a text."""

    spec: ModelSpec
    engine: Engine
    template: ChatTemplate
    created: int
    memory: MemoryUse
    seconds: float
    markup: re.Pattern[str] | None = None


def open_engine(path: Path, settings: EngineSettings, post: Post) -> Engine:
    """Loads the file: as an Embedder, if its header says that it makes vectors or scores. Raises ModelLoadError."""
    try:
        embeds = gguf.read(path).embeds
    except ModelLoadError:  # llama.cpp says better what is wrong
        embeds = False
    return Embedder(path, settings) if embeds else Engine(path, settings, post)


def open_model(spec: ModelSpec, path: Path, settings: EngineSettings, engine: OpenEngine, memory: Memory) -> Loaded:
    """Loads the file; blocks for seconds. Raises ModelLoadError."""
    before, began = memory.reading(), time.perf_counter()
    made = engine(path, settings)
    try:
        template = ChatTemplate(made.info.chat_template, made.info.bos, made.info.eos)
    except ModelError as error:
        made.close()
        raise ModelLoadError(path, str(error)) from None
    seconds = time.perf_counter() - began
    use = memory.reading().since(before)
    return Loaded(spec, made, template, int(time.time()), use, seconds, markup(made.info.control_tokens))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats:
    """Counts since the start, `load_seconds` of all loads together; `loading` models are fetched, loaded or wait for that."""

    loads: int = 0
    failures: int = 0
    unloads: int = 0
    load_seconds: float = 0.0
    loading: int = 0
