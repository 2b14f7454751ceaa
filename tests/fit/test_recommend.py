from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import pytest

from locallab.fit import Choice, Gpu, Machine, Offer, Wishes, approximate, choose, offered, pick, unnamed
from locallab.fit.recommend import memory_classes
from locallab.models import FileSource, HubSource, ModelSpec, Registry, Store, default_path, hub_status
from locallab.models.spec import MemoryClass
from tests.support import tiny_gguf

GIB = 1 << 30
DEFAULT = ModelSpec(id="tiny", source=FileSource(Path("/tiny.gguf")), size=10**8, description="d")
PLENTY = Machine(64 * GIB, threads=32)


def offer(name: str, size: float, machine: Machine, *, on_disk: bool = False, recommended: bool = True) -> Offer:
    """A model of so many GB on the Hub."""
    source = HubSource(repo="a/b", file="c.gguf")
    spec = ModelSpec(id=name, source=source, size=int(size * 10**9), description="d", recommended=recommended)
    return Offer(spec, on_disk, choose(approximate(spec.size or 0), machine, Wishes()))


def never() -> bool:
    raise AssertionError("nobody needs to know")


def chosen(machine: Machine, *offers: Offer, reachable: object = never) -> Choice:
    return pick(offers, DEFAULT, machine, reachable)  # type: ignore[arg-type]


def test_the_largest_on_disk_is_taken_and_nobody_asks_the_hub() -> None:
    small, large = offer("small", 1, PLENTY, on_disk=True), offer("large", 5, PLENTY, on_disk=True)
    choice = chosen(PLENTY, small, large, offer("larger", 9, PLENTY))
    assert choice.spec.id == "large"
    assert choice.reason.startswith("the best recommended model on disk that fits: on the CPU, context 8,192")


def test_what_is_not_recommended_is_not_taken() -> None:
    choice = chosen(PLENTY, offer("odd", 5, PLENTY, on_disk=True, recommended=False))
    assert choice == Choice(DEFAULT, "no recommended model fits this machine; this small one runs everywhere")


def test_the_largest_on_the_hub_is_fetched() -> None:
    choice = chosen(PLENTY, offer("small", 1, PLENTY), offer("large", 5, PLENTY), reachable=lambda: True)
    assert choice.spec.id == "large"
    assert "to be fetched now: on the CPU" in choice.reason


def test_without_the_hub_the_default_is_served() -> None:
    choice = chosen(PLENTY, offer("large", 5, PLENTY), reachable=lambda: False)
    assert choice == Choice(DEFAULT, "large would fit, but is not on disk, and the Hub cannot be reached")


@pytest.mark.parametrize(
    ("machine", "expected"),
    [(Machine(4 * GIB, threads=32), "small"), (Machine(64 * GIB, threads=2), "small"), (Machine(64 * GIB, threads=1), "tiny")],
    ids=["too little memory", "too slow a CPU for the large one", "too slow for either"],
)
def test_what_does_not_suit_the_machine_is_left_out(machine: Machine, expected: str) -> None:
    offers = [offer("small", 1, machine, on_disk=True), offer("large", 5, machine, on_disk=True)]
    assert chosen(machine, *offers).spec.id == expected


def test_a_model_that_is_nowhere_is_not_taken() -> None:
    lost = ModelSpec(id="lost", source=FileSource(Path("/lost.gguf")), size=10**9, description="d", recommended=True)
    fit = choose(approximate(10**9), PLENTY)
    assert chosen(PLENTY, Offer(lost, False, fit)).spec is DEFAULT


def test_what_a_registry_offers(tmp_path: Path) -> None:
    tiny = tiny_gguf.write(tmp_path / "tiny.gguf", "llama")
    (tmp_path / "bad.gguf").write_bytes(b"bad")
    files = {"here": tiny, "damaged": tmp_path / "bad.gguf"}
    specs = [
        ModelSpec(id=name, source=FileSource(Path(f"/{name}")), description="d", size=size, recommended=name != "odd")
        for name, size in {"here": 10**9, "afar": 10**9, "damaged": 10**9, "unsized": None, "odd": 10**9}.items()
    ]
    found = offered(specs, lambda spec: files.get(spec.id), PLENTY, [("--parallel", {"parallel": 3})])
    assert [(each.spec.id, each.on_disk, each.fit.approximate) for each in found] == [
        ("here", True, False),
        ("afar", False, True),
    ]
    assert {each.fit.load.parallel for each in found} == {3}


@pytest.mark.parametrize(("reachable", "expected"), [(False, "default"), (True, "large")])
def test_of_a_whole_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reachable: bool, expected: str) -> None:
    registry = Registry()
    hub = HubSource(repo="a/b", file="c.gguf")
    for name, size in {"default": 10**8, "small": 10**9, "large": 5 * 10**9}.items():
        recommended = name != "default"
        spec = ModelSpec(id=name, source=hub, size=size, description="d", recommended=recommended)
        registry.add("a test", spec)
    monkeypatch.setattr(hub_status, "hub_reachable", lambda: reachable)
    assert unnamed(registry, Store(tmp_path), PLENTY).spec.id == expected


GB = 10**9
CARDS = {
    8: Machine(12 * GIB, (Gpu("RTX 3070", int(7.6 * GIB)),), threads=8, gpu_build=True),
    16: Machine(12 * GIB, (Gpu("T4", int(14.7 * GIB)),), threads=2, gpu_build=True),
    24: Machine(28 * GIB, (Gpu("RTX 4090", int(23.4 * GIB)),), threads=16, gpu_build=True),
    80: Machine(110 * GIB, (Gpu("A100", int(79.1 * GIB)),), threads=32, gpu_build=True),
}
TWO_CARDS = Machine(64 * GIB, (Gpu("T4", 15 * GIB), Gpu("T4", 15 * GIB)), threads=8, gpu_build=True)
APPLE = Machine(27 * GIB, (Gpu("GPU", None),), threads=8, gpu_build=True)


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        (Machine(3 * GIB, threads=64), ["ram-16"]),
        (Machine(50 * GIB, threads=1), ["ram-16"]),
        (Machine(52 * GIB, threads=1), ["ram-16", "ram-64"]),
        (Machine(52 * GIB, (Gpu("unused", 24 * GIB),)), ["ram-16", "ram-64"]),
        (CARDS[8], ["ram-16", "gpu-8"]),
        (CARDS[16], ["ram-16", "gpu-8", "gpu-16"]),
        (CARDS[24], ["ram-16", "gpu-8", "gpu-16", "gpu-24"]),
        (CARDS[80], ["ram-16", "ram-64", "gpu-8", "gpu-16", "gpu-24", "gpu-80"]),
        (TWO_CARDS, ["ram-16", "ram-64", "gpu-8", "gpu-16", "gpu-24"]),
        (APPLE, ["ram-16", "gpu-8", "gpu-16", "gpu-24"]),
    ],
)
def test_the_memory_classes_of_a_machine(machine: Machine, expected: list[str]) -> None:
    assert memory_classes(machine) == expected


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        (CARDS[8], "qwen3.5:9b-q4_k_m"),
        (CARDS[16], "gpt-oss:20b-mxfp4"),
        (CARDS[24], "qwen3.6:27b-q4_k_m"),
        (CARDS[80], "gpt-oss:120b-mxfp4"),
        (Machine(13 * GIB, threads=8), "qwen3.5:4b-q4_k_m"),
        (Machine(13 * GIB, threads=16), "qwen3.5:9b-q4_k_m"),
        (Machine(58 * GIB, threads=16), "qwen3.6:35b-a3b-ud-q4_k_m"),
        (Machine(13 * GIB, threads=1), "qwen3.5:0.8b-q4_k_m"),
        (Machine(GIB // 2, threads=1), "smollm2:135m"),
    ],
    ids=["8 GB", "16 GB", "24 GB", "80 GB", "16 GB of RAM", "and many cores", "64 GB of RAM", "one core", "hardly any memory"],
)
def test_what_the_shipped_registry_recommends(machine: Machine, expected: str) -> None:
    registry = Registry.load(default_path())
    choice = pick(offered(registry, lambda spec: None, machine), registry.default, machine, lambda: True)
    assert choice.spec.id == expected


def for_classes(name: str, size: float, machine: Machine, *classes: MemoryClass, on_disk: bool = False) -> Offer:
    found = offer(name, size, machine, on_disk=on_disk)
    return dataclasses.replace(found, spec=msgspec.structs.replace(found.spec, recommended=classes))


def test_the_highest_class_comes_before_the_size() -> None:
    machine = CARDS[24]
    small = for_classes("small", 9, machine, "gpu-24")
    large = for_classes("large", 12, machine, "ram-16", "gpu-16")
    assert chosen(machine, small, large, reachable=lambda: True).spec.id == "small"
    assert chosen(machine, large, offer("any", 5, machine), reachable=lambda: True).spec.id == "any"


def test_what_is_for_other_machines_is_not_fetched_but_served_from_disk() -> None:
    machine = CARDS[8]
    assert chosen(machine, for_classes("other", 3, machine, "gpu-24", "ram-64")).spec is DEFAULT
    on_disk = for_classes("other", 3, machine, "gpu-24", on_disk=True)
    assert chosen(machine, on_disk).spec.id == "other"
    assert chosen(machine, on_disk, for_classes("fitting", 2, machine, "gpu-8", on_disk=True)).spec.id == "fitting"


def test_a_mixture_of_experts_may_be_larger_than_what_the_cpu_reads_in_time() -> None:
    machine = Machine(64 * GIB, threads=4)
    dense = offer("dense", 20, machine)
    experts = dataclasses.replace(dense, spec=msgspec.structs.replace(dense.spec, id="experts", active=2 * GB))
    assert chosen(machine, dense).spec is DEFAULT
    assert chosen(machine, dense, experts, reachable=lambda: True).spec.id == "experts"
