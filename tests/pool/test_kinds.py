"""Models that make vectors or scores beside those that make text: which engine a file gets, and who gets which model."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from locallab.chat import ChatTemplate
from locallab.chat.known_templates import CHATML
from locallab.engine import EmbeddingEngine, Kind, TextEngine
from locallab.errors import InvalidField
from locallab.fit import Fit, Machine, fit_model
from locallab.memory_model import EMBEDDING_BATCH
from locallab.models import FileSource, ModelSpec, Registry, Store
from locallab.models.gguf import read
from locallab.pool import Pool
from locallab.pool.demand import Granted, Load, Refused, Ticket
from locallab.pool.loaded import Loaded, open_engine
from locallab.pool.memory import Memory, MemoryUse, Need
from locallab.pool.plan import Plan
from locallab.settings import EngineSettings
from tests.support import tiny_embedding_gguf, tiny_gguf

SETTINGS = EngineSettings(threads=1, gpu_layers=0)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "chat": tiny_gguf.write(folder / "chat.gguf", "llama"),
        "encoder": tiny_embedding_gguf.bert(folder / "encoder.gguf"),
        "bare": tiny_embedding_gguf.bert(folder / "bare.gguf", None),
        "decoder": tiny_embedding_gguf.qwen3(folder / "decoder.gguf"),
        "ranker": tiny_embedding_gguf.bert(folder / "ranker.gguf", tiny_embedding_gguf.Pooling.RANK),
    }


KINDS: dict[str, Kind] = {
    "chat": "text",
    "encoder": "embedding",
    "bare": "embedding",
    "decoder": "embedding",
    "ranker": "reranker",
}


@pytest.mark.parametrize("name", KINDS)
def test_a_file_gets_the_engine_it_needs(files: dict[str, Path], name: str) -> None:
    engine = open_engine(files[name], SETTINGS, lambda events: None, read(files[name]))
    try:
        assert engine.info.kind == KINDS[name]
        assert type(engine) is (TextEngine if name == "chat" else EmbeddingEngine)
        assert read(files[name]).embeds is (name != "chat")
        spec = ModelSpec(id="made:1", source=FileSource(files[name]), description="made")
        loaded = Loaded(spec, engine, ChatTemplate(CHATML), 0, MemoryUse(), 0.0)
        if name == "chat":
            assert loaded.text_engine is engine
        else:
            with pytest.raises(InvalidField, match="model: this model makes no text"):
                _ = loaded.text_engine
    finally:
        engine.close()


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind != "text"])
def test_a_model_that_makes_no_text_is_fitted_too(files: dict[str, Path], name: str) -> None:
    spec = ModelSpec(id=name, source=FileSource(files[name]), description="made", context=2000)
    suited = Memory().suit(spec, files[name], [("flags", {"threads": 1, "gpu_layers": 0})])
    engine = open_engine(files[name], suited.settings, lambda events: None, suited.header)
    try:
        assert engine.info.context == min(suited.settings.context or 0, engine.info.n_ctx_train)
    finally:
        engine.close()


def test_what_makes_no_text_keeps_no_more_than_a_batch(files: dict[str, Path]) -> None:
    def fitted(name: str, context: int) -> Fit:
        spec = ModelSpec(id=name, source=FileSource(files[name]), description="made", context=context)
        return fit_model(spec, files[name], Machine(8 << 30))

    encoder, decoder = fitted("encoder", 64), fitted("decoder", 1024)
    assert (encoder.estimate.kv, encoder.load.kv_tokens) == (0, EMBEDDING_BATCH)
    assert (decoder.estimate.kv, decoder.load.kv_tokens) == (1024 * 2 * 2 * 32 * 2, 1024)
    growth = fitted("encoder", 4096).estimate.compute - fitted("encoder", 2048).estimate.compute
    assert growth >= 3 * 2048**2 * 6, "every token of a text sees every other one"


def plan_with(*kinds: Kind) -> Plan:
    """A plan where a model of each kind is loaded, under its name; the last one was used last, the first one on purpose."""
    plan = Plan("keep")
    for now, kind in enumerate(kinds):
        plan.ask(Ticket(leases=False), kind)
        need = Need(Path(kind), MemoryUse(1), MemoryUse(1))
        plan.fetched(kind, need, MemoryUse(10))
        assert Load(kind) in plan.decide()
        plan.loaded(kind, MemoryUse(1), MemoryUse(10), now, kind)
        plan.decide()
    plan.default = kinds[0]
    return plan


def test_who_names_no_model_gets_one_that_can() -> None:
    plan = plan_with("text", "embedding", "reranker")
    assert [plan.choose(kind) for kind in ("text", "embedding", "reranker", None)] == ["text", "embedding", "reranker", "text"]
    assert plan_with("embedding", "text").choose("text") == "text"


def test_where_none_can_it_is_the_current_one() -> None:
    assert plan_with("text").choose("embedding") == "text"
    assert plan_with("embedding").choose("text") == "embedding"


def test_a_model_that_rests_comes_back_rather_than_one_that_cannot() -> None:
    plan = plan_with("text", "embedding")
    plan.unload("text")
    plan.decide()
    plan.default = "text"
    assert plan.choose("text") == "text"
    assert plan.choose("embedding") == plan.choose() == "embedding"


def test_after_a_failed_load_it_is_one_that_can_too() -> None:
    plan = plan_with("text", "embedding")
    ticket = Ticket(named=False, kind="embedding")
    plan.ask(ticket, "other")
    plan.decide()
    plan.failed("other", RuntimeError())
    [granted] = [action for action in plan.decide() if isinstance(action, (Granted, Refused))]
    assert isinstance(granted, Granted) and granted.resident.id == "embedding"


@pytest.fixture
def pool(files: dict[str, Path], tmp_path: Path) -> Iterator[Pool]:
    registry = Registry()
    for name, path in files.items():
        registry.add("a test", ModelSpec(id=name, source=FileSource(path=path), description="made", context=256))
    pool = Pool(registry, Store(tmp_path), [("a test", {"threads": 1, "gpu_layers": 0})], on_demand="keep")
    yield pool
    pool.close()


def test_several_kinds_are_loaded_together(pool: Pool) -> None:
    async def ask(name: str | None, kind: Kind) -> str:
        async with pool.lease(name, strict=False, kind=kind) as loaded:
            return loaded.spec.id

    async def scenario() -> list[str]:
        await pool.load("chat")
        named = [await ask(name, KINDS[name]) for name in KINDS]
        return [*named, await ask(None, "text"), await ask("text-embedding-3-small", "reranker"), await ask("", "text")]

    assert asyncio.run(scenario()) == [*KINDS, "chat", "ranker", "chat"]
    assert {loaded.engine.info.kind for loaded in pool.loaded} == {"text", "embedding", "reranker"}
