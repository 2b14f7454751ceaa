"""The real huggingface_hub against a server on the loopback: what is fetched, and what is said when it cannot be."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import huggingface_hub.constants
import msgspec
import pytest

from locallab.errors import SourceError
from locallab.models import HubSource, ModelSpec, Store, fetch
from locallab.models.spec import Adapter
from tests.support.hub_server import COMMIT, Hub, Repo, etag
from tests.support.tiny_weights import WEIGHTS, Calls

RESOLVE = f"/acme/tiny/resolve/{COMMIT}/tiny.gguf"


def changed(spec: ModelSpec, **source: str | None) -> ModelSpec:
    return msgspec.structs.replace(spec, source=msgspec.structs.replace(spec.source, **source))


def left(store: Store) -> list[str]:
    """The files in the store besides locks and records."""
    files = [path for path in store.root.rglob("*") if path.is_file()]
    return sorted(path.name for path in files if path.suffix not in (".lock", ".json"))


def test_the_file_is_fetched_once(hub: Hub, hub_spec: ModelSpec, store: Store, progress: Calls) -> None:
    path = fetch(hub_spec, store, progress)
    assert path == store.root / "tiny@hub" / "tiny.gguf" == fetch(hub_spec, store)
    assert path.read_bytes() == WEIGHTS
    assert left(store) == ["tiny.gguf"]
    assert hub.gets == [(RESOLVE, None)]
    assert progress.seen[-1] == (len(WEIGHTS), len(WEIGHTS))
    assert progress.seen == sorted(progress.seen)


def test_what_was_fetched_is_recorded(hub: Hub, hub_spec: ModelSpec, store: Store) -> None:
    fetch(hub_spec, store)
    record = store.record(hub_spec)
    assert record is not None
    assert (record.source, record.commit) == (hub_spec.source, COMMIT)
    assert [(kept.path, kept.size, kept.sha256) for kept in record.files] == [("tiny.gguf", len(WEIGHTS), etag(WEIGHTS))]


def test_a_file_on_disk_needs_no_network(hub: Hub, hub_spec: ModelSpec, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    by_name = msgspec.structs.replace(hub_spec, id="named", source=HubSource("acme/tiny", file="deep/er.gguf"))
    hub.repos["acme/tiny"].files.pop("tiny.gguf")
    chosen = msgspec.structs.replace(hub_spec, id="chosen", source=HubSource("acme/tiny"))
    paths = [fetch(spec, store) for spec in (by_name, chosen)]
    asked = len(hub.requests)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert [fetch(spec, store) for spec in (by_name, chosen)] == paths
    assert len(hub.requests) == asked


def test_a_revision_and_a_folder_are_respected(hub: Hub, hub_spec: ModelSpec, store: Store) -> None:
    path = fetch(changed(hub_spec, file="deep/er.gguf", revision=COMMIT), store)
    assert (path.name, path.read_bytes()) == ("er.gguf", b"GGUF" + WEIGHTS[::-1])
    assert set(hub.requests) == {f"/acme/tiny/resolve/{COMMIT}/deep/er.gguf"}


def test_another_source_under_the_same_id_is_fetched_anew(hub: Hub, hub_spec: ModelSpec, store: Store) -> None:
    fetch(hub_spec, store)
    other = changed(hub_spec, file="deep/er.gguf")
    assert not store.has(other)
    assert fetch(other, store).read_bytes() == b"GGUF" + WEIGHTS[::-1]
    assert left(store) == ["er.gguf"]


def test_a_truncated_file_is_fetched_anew(hub: Hub, hub_spec: ModelSpec, store: Store) -> None:
    path = fetch(hub_spec, store)
    with path.open("r+b") as file:
        file.truncate(100)
    assert (store.path(hub_spec), store.has(hub_spec), store.size(hub_spec)) == (None, False, None)
    assert fetch(hub_spec, store).read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("wanted", "file"), [(None, "tiny-Q4_K_M.gguf"), ("q8_0", "tiny-Q8_0.gguf"), ("F16", "full/tiny-f16.gguf")]
)
def test_the_file_is_found_by_its_quantization(
    hub: Hub, hub_spec: ModelSpec, store: Store, wanted: str | None, file: str
) -> None:
    names = ("tiny-Q8_0.gguf", "tiny-Q4_K_M.gguf", "full/tiny-f16.gguf", "mmproj-tiny-f16.gguf", "README.md")
    hub.repos["acme/tiny"] = Repo({name: b"GGUF" + name.encode() for name in names})
    spec = msgspec.structs.replace(hub_spec, size=None, source=HubSource("acme/tiny", quantization=wanted))
    assert fetch(spec, store).read_bytes() == b"GGUF" + file.encode()
    assert hub.gets == [(f"/acme/tiny/resolve/{COMMIT}/{file}", None)]


def test_a_split_model_is_fetched_whole(hub: Hub, hub_spec: ModelSpec, store: Store, progress: Calls) -> None:
    contents = {f"big-Q8_0-0000{index}-of-00003.gguf": b"GGUF" + bytes([index]) * 1000 * index for index in (1, 2, 3)}
    hub.repos["acme/tiny"] = Repo({f"Q8_0/{name}": content for name, content in contents.items()})
    by_name = changed(hub_spec, file="Q8_0/big-Q8_0-00002-of-00003.gguf")
    chosen = msgspec.structs.replace(hub_spec, id="chosen", source=HubSource("acme/tiny", quantization="Q8_0"))
    for spec in (by_name, chosen):
        first = fetch(spec, store, progress)
        assert first.name == "big-Q8_0-00001-of-00003.gguf"
        assert {path.name: path.read_bytes() for path in store.files(spec)} == contents
        assert progress.seen[-1] == (6012, 6012)
    assert store.size(by_name) == 6012
    store.files(by_name)[2].unlink()
    assert not store.has(by_name)


def test_projector_and_draft_are_fetched_together_with_the_model(
    hub: Hub, hub_spec: ModelSpec, store: Store, progress: Calls
) -> None:
    hub.repos["acme/tiny"].files["mmproj.gguf"] = b"GGUF mmproj"
    hub.repos["acme/small"] = Repo({"tiny.gguf": b"GGUF draft"})
    spec = msgspec.structs.replace(
        hub_spec, mmproj=HubSource("acme/tiny", file="mmproj.gguf"), draft=HubSource("acme/small", file="tiny.gguf")
    )
    fetch(hub_spec, store)
    assert not store.has(spec)
    model = fetch(spec, store, progress)
    assert model.read_bytes() == WEIGHTS
    draft, mmproj = store.path(spec, "draft"), store.path(spec, "mmproj")
    assert draft and draft.read_bytes() == b"GGUF draft"
    assert mmproj and mmproj.read_bytes() == b"GGUF mmproj"
    assert [path.rpartition("/")[2] for path, _ in hub.gets] == ["tiny.gguf", "mmproj.gguf", "tiny.gguf"]  # the model once
    assert progress.seen[-1] == (21, 21)
    assert store.has(spec)


def test_adapters_are_fetched_together_with_the_model(hub: Hub, hub_spec: ModelSpec, store: Store, progress: Calls) -> None:
    hub.repos["acme/loras"] = Repo({"pirate.gguf": b"GGUF pirate", "poet.gguf": b"GGUF poet"})
    adapters = tuple(Adapter(name=name, source=HubSource("acme/loras", file=f"{name}.gguf")) for name in ("pirate", "poet"))
    spec = msgspec.structs.replace(hub_spec, adapters=adapters)
    assert fetch(spec, store, progress).read_bytes() == WEIGHTS
    paths = [store.path(spec, each.part) for each in adapters]
    assert [path and path.read_bytes() for path in paths] == [b"GGUF pirate", b"GGUF poet"]
    assert store.has(spec) and all(map(store.has, spec.adapted))
    assert store.remove(spec) > len(WEIGHTS) and not store.path(spec, adapters[0].part)
    wrong = HubSource("acme/loras", file="poet.gguf", sha256="0" * 64)
    with pytest.raises(SourceError, match=r"poet\.gguf"):
        fetch(msgspec.structs.replace(hub_spec, adapters=(Adapter(name="poet", source=wrong),)), store)


def test_a_redirected_file_is_fetched_without_telling_the_token(
    hub: Hub, hub_spec: ModelSpec, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.repos["acme/tiny"] = Repo({"tiny.gguf": WEIGHTS}, "gated", token="hf_secret")
    hub.redirect = True
    hub.cuts = 1
    assert fetch(hub_spec, store).read_bytes() == WEIGHTS
    assert hub.tokens == [None, None]
    assert hub.gets[1][1] == f"bytes={len(WEIGHTS) // 2}-"


def test_a_small_text_is_checked_against_its_git_digest(hub: Hub, hub_spec: ModelSpec, store: Store) -> None:
    hub.repos["acme/tiny"].files["tiny.gguf"] = b"no weights"
    assert fetch(hub_spec, store).read_bytes() == b"no weights"
    hub.repos["acme/tiny"].files["other.gguf"] = b"nor these"
    hub.wrong = 2
    with pytest.raises(SourceError, match="expected sha1 "):
        fetch(changed(hub_spec, file="other.gguf"), store)


@pytest.mark.parametrize("access", ["gated", "private"])
def test_the_token_opens_a_closed_repository(
    hub: Hub, hub_spec: ModelSpec, store: Store, monkeypatch: pytest.MonkeyPatch, access: str
) -> None:
    hub.repos["acme/tiny"] = Repo({"tiny.gguf": WEIGHTS}, access, token="hf_secret")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert fetch(hub_spec, store).read_bytes() == WEIGHTS


FAILURES = {
    "no-repo": ({"repo": "acme/none"}, None, None, "/acme/none does not exist or is private: correct source.repo"),
    "private": ({}, "private", None, "/acme/tiny does not exist or is private: .* set HF_TOKEN"),
    "gated": ({}, "gated", None, "http://.*/acme/tiny is gated: accept its terms on that page .* then set HF_TOKEN"),
    "no-file": ({"file": "none.gguf"}, None, None, "/acme/tiny has no file 'none.gguf': .*/acme/tiny/tree/main lists"),
    "no-shard": ({"file": "x-00001-of-00002.gguf"}, None, None, "/acme/tiny has no file 'x-00001-of-00002.gguf'"),
    "no-revision": ({"revision": "v9"}, None, None, "/acme/tiny has no revision 'v9': correct source.revision"),
    "no-quantization": (
        {"file": None, "quantization": "Q9_0"},
        None,
        None,
        "/acme/tiny has no quantization Q9_0; it has deep/er.gguf, tiny.gguf",
    ),
    "several": ({"file": None}, None, None, "/acme/tiny has several models, name one: deep/er.gguf, tiny.gguf"),
    "no-revision-to-list": ({"file": None, "revision": "v9"}, None, None, "/acme/tiny has no revision 'v9'"),
    "unauthorized": ({}, None, 401, r"/acme/tiny refuses access to tiny.gguf \(HTTP 401\): set HF_TOKEN"),
    "forbidden": ({}, None, 403, r"/acme/tiny refuses access to tiny.gguf \(HTTP 403\): set HF_TOKEN"),
    "not-found": ({}, None, 404, "tiny.gguf of http.*/acme/tiny cannot be fetched: .*404"),
    "broken": (
        {},
        None,
        500,
        "tiny.gguf of http.*/acme/tiny cannot be fetched: .*500 .*; check the network, its proxy",
    ),
    "not-a-repo-id": ({"repo": "a/b/c"}, None, None, "a/b/c cannot be fetched: Repo id must be in the form"),
}


@pytest.mark.parametrize(("source", "access", "status", "message"), FAILURES.values(), ids=FAILURES)
def test_a_failure_names_repository_file_and_remedy(
    hub: Hub,
    hub_spec: ModelSpec,
    store: Store,
    source: dict[str, str | None],
    access: str | None,
    status: int | None,
    message: str,
) -> None:
    hub.fail = status
    if access:
        hub.repos["acme/tiny"] = Repo({"tiny.gguf": WEIGHTS}, access, token="hf_secret")
    with pytest.raises(SourceError, match=f"tiny:hub: .*{message}"):
        fetch(changed(hub_spec, **source), store)
    assert left(store) == []
    assert hub.gets == []


def test_a_hub_out_of_reach_is_named_at_once(
    hub_spec: ModelSpec, store: Store, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SourceError, match=r"127\.0\.0\.1:9/acme/tiny cannot be fetched: .*refused; check the network"):
        fetch(hub_spec, store)
    assert pauses == []


def test_offline_mode_is_named(hub: Hub, hub_spec: ModelSpec, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # the library reads the variable when imported
    with pytest.raises(SourceError, match=r"tiny\.gguf of .* is not on this machine, and HF_HUB_OFFLINE forbids"):
        fetch(hub_spec, store)
    assert hub.requests == []


def test_what_is_not_a_hub_is_named(hub: Hub, hub_spec: ModelSpec, store: Store) -> None:
    hub.commit = None
    with pytest.raises(SourceError, match=r"tiny\.gguf of .* cannot be fetched: the server there is not a Hub; .*HF_ENDPOINT"):
        fetch(hub_spec, store)


def test_an_empty_file_is_refused(hub: Hub, hub_spec: ModelSpec, store: Store) -> None:
    hub.repos["acme/tiny"].files["tiny.gguf"] = b""
    with pytest.raises(SourceError, match="tiny:hub: the source has an empty file"):
        fetch(hub_spec, store)
    assert store.path(hub_spec) is None


def test_a_full_disk_is_noticed_before_anything_is_fetched(
    hub: Hub, hub_spec: ModelSpec, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(store.root.parent.parent)._replace(free=len(WEIGHTS) - 2000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(SourceError, match=r"tiny:hub: 16\.4 kB are to be fetched and .* has room for 14\.4 kB: free 2 kB"):
        fetch(hub_spec, store)
    assert hub.gets == []
    assert left(store) == []


def test_a_disk_that_fills_up_meanwhile_keeps_nothing(hub: Hub, hub_spec: ModelSpec, store: Store) -> None:
    """The half-fetched file is the kernel's own full disk."""
    (place,) = store.partial(hub_spec, "model", [etag(WEIGHTS)])
    place.symlink_to("/dev/full")
    with pytest.raises(SourceError, match=r"the disk of .* became full with 16\.4 kB missing; 16\.4 kB are needed"):
        fetch(hub_spec, store)
    assert left(store) == []
    assert not place.is_symlink()
    assert store.path(hub_spec) is None
    assert fetch(hub_spec, store).read_bytes() == WEIGHTS


def test_the_place_of_a_file_follows_its_id(hub: Hub, hub_spec: ModelSpec, store: Store, tmp_path: Path) -> None:
    spec = msgspec.structs.replace(hub_spec, id="Acme--Tiny:Q4")
    assert fetch(spec, store) == tmp_path / "home" / "models" / "acme--tiny@q4" / "tiny.gguf"


def other_weights(hub: Hub) -> str:
    """Replace the file on the Hub, and return the digest of the new one."""
    hub.repos["acme/tiny"].files["tiny.gguf"] = b"GGUF" + WEIGHTS
    return hashlib.sha256(b"GGUF" + WEIGHTS).hexdigest()


def test_a_later_download_is_held_against_the_first(hub: Hub, hub_spec: ModelSpec, store: Store) -> None:
    fetch(hub_spec, store)
    store.remove(hub_spec)
    assert fetch(hub_spec, store).read_bytes() == WEIGHTS
    assert f"/acme/tiny/resolve/{COMMIT}/tiny.gguf" in hub.requests[-1]
    store.remove(hub_spec)
    digest = other_weights(hub)
    with pytest.raises(SourceError) as caught:
        fetch(hub_spec, store)
    assert f"tiny.gguf of {hub.url}/acme/tiny has the sha256 {digest} and not {hashlib.sha256(WEIGHTS).hexdigest()}" in str(
        caught.value
    )
    assert str(store.pin_of(hub_spec, "model")) in str(caught.value)
    shutil.rmtree(store.pin_of(hub_spec, "model"))
    assert fetch(hub_spec, store).read_bytes() == b"GGUF" + WEIGHTS


def test_a_later_download_gets_the_first_ones_commit(hub: Hub, hub_spec: ModelSpec, store: Store) -> None:
    fetch(hub_spec, store)
    store.remove(hub_spec)
    hub.requests.clear()
    fetch(hub_spec, store)
    assert all(COMMIT in path for path in hub.requests if "resolve" in path)


def test_another_source_is_not_held_against_it(hub: Hub, hub_spec: ModelSpec, store: Store) -> None:
    fetch(hub_spec, store)
    other = msgspec.structs.replace(hub_spec, source=HubSource(repo="acme/tiny", file="deep/er.gguf"))
    assert fetch(other, store).read_bytes() == b"GGUF" + WEIGHTS[::-1]
    fetch(hub_spec, store)


def test_the_registry_names_a_digest(hub: Hub, hub_spec: ModelSpec, store: Store) -> None:
    def spec(sha256: str) -> ModelSpec:
        return msgspec.structs.replace(hub_spec, source=HubSource(repo="acme/tiny", file="tiny.gguf", sha256=sha256))

    assert fetch(spec(hashlib.sha256(WEIGHTS).hexdigest()), store).read_bytes() == WEIGHTS
    with pytest.raises(SourceError, match=r"and not f{64} as in the registry: correct source\.sha256"):
        fetch(spec("f" * 64), store)
