"""The real huggingface_hub against a server on the loopback."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import huggingface_hub
import msgspec
import pytest
from hub_server import COMMIT, Hub, Repo, serve
from tiny import WEIGHTS, Calls

from locallab.errors import SourceError
from locallab.models import ModelSpec, Store, fetch, sources

RESOLVE = "/acme/tiny/resolve/main/tiny.gguf"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve(Hub({"acme/tiny": Repo({"tiny.gguf": WEIGHTS, "deep/er.gguf": WEIGHTS[::-1]})})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def changed(spec: ModelSpec, **source: str) -> ModelSpec:
    return msgspec.structs.replace(spec, source=msgspec.structs.replace(spec.source, **source))


def left(store: Store) -> list[str]:
    return [path.name for path in store.root.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_the_file_is_fetched_once(hub: Hub, hub_spec: ModelSpec, store: Store, progress: Calls) -> None:
    path = fetch(hub_spec, store, progress)
    assert path == store.root / "tiny@hub" / "tiny.gguf" == fetch(hub_spec, store)
    assert path.read_bytes() == WEIGHTS
    assert left(store) == ["tiny.gguf"]
    assert hub.gets == [(RESOLVE, None)]
    assert progress.seen[0] == progress.seen[-1] == (len(WEIGHTS), len(WEIGHTS))


def test_a_revision_and_a_folder_are_respected(hub: Hub, hub_spec: ModelSpec, store: Store) -> None:
    path = fetch(changed(hub_spec, file="deep/er.gguf", revision=COMMIT), store)
    assert (path.name, path.read_bytes()) == ("er.gguf", WEIGHTS[::-1])
    assert hub.gets == [(f"/acme/tiny/resolve/{COMMIT}/deep/er.gguf", None)]


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
    "gated": ({}, "gated", None, "/acme/tiny is gated: accept its terms on that page, then set HF_TOKEN"),
    "no-file": ({"file": "none.gguf"}, None, None, "/acme/tiny has no file 'none.gguf': correct source.file"),
    "no-revision": ({"revision": "v9"}, None, None, "/acme/tiny has no revision 'v9': correct source.revision"),
    "forbidden": ({}, None, 403, r"/acme/tiny refuses access to tiny.gguf \(HTTP 403\): set HF_TOKEN"),
    "broken": ({}, None, 500, "tiny.gguf of http.*/acme/tiny cannot be fetched: .*500 .*; check the network, HF_ENDPOINT"),
    "not-a-repo-id": ({"repo": "a/b/c"}, None, None, "a/b/c cannot be fetched: Repo id must be in the form"),
}


@pytest.mark.parametrize(("source", "access", "status", "message"), FAILURES.values(), ids=FAILURES)
def test_a_failure_names_repository_file_and_remedy(
    hub: Hub, hub_spec: ModelSpec, store: Store, source: dict[str, str], access: str | None, status: int | None, message: str
) -> None:
    hub.fail = status
    if access:
        hub.repos["acme/tiny"] = Repo({"tiny.gguf": WEIGHTS}, access, token="hf_secret")
    with pytest.raises(SourceError, match=f"tiny:hub: .*{message}"):
        fetch(changed(hub_spec, **source), store)
    assert left(store) == []
    assert hub.gets == []


def test_a_hub_out_of_reach_is_named_at_once(hub_spec: ModelSpec, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SourceError, match=r"127\.0\.0\.1:9/acme/tiny cannot be fetched: .*refused; check the network"):
        fetch(hub_spec, store)


def test_what_is_not_a_hub_is_named(hub: Hub, hub_spec: ModelSpec, store: Store) -> None:
    hub.commit = None
    with pytest.raises(SourceError, match=r"tiny\.gguf of .* cannot be fetched: .* check the network, HF_ENDPOINT"):
        fetch(hub_spec, store)


def test_an_empty_file_is_refused(hub: Hub, hub_spec: ModelSpec, store: Store) -> None:
    hub.repos["acme/tiny"].files["tiny.gguf"] = b""
    with pytest.raises(SourceError, match="tiny:hub: the source gave an empty file"):
        fetch(hub_spec, store)
    assert left(store) == []


def test_a_broken_download_goes_on_where_it_broke(hub: Hub, hub_spec: ModelSpec, store: Store, progress: Calls) -> None:
    content = WEIGHTS * 2000  # more than one of the library's chunks of 10 MiB in the first half
    hub.repos["acme/tiny"].files["tiny.gguf"] = content
    hub.cuts = 1
    assert fetch(hub_spec, store, progress).read_bytes() == content
    (_, first), (_, second) = hub.gets
    assert (first, second is not None and second.startswith("bytes=")) == (None, True)
    assert progress.seen == sorted(progress.seen)
    assert progress.seen[0][0] < progress.seen[-1][0] == len(content)


def test_a_full_disk_is_not_blamed_on_the_hub(
    hub: Hub, hub_spec: ModelSpec, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", full)
    with pytest.raises(SourceError, match=f"tiny:hub: cannot be stored under {store.root}: .*No space left"):
        fetch(hub_spec, store)


def test_the_bar_counts_what_is_in_the_file(progress: Calls) -> None:
    """Drives it the way the library does for files it transfers in deduplicated chunks, and takes back lost bytes."""
    with sources._bar(progress, 100)(desc="tiny.gguf", total=100, unit="B") as bar:
        bar.update(40)
        bar.update_transfer(60)
        bar.set_postfix_str("1 MB/s", refresh=False)
        bar.update(-10)
        bar.update(80)
    assert progress.seen == [(40, 100), (30, 100), (100, 100)]
