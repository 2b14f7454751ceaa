"""Which projector the engine of a model gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from locallab.errors import ConfigError
from locallab.models import FileSource
from tests.support.fake_pool import making


def projector(folder: Path) -> Path:
    path = folder / "eyes.gguf"
    path.write_bytes(b"GGUF")
    return path


def loaded(folder: Path, layers: Any = (), entry: Path | None = None) -> str | None:
    """Load a model of a pool of fakes; return the projector that its engine gets."""
    with making(folder, layers) as made:
        if entry is not None:
            spec = made.pool.registry.get("tiny:1b")
            made.pool.registry.add("here", msgspec.structs.replace(spec, id="seeing", aliases=(), mmproj=FileSource(entry)))
        made.pool.load_now("seeing" if entry else "tiny:1b")
        return made.engines[-1].settings.mmproj  # type: ignore[union-attr]


def test_the_engine_gets_its_file(tmp_path: Path) -> None:
    eyes = projector(tmp_path)
    assert loaded(tmp_path) is None
    assert loaded(tmp_path, [("--mmproj", {"mmproj": str(eyes)})]) == str(eyes)
    assert loaded(tmp_path, entry=eyes) == str(eyes)
    assert loaded(tmp_path, [("--mmproj", {"mmproj": "none"})], entry=eyes) is None


def test_a_wrong_name_fails_before_anything_is_fetched(tmp_path: Path) -> None:
    fetched: list[str] = []
    layers = [("--mmproj", {"mmproj": "/nowhere.gguf"})]
    with (
        making(tmp_path, layers, fetch=lambda spec, *_: fetched.append(spec.id)) as made,
        pytest.raises(ConfigError, match=r"mmproj: there is no file /nowhere\.gguf"),
    ):
        made.pool.load_now("tiny:1b")
    assert not fetched
