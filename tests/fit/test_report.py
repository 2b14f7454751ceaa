from __future__ import annotations

import msgspec
import pytest

from locallab.errors import SourceError
from locallab.fit import Fitting, Gpu, Machine
from locallab.models import HubSource, ModelSpec, Registry, Store
from locallab.models.store import Kept
from tests.support import tiny_gguf

GIB = 1 << 30
MACHINE = Machine(8 * GIB, threads=4)
SPEC = ModelSpec(id="own:1b", source=HubSource("acme/own", file="own.gguf"), size=2 * GIB, description="a model")


@pytest.fixture
def store() -> Store:
    return Store()


def fitting(store: Store, machine: Machine = MACHINE, **settings: object) -> Fitting:
    return Fitting(Registry(), store, machine, [("--flag", settings)])


def test_a_model_that_is_not_on_disk_is_estimated_from_its_size(store: Store) -> None:
    report = fitting(store).report(SPEC)
    assert report.path is None and report.chosen.approximate and all(each.approximate for each in report.cells)
    assert report.chosen.estimate.weights == pytest.approx(2 * GIB, rel=0.1)
    assert report.chosen == fitting(store).fit(SPEC)


def test_a_file_that_cannot_be_read_is_estimated_from_its_own_size(store: Store) -> None:
    folder = store.folder(SPEC)
    folder.mkdir(parents=True)
    (folder / "own.gguf").write_bytes(b"damaged" * 1000)
    store.refer(SPEC, "model", [Kept("own.gguf", 7000)])
    assert fitting(store).report(SPEC).shape.weights < 10_000


def test_a_size_that_nobody_knows(store: Store) -> None:
    with pytest.raises(SourceError, match="does not say its size"):
        fitting(store).fit(msgspec.structs.replace(SPEC, size=None))


def test_a_file_is_read_and_every_context_up_to_the_trained_one_is_tried(store: Store) -> None:
    folder = store.folder(SPEC)
    folder.mkdir(parents=True)
    path = tiny_gguf.write(folder / "own.gguf", "llama")
    store.refer(SPEC, "model", [Kept("own.gguf", path.stat().st_size)])
    report = fitting(store).report(SPEC)
    assert report.path == path and not report.chosen.approximate
    assert {each.load.context for each in report.cells} == {tiny_gguf.CONTEXT}
    assert report.as_dict()["chosen"]["reason"] == report.chosen.reason


def test_one_gpu_of_several_is_chosen_once(store: Store) -> None:
    machine = Machine(8 * GIB, (Gpu("first", GIB), Gpu("second", 16 * GIB)), threads=4, gpu_build=True)
    report = fitting(store, machine, split_mode="none", main_gpu=1).report(SPEC)
    assert [gpu.name for gpu in report.machine.gpus] == ["second"]
    assert report.chosen.load.gpu_layers == -1 or report.chosen.estimate.gpu > 2 * GIB
