"""Downloads that do not go well: broken off, stalled, wrong, refused for a while, killed, begun twice."""

from __future__ import annotations

import datetime
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import huggingface_hub.constants
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallab.errors import SourceError
from locallab.models import ModelSpec, Store, fetch
from locallab.models.sources import download
from tests.support.hub_server import Hub, etag
from tests.support.tiny_weights import WEIGHTS, Calls

FETCH = """
import logging, sys, msgspec
from locallab.models import ModelSpec, Store, fetch

logging.basicConfig(format="%(message)s", stream=sys.stdout)
logging.getLogger("locallab").setLevel(logging.INFO)
with open(sys.argv[1], "rb") as spec:
    print(fetch(msgspec.json.decode(spec.read(), type=ModelSpec), Store(), lambda done, total: print(done, flush=True)))
"""


def fetching(spec: ModelSpec, folder: Path) -> subprocess.Popen[str]:
    """Another process that fetches `spec`, and prints how far it is."""
    (folder / "spec").write_bytes(msgspec.json.encode(spec))
    command = [sys.executable, "-c", FETCH, str(folder / "spec")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def partial(store: Store) -> Path:
    return store.root / ".partial" / "tiny@hub" / "model" / etag(WEIGHTS)


def test_a_broken_download_goes_on_where_it_broke(
    hub: Hub, hub_spec: ModelSpec, store: Store, progress: Calls, pauses: list[float]
) -> None:
    hub.cuts = 2
    assert fetch(hub_spec, store, progress).read_bytes() == WEIGHTS
    size = len(WEIGHTS)
    assert [given for _, given in hub.gets] == [None, f"bytes={size // 2}-", f"bytes={size - size // 4}-"]
    assert hub.sent == size
    assert progress.seen == sorted(progress.seen)
    assert sum(pauses) == 2  # one second each: something came


def test_a_download_that_stalls_is_asked_for_again(
    hub: Hub, hub_spec: ModelSpec, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    hub.stalls = 1
    assert fetch(hub_spec, store).read_bytes() == WEIGHTS
    assert hub.gets[1][1] == f"bytes={len(WEIGHTS) // 2}-"


def test_a_slow_download_is_told_bit_by_bit(hub: Hub, hub_spec: ModelSpec, store: Store, progress: Calls) -> None:
    """The second half is held back until progress was told of the first."""
    hub.hold = threading.Event()
    half = []

    def told(done: int, total: int | None) -> None:
        progress(done, total)
        if done == len(WEIGHTS) // 2:
            half.append(total)
            assert hub.hold
            hub.hold.set()

    assert fetch(hub_spec, store, told).read_bytes() == WEIGHTS
    assert half == [len(WEIGHTS)]


def test_a_server_without_ranges_sends_all_again(hub: Hub, hub_spec: ModelSpec, store: Store) -> None:
    hub.ranges = False
    hub.cuts = 1
    assert fetch(hub_spec, store).read_bytes() == WEIGHTS
    assert hub.sent == len(WEIGHTS) * 3 // 2


def test_wrong_content_is_thrown_away(hub: Hub, hub_spec: ModelSpec, store: Store) -> None:
    hub.wrong = 1
    with pytest.raises(SourceError) as caught:
        fetch(hub_spec, store)
    assert f"the download from {hub.url}/acme/tiny is corrupt and was discarded: expected sha256 {etag(WEIGHTS)}" in str(
        caught.value
    )
    assert not partial(store).exists()
    assert fetch(hub_spec, store).read_bytes() == WEIGHTS


def test_a_damaged_beginning_is_fetched_once_more(hub: Hub, hub_spec: ModelSpec, store: Store) -> None:
    (place,) = store.partial(hub_spec, "model", [etag(WEIGHTS)])
    place.write_bytes(bytes(1000))
    assert fetch(hub_spec, store).read_bytes() == WEIGHTS
    assert [given for _, given in hub.gets] == ["bytes=1000-", None]


def test_a_beginning_that_is_too_long_is_fetched_once_more(hub: Hub, hub_spec: ModelSpec, store: Store) -> None:
    (place,) = store.partial(hub_spec, "model", [etag(WEIGHTS)])
    place.write_bytes(WEIGHTS + b"more")
    assert fetch(hub_spec, store).read_bytes() == WEIGHTS


def test_the_beginning_of_another_version_is_dropped(hub: Hub, hub_spec: ModelSpec, store: Store) -> None:
    (place,) = store.partial(hub_spec, "model", ["0" * 64])
    place.write_bytes(WEIGHTS[:1000])
    assert fetch(hub_spec, store).read_bytes() == WEIGHTS
    assert not place.exists()
    assert hub.gets[0][1] is None


@pytest.mark.parametrize(
    ("status", "headers", "waited"),
    [
        (429, {"Retry-After": "7"}, 7),
        (429, {"ratelimit": '"resolvers";r=0;t=55'}, 55),
        (503, {"Retry-After": "3"}, 3),
        (500, {}, 1),
        (504, {}, 1),
    ],
)
def test_a_busy_hub_is_asked_again_when_it_says(
    hub: Hub,
    hub_spec: ModelSpec,
    store: Store,
    pauses: list[float],
    caplog: pytest.LogCaptureFixture,
    status: int,
    headers: dict[str, str],
    waited: int,
) -> None:
    caplog.set_level(logging.WARNING)
    hub.busy = [(status, headers)]
    assert fetch(hub_spec, store).read_bytes() == WEIGHTS
    assert sum(pauses) == waited
    assert f"tiny.gguf: HTTP {status}; trying again in {waited} s (1 of 5)" in caplog.messages


def test_a_hub_that_is_busy_while_it_sends_is_asked_again(
    hub: Hub, hub_spec: ModelSpec, store: Store, pauses: list[float]
) -> None:
    answers = iter([None, (429, {"Retry-After": "2"}), (503, {})])  # the first is for the question how large the file is

    class Queue(list[tuple[int, dict[str, str]]]):
        def __bool__(self) -> bool:
            self[:] = [answer for answer in [next(answers, None)] if answer]
            return len(self) > 0

    hub.busy = Queue()
    assert fetch(hub_spec, store).read_bytes() == WEIGHTS
    assert sum(pauses) == 2 + 2


def test_a_hub_that_stays_busy_is_given_up(hub: Hub, hub_spec: ModelSpec, store: Store, pauses: list[float]) -> None:
    hub.fail = 503
    with pytest.raises(SourceError, match=r"tiny\.gguf of .* cannot be fetched: .*503"):
        fetch(hub_spec, store)
    assert len(hub.requests) == 1 + download.TRIES
    assert sum(pauses) == 1 + 2 + 4 + 8 + 16


def test_a_hub_that_wants_too_long_a_wait_is_given_up_at_once(
    hub: Hub, hub_spec: ModelSpec, store: Store, pauses: list[float]
) -> None:
    hub.busy = [(429, {"Retry-After": "3600"})]
    with pytest.raises(SourceError, match=r"cannot be fetched: .*429"):
        fetch(hub_spec, store)
    assert pauses == []


def test_a_connection_that_only_breaks_is_given_up_and_what_came_is_kept(hub: Hub, hub_spec: ModelSpec, store: Store) -> None:
    """Half of what is missing each time, until that is nothing any more."""
    hub.cuts = 1000
    with pytest.raises(SourceError, match=r"tiny\.gguf of .* cannot be fetched: "):
        fetch(hub_spec, store)
    assert partial(store).read_bytes() == WEIGHTS[: partial(store).stat().st_size]
    assert store.path(hub_spec) is None
    hub.cuts, sent = 0, hub.sent
    assert fetch(hub_spec, store).read_bytes() == WEIGHTS
    assert hub.sent == len(WEIGHTS) > sent


def test_what_progress_raises_ends_a_wait(hub: Hub, hub_spec: ModelSpec, store: Store, pauses: list[float]) -> None:
    def stop(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    hub.busy = [(429, {"Retry-After": "60"})]
    with pytest.raises(KeyboardInterrupt):
        fetch(hub_spec, store, stop)
    assert pauses == []


def test_a_killed_process_leaves_what_it_has_for_the_next(hub: Hub, hub_spec: ModelSpec, store: Store, tmp_path: Path) -> None:
    hub.hold = threading.Event()
    with fetching(hub_spec, tmp_path) as process:
        assert process.stdout is not None
        told = 0
        while told < len(WEIGHTS) // 2:
            told = int(process.stdout.readline())
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert store.path(hub_spec) is None
    hub.hold.set()
    assert fetch(hub_spec, store).read_bytes() == WEIGHTS
    assert hub.gets[1][1] == f"bytes={told}-"
    assert hub.sent <= 2 * len(WEIGHTS) - told  # at most what the dead process was still sent


def test_two_processes_fetch_a_model_once(hub: Hub, hub_spec: ModelSpec, store: Store, tmp_path: Path) -> None:
    """The download is held back until the second process says that it waits for the first."""
    hub.hold = threading.Event()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with fetching(hub_spec, tmp_path / "a") as first:
        assert hub.half.wait(60)
        with fetching(hub_spec, tmp_path / "b") as second:
            assert second.stdout is not None
            assert second.stdout.readline() == "another process fetches tiny:hub; waiting for it\n"
            while int(second.stdout.readline()) < len(WEIGHTS) // 2:
                """It tells how far the first one is."""
            hub.hold.set()
            outputs = [process.communicate(timeout=60)[0].split()[-1] for process in (first, second)]
    assert outputs == [str(store.path(hub_spec))] * 2
    assert len(hub.gets) == 1
    assert hub.sent == len(WEIGHTS)


NOW = datetime.datetime(2026, 1, 31, 12, 0, tzinfo=datetime.timezone.utc)


@pytest.mark.parametrize(
    ("failures", "status", "asked", "expected"),
    [
        (1, None, None, 1.0),
        (3, None, None, 4.0),
        (5, 503, None, 16.0),
        (6, 503, None, None),
        (1, 404, None, None),
        (1, 403, 5.0, None),
        (1, 429, 300.0, 300.0),
        (1, 429, 301.0, None),
        (2, 429, 0.0, 0.0),
    ],
)
def test_delay(failures: int, status: int | None, asked: float | None, expected: float | None) -> None:
    assert download.delay(failures, status, asked) == expected


@given(failures=st.integers(1, 50), status=st.none() | st.integers(100, 599), asked=st.none() | st.floats(0, 1e6))
def test_no_wait_is_longer_than_the_longest_and_none_goes_on_for_ever(
    failures: int, status: int | None, asked: float | None
) -> None:
    found = download.delay(failures, status, asked)
    assert found is None or 0 <= found <= download.LONGEST
    assert found is None or failures <= download.TRIES


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"retry-after": "12"}, 12.0),
        ({"retry-after": " 12 "}, 12.0),
        ({"retry-after": "Sat, 31 Jan 2026 12:01:30 GMT"}, 90.0),
        ({"retry-after": "Sat, 31 Jan 2026 11:00:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Sat, 31 Jan 2026 12:01:30"}, None),
        ({"ratelimit": '"api";r=0;t=55'}, 55.0),
        ({"ratelimit": '"api";r=10;t=55'}, None),
        ({"retry-after": "3", "ratelimit": '"api";r=0;t=55'}, 3.0),
    ],
)
def test_retry_after(headers: dict[str, str], expected: float | None) -> None:
    assert download.retry_after(headers, NOW) == expected


def test_a_wait_looks_up_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    paused: list[float] = []
    looks: list[None] = []
    monkeypatch.setattr(download, "pause", paused.append)
    download.wait(1.2, lambda: looks.append(None))
    assert paused == [0.5, 0.5, pytest.approx(0.2)]
    assert len(looks) == 3
