from __future__ import annotations

from pathlib import Path

import pytest

from locallab.fit import Choice, Machine, Offer, Wishes, approximate, choose, offered, pick, unnamed
from locallab.models import FileSource, HubSource, ModelSpec, Registry, Store, hub_status
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
