"""The models.yaml that comes with LocalLab."""

from __future__ import annotations

import inspect
import re

import pytest

import locallab
from locallab.fit import Gpu, Machine, fit_model
from locallab.models import FileSource, HubSource, ModelSpec, PypiSource, Registry, default_path
from locallab.models.registry import shipped_digests
from locallab.models.spec import shards

SHIPPED = Registry.load(default_path())


def test_the_bundled_file_documents_every_key() -> None:
    comments = " ".join(line for line in default_path().read_text().splitlines() if line.startswith("#"))
    keys = {name for struct in (ModelSpec, HubSource, PypiSource, FileSource) for name in struct.__struct_fields__}
    kinds = {struct.__struct_config__.tag for struct in (HubSource, PypiSource, FileSource)}
    assert {key for key in keys if not re.search(rf"\b{key}\b", comments)} == set()
    assert {kind for kind in kinds if f"kind: {kind}" not in comments} == set()


def test_the_bundled_file() -> None:
    registry = Registry.load(default_path())
    default = inspect.signature(locallab.Engine).parameters["model"].default
    assert registry.default is registry.get(default)
    assert isinstance(registry.default.source, PypiSource)
    recommended = {spec.id: spec.recommended for spec in registry if spec.recommended}
    assert recommended == {
        "qwen2.5-coder:1.5b-q4_k_m": ("ram-16",),
        "qwen2.5-coder:7b-q4_k_m": ("gpu-8",),
        "qwen2.5-coder:14b-q4_k_m": ("gpu-16",),
        "qwen3:4b-instruct-2507-q4_k_m": ("ram-16", "gpu-8"),
        "qwen3.5:0.8b-q4_k_m": ("ram-16",),
        "qwen3.5:2b-q4_k_m": ("ram-16",),
        "qwen3.5:4b-q4_k_m": ("ram-16", "gpu-8"),
        "qwen3.5:9b-q4_k_m": ("ram-16", "gpu-8"),
        "qwen3.6:27b-q4_k_m": ("gpu-24",),
        "qwen3.6:35b-a3b-ud-q4_k_m": ("ram-64",),
        "gpt-oss:20b-mxfp4": ("ram-64", "gpu-16"),
        "gpt-oss:120b-mxfp4": ("gpu-80",),
    }
    assert registry.get("qwen2.5-coder:7b").id == "qwen2.5-coder:7b-q4_k_m"


@pytest.mark.parametrize("spec", list(SHIPPED), ids=lambda spec: spec.id)
def test_a_bundled_model_says_what_people_ask(spec: ModelSpec) -> None:
    assert spec.license and spec.memory and spec.context
    assert spec.size is None or fit_model(spec, None, Machine(spec.memory, threads=8)).fits


@pytest.mark.parametrize(
    "spec", [spec for spec in SHIPPED if spec.size and spec.memory and spec.memory > 4 * 10**9], ids=lambda spec: spec.id
)
def test_a_bundled_model_lies_wholly_on_a_gpu_of_its_memory(spec: ModelSpec) -> None:
    assert spec.memory
    fit = fit_model(spec, None, Machine(16 * 10**9, (Gpu("GPU", spec.memory),), threads=8, gpu_build=True))
    assert fit.fits and fit.load.gpu_layers == -1


def test_what_is_pinned_names_a_commit_and_its_projector_lies_beside_it() -> None:
    for spec in SHIPPED:
        if not isinstance(spec.source, HubSource):
            continue
        assert spec.source.file, spec.id
        assert spec.source.sha256 is None or re.fullmatch("[0-9a-f]{40}", spec.source.revision or ""), spec.id
        if len(spec.takes) > 1:
            assert isinstance(spec.mmproj, HubSource) and spec.mmproj.repo == spec.source.repo, spec.id
            assert "mmproj" in (spec.mmproj.file or ""), spec.id


def test_a_split_model_is_among_them() -> None:
    source = SHIPPED.get("qwen3.5:122b-a10b").source
    assert isinstance(source, HubSource) and source.file
    assert len(shards(source.file)) == 3


def test_only_weights_that_the_tests_load_are_trusted_without_a_trial() -> None:

    trusted = {spec.source.sha256 for spec in SHIPPED if isinstance(spec.source, PypiSource)}
    assert shipped_digests() == trusted and len(trusted) == 2
