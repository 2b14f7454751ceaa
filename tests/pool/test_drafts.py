"""The draft model of a model: which one it is, and that it comes, counts and goes with it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import pytest

from locallab.errors import ConfigError, ModelLoadError, UnknownModel
from locallab.models import FileSource, ModelSpec, Registry, Store
from locallab.models.drafts import draft_of
from locallab.pool import Pool
from locallab.pool.memory import Memory, MemoryUse
from locallab.settings import EngineSettings
from tests.support import tiny_gguf
from tests.support.fake_pool import making


def named(draft: str) -> list[tuple[str, dict[str, Any]]]:
    return [("--draft-model", {"draft_model": draft})]


def drafts_for(folder: Path, model: str, draft: str) -> str | None:
    """Load a model of a pool of fakes; return the draft model that its engine gets."""
    with making(folder, named(draft)) as made:
        before = len(made.pool.registry)
        made.pool.load_now(model)
        assert len(made.pool.registry) == before, "a draft model is to be served"
        return made.engines[-1].settings.draft_model


def test_the_engine_gets_the_file_of_the_one_that_is_named(tmp_path: Path) -> None:
    assert drafts_for(tmp_path, "tiny:1b", "other:2b") == str(tmp_path / "other-2b.gguf")
    assert drafts_for(tmp_path, "first", "OTHER:2b") == str(tmp_path / "other-2b.gguf")
    assert drafts_for(tmp_path, "tiny:1b", str(tmp_path / "broken-3b.gguf")) == str(tmp_path / "broken-3b.gguf")
    assert drafts_for(tmp_path, "tiny:1b", "none") is None


def test_no_model_drafts_for_itself(tmp_path: Path) -> None:
    assert drafts_for(tmp_path, "other:2b", "other:2b") is None
    assert drafts_for(tmp_path, "other:2b", str(tmp_path / "other-2b.gguf")) is None


def test_a_wrong_name_fails_before_anything_is_fetched(tmp_path: Path) -> None:
    fetched: list[str] = []
    for name, error, reason in (
        ("othr:2b", UnknownModel, "othr:2b"),
        ("/nowhere.gguf", ConfigError, r"there is no file /nowhere\.gguf"),
    ):
        with (
            making(tmp_path, named(name), fetch=lambda spec, *_: fetched.append(spec.id)) as made,
            pytest.raises(error, match=reason),
        ):
            made.pool.load_now("tiny:1b")
    assert not fetched


def test_it_is_fetched_too(tmp_path: Path) -> None:
    fetched: list[str] = []

    def fetch(spec: ModelSpec, *_: object) -> Path:
        fetched.append(spec.id)
        return tmp_path / f"{spec.id.replace(':', '-')}.gguf"

    with making(tmp_path, named("other:2b"), fetch=fetch) as made:
        made.pool.load_now("tiny:1b")
    assert fetched == ["tiny:1b", "other:2b"]


def test_an_entry_may_have_one_of_its_own(tmp_path: Path) -> None:
    spec = ModelSpec(id="x", source=FileSource(tmp_path / "x.gguf"), draft=FileSource(tmp_path / "y.gguf"), description="d")
    registry = Registry()
    registry.add("here", spec)
    found = draft_of(spec, EngineSettings(), registry)
    assert found is not None and (found.spec, found.part) == (spec, "draft")
    assert draft_of(spec, EngineSettings(draft_model="none"), registry) is None
    assert draft_of(spec, EngineSettings(drafts=False), registry) is None
    assert draft_of(msgspec.structs.replace(spec, draft=None), EngineSettings(), registry) is None


class Roomy(Memory):
    """So many free bytes of RAM."""

    def __init__(self, ram: int) -> None:
        super().__init__()
        self._ram = ram

    def room(self) -> MemoryUse:
        return MemoryUse(self._ram)


def test_it_counts_in_the_need_and_in_what_is_left_for_the_cache(tmp_path: Path) -> None:
    path = tiny_gguf.write(tmp_path / "x.gguf", "llama")
    spec = ModelSpec(id="x", source=FileSource(path), description="d", context=512)
    alone, both = (Roomy(8 << 30).suit(spec, path, (), draft=draft) for draft in (None, path))
    assert both.draft is not None and both.draft.need.path == path
    assert both.settings == dataclasses.replace(alone.settings, draft_model=str(path))
    assert both.need.least.ram == 2 * alone.need.least.ram
    assert both.need.likely.ram > alone.need.likely.ram
    assert "with its draft model" in both.reason
    needed = both.need.likely.ram - (both.need.likely.ram - alone.need.likely.ram) // 2
    assert Roomy(needed).suit_again(alone, spec, ()) is alone
    assert Roomy(needed).suit_again(both, spec, ()) is not both


def real_pool(tmp_path: Path, model: Path, draft: Path) -> Pool:
    registry = Registry()
    source, beside = FileSource(model), FileSource(draft)
    registry.add("here", ModelSpec(id="x", source=source, draft=beside, description="d", context=256))
    return Pool(registry, Store(tmp_path / "store" / "models"), [("", {"threads": 1})])


def test_a_pair_is_loaded_and_a_wrong_or_a_damaged_one_refused_by_name(tmp_path: Path) -> None:
    """The draft model is tried in a process of its own too, as every file is."""
    model = tiny_gguf.write(tmp_path / "x.gguf", "llama")
    recurrent = tiny_gguf.write(tmp_path / "recurrent.gguf", "mamba")
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(model.read_bytes()[:-5000])
    pool = real_pool(tmp_path, model, tiny_gguf.write(tmp_path / "small.gguf", "llama", seed=1))
    try:
        assert pool.load_now("x").engine.info.path == model
    finally:
        pool.close()
    assert len(list((tmp_path / "store" / "trials").iterdir())) == 2
    for draft, reason in ((recurrent, "cannot draft for x.gguf: it keeps a running state"), (damaged, r"damaged\.gguf")):
        pool = real_pool(tmp_path, model, draft)
        try:
            with pytest.raises(ModelLoadError, match=reason) as refused:
                pool.load_now("x")
            assert refused.value.path == draft
        finally:
            pool.close()
