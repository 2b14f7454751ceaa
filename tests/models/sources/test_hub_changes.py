"""Whether the sources of the registry still stand on the Hub, asked of a Hub on the loopback."""

from __future__ import annotations

import threading
from typing import Any

import msgspec
import pytest

from locallab.errors import SourceError
from locallab.models import FileSource, HubSource, ModelSpec
from locallab.models.sources import hub_changes
from locallab.models.sources.hub_changes import Change, changes
from tests.support.hub_server import COMMIT, Hub, Repo, etag
from tests.support.tiny_weights import WEIGHTS

DIGEST = etag(WEIGHTS)
OTHER = "a" * 64


def spec(name: str = "tiny:hub", size: int | None = None, **source: Any) -> ModelSpec:
    asked = HubSource(**{"repo": "acme/tiny", "file": "tiny.gguf", **source})
    return ModelSpec(id=name, source=asked, size=size, description="tiny")


def problems(*specs: ModelSpec) -> list[str]:
    return [change.problem for change in changes(specs)]


@pytest.mark.parametrize(
    "standing",
    [
        spec(),
        spec(size=len(WEIGHTS), sha256=DIGEST, revision=COMMIT),
        spec(size=round(len(WEIGHTS) * 1.005)),
        spec(file="deep/er.gguf"),
        spec(file=None, quantization="Q8_0", repo="acme/several"),
        spec(file="big-00002-of-00002.gguf", repo="acme/several", size=18),
    ],
    ids=["named", "pinned", "a rounded size", "in a folder", "by quantization", "split"],
)
def test_what_stands(hub: Hub, standing: ModelSpec) -> None:
    shards = {f"big-0000{index}-of-00002.gguf": b"GGUF" + b"x" * 5 for index in (1, 2)}
    hub.repos["acme/several"] = Repo({"a-Q8_0.gguf": WEIGHTS, "a-Q4_0.gguf": b"GGUF", **shards})
    assert changes([standing]) == []


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        (spec(repo="acme/gone"), "acme/gone is gone or private; if it is private, set HF_TOKEN to a token that may read it"),
        (spec(revision="v2"), "acme/tiny has no revision v2 any more"),
        (spec(file="lost.gguf"), "acme/tiny has no file lost.gguf"),
        (spec(file="lost.gguf", revision=COMMIT), f"acme/tiny has no file lost.gguf at {COMMIT}"),
        (spec(file="TINY.gguf"), "acme/tiny has no file TINY.gguf; it is tiny.gguf now"),
        (spec(file="er.gguf"), "acme/tiny has no file er.gguf; it is deep/er.gguf now"),
        (spec(file="old.gguf", sha256=DIGEST), "acme/tiny has no file old.gguf; it is tiny.gguf now"),
        (spec(file=None, quantization="Q2_K"), "acme/tiny has no quantization Q2_K; it has deep/er.gguf, tiny.gguf"),
        (spec(file="t-00001-of-00002.gguf"), "acme/tiny has no file t-00001-of-00002.gguf"),
        (spec(sha256=OTHER), f"tiny.gguf of acme/tiny has other contents: sha256 {DIGEST}, in the registry {OTHER}"),
        (spec(size=2 * len(WEIGHTS)), "tiny.gguf of acme/tiny has 16.4 kB, in the registry 32.8 kB"),
        (spec(repo="acme/former"), "acme/former has moved to acme/tiny"),
    ],
)
def test_what_has_changed(hub: Hub, changed: ModelSpec, problem: str) -> None:
    hub.moved["acme/former"] = "acme/tiny"
    found = changes([spec("fine"), changed])
    assert len(found) == 1
    assert (found[0].id, found[0].part) == ("tiny:hub", "model")
    assert found[0].problem == problem


def test_each_part_is_checked_in_the_order_of_the_models(hub: Hub) -> None:
    seeing = msgspec.structs.replace(spec("b"), mmproj=HubSource("acme/tiny", file="eyes.gguf"), draft=HubSource("acme/gone"))
    found = changes([spec("a", file="lost.gguf"), seeing])
    assert [(change.id, change.part) for change in found] == [("a", "model"), ("b", "mmproj"), ("b", "draft")]


def test_a_repository_is_asked_once(hub: Hub) -> None:
    assert problems(spec("a"), spec("b", file="deep/er.gguf"), spec("c", revision=COMMIT)) == []
    assert len([path for path in hub.requests if path.startswith("/api/")]) == 2


def test_variants_and_other_kinds_of_sources_are_left_out(hub: Hub, pypi_spec: ModelSpec) -> None:
    variant = msgspec.structs.replace(spec("v", file="lost.gguf"), base="tiny:hub")
    here = msgspec.structs.replace(spec("f"), source=FileSource(pypi_spec.source.file))  # type: ignore[arg-type,union-attr]
    assert problems(variant, pypi_spec, here) == []


def test_requests_run_side_by_side_but_not_all_at_once(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    running, most, lock = 0, 0, threading.Lock()
    together = threading.Barrier(hub_changes.WORKERS)

    def ask(place: tuple[str, str | None]) -> str:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait(30)
        with lock:
            running -= 1
        return "gone"

    monkeypatch.setattr(hub_changes, "_ask", ask)
    count = 2 * hub_changes.WORKERS
    assert problems(*(spec(f"m{index}", repo=f"acme/m{index}") for index in range(count))) == ["gone"] * count
    assert most == hub_changes.WORKERS


def test_a_busy_hub_is_asked_again(hub: Hub, pauses: list[float]) -> None:
    hub.busy = [(200, {}), (503, {"Retry-After": "7"})]  # the first request asks whether it answers at all
    assert problems(spec()) == []
    assert sum(pauses) == 7


def test_a_repository_that_cannot_be_asked_is_named(hub: Hub) -> None:
    hub.fail = 418
    assert problems(spec(), spec("b", repo="acme/gone")) == [
        f"acme/{name} cannot be checked: HTTP 418" for name in ("tiny", "gone")
    ]


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("HF_HUB_OFFLINE", "1", r"HF_HUB_OFFLINE is set; unset it"),
        ("HF_ENDPOINT", "http://127.0.0.1:9", r".*; check the network, its proxy and HF_ENDPOINT"),
    ],
)
def test_a_hub_out_of_reach_is_one_error(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, reason: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SourceError, match=rf"^the Hub at http://127\.0\.0\.1:\d+ cannot be asked: {reason}$"):
        changes([spec(), spec("b", repo="acme/other")])
    assert hub.requests == []


def test_a_hub_that_goes_away_is_one_error(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_changes.hub_status, "hub_problem", lambda: None)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SourceError, match=r"^the Hub at http://127\.0\.0\.1:9 cannot be asked: "):
        changes([spec(), spec("b", repo="acme/other")])


def test_what_is_no_hub_is_one_error(hub: Hub) -> None:
    hub.busy = [(200, {}), (200, {})]  # a page without content
    with pytest.raises(SourceError, match="cannot be asked"):
        changes([spec()])


def test_a_change_names_model_part_and_problem(hub: Hub) -> None:
    assert changes([spec(repo="acme/gone", file=None)])[0] == Change(
        "tiny:hub", "model", "acme/gone is gone or private; if it is private, set HF_TOKEN to a token that may read it"
    )
