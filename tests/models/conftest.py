"""What the tests of this room share: a store of their own, specs, a Hub on the loopback, and no settings but their own."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from locallab.models import HubSource, ModelSpec, PypiSource, Store
from locallab.models.sources import download
from tests.support.hub_server import Hub, Repo, serve
from tests.support.tiny_weights import WEIGHTS, Calls


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(("PIP_", "HF_", "HUGGINGFACE_", "UV_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("LOCALLAB_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were to be waited between two attempts; nobody waits for them."""
    waited: list[float] = []
    monkeypatch.setattr(download, "pause", waited.append)
    return waited


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, pauses: list[float]) -> Iterator[Hub]:
    with serve(Hub({"acme/tiny": Repo({"tiny.gguf": WEIGHTS, "deep/er.gguf": b"GGUF" + WEIGHTS[::-1]})})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def progress() -> Calls:
    return Calls()


@pytest.fixture
def pypi_spec() -> ModelSpec:
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    source = PypiSource(package="tiny-weights", version="1.0", file="tiny_weights/tiny.gguf", sha256=digest)
    return ModelSpec(id="tiny:1m", source=source, size=len(WEIGHTS), context=128, description="tiny")


@pytest.fixture
def hub_spec() -> ModelSpec:
    source = HubSource(repo="acme/tiny", file="tiny.gguf")
    return ModelSpec(id="tiny:hub", source=source, size=len(WEIGHTS), context=128, description="tiny")
