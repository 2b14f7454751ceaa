"""Adapters of registry entries: fetched, checked, tried and loaded with their models, and chosen by name."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from locallab.engine.adapters import AdapterFile
from locallab.engine.request import SamplingParams
from locallab.errors import ModelLoadError, SourceError, UnknownModel
from locallab.models import FileSource, ModelSpec, Registry, Store
from locallab.models.spec import Adapter
from locallab.pool import Loaded, Memory, Pool
from locallab.pool.memory import Suited
from locallab.pool.trial import Trials
from tests.support import tiny_gguf, tiny_lora
from tests.support.live_engine import ask

SETTINGS = {"threads": 1, "gpu_layers": 0, "cache_ram_mib": 0, "kv_tokens": 1024, "parallel": 2}
PROMPT = list(range(3, 23))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_gguf.write(tmp_path / "base.gguf", "llama")


@pytest.fixture
def sound(base: Path, tmp_path: Path) -> Path:
    return tiny_lora.write(tmp_path / "sound.gguf", base)


def entry(base: Path, *adapters: Adapter) -> ModelSpec:
    return ModelSpec(id="base:1b", source=FileSource(base), description="made", aliases=("nick",), adapters=adapters)


def adapter(name: str, path: Path, scale: float = 1.0) -> Adapter:
    return Adapter(name=name, source=FileSource(path), scale=scale)


class Opened:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pools: list[Pool] = []

    def __call__(self, *specs: ModelSpec) -> Pool:
        registry = Registry()
        for spec in specs:
            registry.add("a test", spec)
        self.pools.append(Pool(registry, Store(self.folder / "models"), [("a test", SETTINGS)]))
        return self.pools[-1]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    made = Opened(tmp_path)
    yield made
    for pool in made.pools:
        pool.close()


def leased(pool: Pool, name: str | None) -> Loaded:
    async def lease() -> Loaded:
        async with pool.lease(name, strict=True) as loaded:
            return loaded

    return asyncio.run(lease())


def test_a_name_chooses_the_adapter_of_the_one_engine(opened: Opened, base: Path, sound: Path) -> None:
    pool = opened(entry(base, adapter("pirate", sound, 0.5), adapter("poet", sound)))
    plain = leased(pool, "base:1b")
    for name in ("base:1b:pirate", "BASE:1B:Pirate", "nick:pirate"):
        loaded = leased(pool, name)
        assert loaded.engine is plain.engine and loaded.spec.id == "base:1b:pirate"
        params = loaded.adapted(SamplingParams())
        assert params.lora == (("pirate", 0.5),) and loaded.name(params) == "base:1b:pirate"
    own = SamplingParams(lora=((1, 0.25), (0, 1.0)))
    assert loaded.adapted(own) is own and loaded.name(own) == "base:1b:pirate+poet"
    assert plain.adapted(SamplingParams()).lora is None and plain.name(SamplingParams()) == "base:1b"
    assert pool.get("nick:poet") is pool.get("base:1b") and pool.status("nick:poet") == "ready"
    assert pool.stats().loads == 1
    engine = plain.text_engine
    assert ask(engine, PROMPT, 12, lora=loaded.adapted(SamplingParams()).lora).tokens != ask(engine, PROMPT, 12).tokens
    with pytest.raises(UnknownModel):
        pool.lease("base:1b:parrot", strict=True)


def test_a_model_that_is_named_with_an_adapter_is_loaded(opened: Opened, base: Path, sound: Path) -> None:
    pool = opened(entry(base, adapter("pirate", sound)))
    assert leased(pool, "nick:pirate").engine.info.adapters[0].name == "pirate"
    assert pool.current is not None and pool.current.spec.id == "base:1b"
    asyncio.run(pool.unload("base:1b:pirate"))
    assert pool.loaded == []


def test_an_adapter_of_another_model_is_refused_before_anything_is_loaded(opened: Opened, base: Path, tmp_path: Path) -> None:
    other = tiny_gguf.write(tmp_path / "other.gguf", "gemma3")
    wrong = tiny_lora.write(tmp_path / "wrong.gguf", other)
    pool = opened(entry(base, adapter("wrong", wrong)), entry_of(base))
    with pytest.raises(ModelLoadError, match=r"of the architecture gemma3; base\.gguf is llama") as caught:
        pool.load_now("base:1b")
    assert caught.value.path == wrong and "\n" not in str(caught.value)
    assert pool.loaded == [] and not (tmp_path / "trials").exists()
    assert len(ask(pool.load_now("alone").text_engine, PROMPT, 2).tokens) == 2, "the model itself is as good as before"


def entry_of(base: Path) -> ModelSpec:
    return ModelSpec(id="alone", source=FileSource(base), description="made")


@pytest.fixture
def deadly(tmp_path: Path) -> tuple[Path, Path]:
    """Return a model and an adapter that ends llama.cpp: the output is the embeddings, whose adapter is turned round."""
    base = tiny_gguf.write(tmp_path / "tied.gguf", "llama", without=["output.weight"])
    shapes = {"a": (tiny_gguf.N_VOCAB, 4), "b": (64, 4)}
    tensors = {f"token_embd.weight.lora_{half}": np.ones(shape, np.float32) for half, shape in shapes.items()}
    return base, tiny_lora.write(tmp_path / "deadly.gguf", base, tensors=tensors)


def test_an_adapter_that_ends_llama_cpp_ends_a_process_of_its_own(
    opened: Opened, deadly: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, wrong = deadly
    pool = opened(entry(base, adapter("deadly", wrong)), entry_of(base))
    with pytest.raises(ModelLoadError, match=r"it ends llama\.cpp \(SIGABRT\): ") as caught:
        pool.load_now("base:1b")
    assert caught.value.path == wrong
    monkeypatch.setattr("locallab.pool.trial._Trial", None)
    with pytest.raises(ModelLoadError, match=r"it ends llama\.cpp \(SIGABRT\): "):
        pool.load_now("nick:deadly")  # the verdict is kept
    assert pool.load_now("alone").engine.info.adapters == ()


def test_an_adapter_is_tried_once(base: Path, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trials, tried = Trials(tmp_path / "trials"), list[str]()
    suited = Memory().suit(entry(base), base, [("flags", SETTINGS)])
    file = AdapterFile("x", sound)

    class Sound:
        def __init__(self, suited: Suited, stopped: object) -> None:
            tried.append(suited.subject.name)

        def outcome(self) -> tuple[None, bool]:
            return None, True

    monkeypatch.setattr("locallab.pool.trial._Trial", Sound)
    changed = AdapterFile("y", tiny_lora.write(tmp_path / "changed.gguf", base, seed=1))
    for adapters in ([file], [file], [file, changed]):
        for each in suited.with_adapters(adapters).files:
            trials.look(each, None)
            trials.run(each, None)
    assert tried == ["base.gguf", "sound.gguf", "changed.gguf"]


def test_its_bytes_count_as_memory_of_the_model(base: Path, sound: Path) -> None:
    suited = Memory().suit(entry(base), base, [("flags", SETTINGS)])
    more = suited.with_adapters([AdapterFile("x", sound)])
    size = sound.stat().st_size
    assert more.need.least.ram == suited.need.least.ram + size and more.need.likely.ram == suited.need.likely.ram + size
    assert Memory().suit_again(more, entry(base), [("flags", SETTINGS)]).adapters == more.adapters


def test_a_file_that_is_not_there_is_named(opened: Opened, base: Path, tmp_path: Path) -> None:
    pool = opened(entry(base, adapter("lost", tmp_path / "lost.gguf")))
    message = f"base:1b: {tmp_path}/lost.gguf does not exist; put the .gguf there or correct adapters.path in the registry"
    with pytest.raises(SourceError, match=re.escape(message)):
        pool.load_now("base:1b")


def test_further_adapters_are_given_to_an_entry(opened: Opened, base: Path, sound: Path) -> None:
    pool = opened(entry_of(base), entry(base, adapter("pirate", sound)))
    spec = pool.registry.adapt(pool.registry.get("nick"), [adapter("poet", sound)])
    assert names(spec) == ["pirate", "poet"] and pool.registry.get("base:1b") is spec
    assert pool.registry.get("nick:poet").loaded_as == pool.registry.get("nick:pirate").loaded_as == "base:1b"
    assert [each.id for each in pool.registry] == ["alone", "base:1b"]
    assert [each.id for each in pool.registry.with_adapters] == ["alone", "base:1b", "base:1b:pirate", "base:1b:poet"]
    assert [each.name for each in leased(pool, "nick:poet").engine.info.adapters] == ["pirate", "poet"]


def names(spec: ModelSpec) -> Sequence[str]:
    return [each.name for each in spec.adapters]
