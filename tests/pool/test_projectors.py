"""A model with a projector: found, counted, tried in a process of its own, refused by name."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import msgspec
import numpy as np
import pytest

from locallab.engine import TextEngine
from locallab.errors import ModelLoadError
from locallab.models import FileSource, ModelSpec, Registry, Store
from locallab.pool import Pool
from locallab.pool.memory import Memory, Suited
from locallab.pool.trial import Trials
from tests.support import tiny_gguf, tiny_projector

SETTINGS = {"threads": 1, "gpu_layers": 0}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_gguf.write(tmp_path / "model.gguf", "gemma3", more=tiny_projector.vocabulary("gemma3"))


@pytest.fixture
def projector(tmp_path: Path) -> Path:
    return tiny_projector.write(tmp_path / "mmproj.gguf", "gemma3")


def suited(model: Path, mmproj: Path | None) -> Suited:
    spec = ModelSpec(id="made", source=FileSource(model), description="made")
    return Memory().suit(spec, model, [("flags", SETTINGS)], mmproj=mmproj)


def test_a_projector_counts_in_the_need(model: Path, projector: Path) -> None:
    alone, both = suited(model, None), suited(model, projector)
    assert (alone.settings.mmproj, both.settings.mmproj) == (None, str(projector))
    assert both.need.least.ram - alone.need.least.ram == projector.stat().st_size * 3 // 2
    assert [each.subject for each in both.files] == [model, projector]
    assert [each.settings.mmproj for each in both.files] == [None, str(projector)]


def test_a_projector_is_tried_once_with_its_model(
    model: Path, projector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = Trials(tmp_path / "trials")
    for file in suited(model, projector).files:
        trials.look(file, None)
        trials.run(file, None)
    assert len(list((tmp_path / "trials").iterdir())) == 2
    monkeypatch.setattr("locallab.pool.trial._Trial", None)  # nothing is tried again
    for file in suited(model, projector).files:
        trials.run(file, None)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def changed(key: str, value: int) -> Callable[[Path], None]:
    """Overwrite a number of the header in place."""

    def change(path: Path) -> None:
        reader = gguf.GGUFReader(path, "r+")
        field = reader.fields[key]
        field.parts[field.data[0]][0] = value
        reader.data.flush()

    return change


def nonsense(path: Path) -> None:
    """Make weights of what are none: they are read as they are, and may give no numbers."""
    data = np.memmap(path, np.uint8, "r+")
    data[-4096:] = 0xFF
    data.flush()


DAMAGES: dict[str, Callable[[Path], None]] = {
    "cut off": cut,
    "no file of ours": lambda path: path.write_bytes(b"GGUF" + bytes(60)) and None,
    "no heads": changed("clip.vision.attention.head_count", 0),
    "more layers than there are": changed("clip.vision.block_count", 1000),
    "no patches": changed("clip.vision.patch_size", 0),
    "patches of another size": changed("clip.vision.patch_size", 7),
    "a larger picture than its positions": changed("clip.vision.image_size", 4096),
    "another width": changed("clip.vision.embedding_length", 60),
    "a pool of nothing": changed("clip.vision.projector.scale_factor", 0),
}


def test_no_damaged_projector_ends_the_process(model: Path, tmp_path: Path) -> None:
    trials = Trials(tmp_path / "trials")
    trials.run(suited(model, None), None)
    paths = {}
    for number, (name, damage) in enumerate(DAMAGES.items()):
        paths[name] = tiny_projector.write(tmp_path / f"mmproj-{number}.gguf", "gemma3")
        damage(paths[name])

    def refusal(path: Path) -> ModelLoadError | None:
        try:
            for file in suited(model, path).files:
                trials.look(file, None)
                trials.run(file, None)
        except ModelLoadError as error:
            return error
        return None

    with ThreadPoolExecutor(2) as threads:
        found = dict(zip(paths, threads.map(refusal, paths.values()), strict=True))
    assert {name for name, error in found.items() if error is None} == set()
    for name, error in found.items():
        assert error is not None and error.path == paths[name] and "\n" not in str(error), name


def test_the_pool_loads_a_model_with_its_projector(
    model: Path, projector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCALLAB_HOME", str(tmp_path / "home"))
    sees = ModelSpec(id="sees", source=FileSource(model), description="sees", mmproj=FileSource(projector))
    other = tiny_projector.write(tmp_path / "other.gguf", "gemma3", text=32)
    registry = Registry()
    registry.add("test", sees)
    registry.add("test", msgspec.structs.replace(sees, id="wrong", mmproj=FileSource(other)))
    pool = Pool(registry, Store(), [("flags", {**SETTINGS, "context": 512})])
    try:
        with pytest.raises(ModelLoadError, match=r"other\.gguf"):
            pool.load_now("wrong")
        loaded = pool.load_now("sees")
        assert isinstance(loaded.engine, TextEngine)
        assert loaded.engine.info.modalities == {"text", "image"}
    finally:
        pool.close()
