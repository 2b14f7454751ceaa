from __future__ import annotations

from pathlib import Path

import pytest

from locallab.engine import TextEngine
from locallab.errors import ConfigError, ModelLoadError, SourceError
from locallab.fit import Gpu, Machine, approximate, fit_model, fitted, model_shape
from locallab.models import FileSource, ModelSpec
from tests.support import tiny_embedding_gguf, tiny_gguf

SMALL = Machine(2 << 30)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny_gguf.write(tmp_path / "tiny.gguf", "llama")


def spec(**more: object) -> ModelSpec:
    return ModelSpec(id="x", source=FileSource(Path("/x.gguf")), description="d", **more)  # type: ignore[arg-type]


def test_the_file_is_read_where_there_is_one(path: Path) -> None:
    assert len(model_shape(spec(size=10**9), path).layers) == 4
    assert not fit_model(spec(size=10**9), path, SMALL).approximate
    with pytest.raises(ModelLoadError):
        fit_model(spec(), path.with_name("none.gguf"), SMALL)


def test_without_a_file_its_size_has_to_do() -> None:
    fit = fit_model(spec(size=10**9), None, SMALL)
    assert fit.approximate
    assert fit.estimate.weights == pytest.approx(10**9, rel=0.001)
    with pytest.raises(SourceError, match="locallab pull"):
        fit_model(spec(), None, SMALL)


def test_the_entry_s_context_may_be_lowered_its_settings_and_the_flags_not(path: Path) -> None:
    entry = spec(size=10**9, context=100_000, settings={"kv_type": "q4_0"})
    flags = [("--parallel", {"parallel": 5})]
    fit = fit_model(entry, None, SMALL, flags)
    assert fit.fits
    assert fit.load.context < 100_000
    assert (fit.load.kv_type, fit.load.parallel) == ("q4_0", 5)
    settings = fitted(entry, fit, flags)
    assert (settings.context, settings.kv_type, settings.parallel) == (fit.load.context, "q4_0", 5)
    assert settings.kv_tokens == fit.load.kv_tokens


def test_a_draft_model_leaves_less_for_the_cache() -> None:
    """The largest cache that fits is smaller with one, and what is chosen is within the memory."""
    entry, draft = spec(size=10**9, context=8192), approximate(5 * 10**8)
    for machine in (Machine(10 << 30), Machine(16 << 30, (Gpu("GPU", 6 << 30),), gpu_build=True)):
        alone, both = fit_model(entry, None, machine), fit_model(entry, None, machine, draft=draft)
        assert alone.fits and both.fits and both.estimate.weights == pytest.approx(1.5 * alone.estimate.weights, rel=0.01)
        assert both.load.kv_tokens < alone.load.kv_tokens
        assert machine.holds(both.estimate.ram, both.estimate.gpu)
        assert both.estimate.gpu_weights == pytest.approx(1.5 * alone.estimate.gpu_weights, rel=0.01)
    assert not fit_model(entry, None, Machine(2 << 30), draft=approximate(10**9)).fits


def test_an_embedding_model_has_no_draft(tmp_path: Path) -> None:
    path = tiny_embedding_gguf.bert(tmp_path / "embeds.gguf")
    assert fit_model(spec(), path, SMALL, draft=approximate(10**12)).fits


@pytest.mark.parametrize("architecture", tiny_gguf.ARCHITECTURES)
def test_the_engine_does_what_was_chosen(tmp_path: Path, architecture: str) -> None:
    entry, path = spec(context=400), tiny_gguf.write(tmp_path / "tiny.gguf", architecture)
    fit = fit_model(entry, path, SMALL)
    engine = TextEngine(path, fitted(entry, fit))
    try:
        assert (engine.info.context, engine.info.kv_tokens) == (400, fit.load.kv_tokens)
    finally:
        engine.close()


def test_what_is_fixed_comes_last(path: Path) -> None:
    flags = [("--context", {"context": "300"}), ("--step-ms", {"step_ms": 7})]
    settings = fitted(spec(), fit_model(spec(), path, SMALL, flags), flags)
    assert (settings.context, settings.step_ms) == (300, 7)
    with pytest.raises(ConfigError, match="--context"):
        fit_model(spec(), path, SMALL, [("--context", {"context": "many"})])
