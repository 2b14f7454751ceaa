from __future__ import annotations

import contextlib
import errno
import os
import queue
import random
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallab import cache_files
from locallab.cache_files import Entry, fingerprint
from locallab.engine import disk_cache
from locallab.engine.disk_cache import DiskCache, Payload, excess, model_digest
from locallab.engine.record import Record
from tests.support.wait import PATIENCE

ROOT = Path(__file__).parents[2]
MODEL = fingerprint("a model", kv_type="f16")
OTHER = fingerprint("another", kv_type="f16")
WIDTH = 4096
PLENTY = 1 << 30
FILE = cache_files.reserved(4, 4 * WIDTH)
"""Room for a file of four tokens."""


@contextlib.contextmanager
def cache(directory: Path, capacity: int = PLENTY, model: str = MODEL) -> Iterator[DiskCache]:
    with contextlib.closing(DiskCache(directory, capacity, model)) as made:
        yield made


def outcome(call: Callable[[Callable[[Any], None]], None]) -> Any:
    """What a call hands to its `done`."""
    results: queue.SimpleQueue[Any] = queue.SimpleQueue()
    call(results.put)
    return results.get(timeout=PATIENCE)


def rows(tokens: list[int], start: int = 0) -> Any:
    """A state that depends on all tokens up to each one."""
    return np.array([list(np.random.default_rng(tokens[: at + 1]).bytes(WIDTH)) for at in range(start, len(tokens))], np.uint8)


def put(into: DiskCache, tokens: list[int], start: int = 0, owner: str = "") -> Record:
    record = outcome(lambda done: into.write(tokens, start, rows(tokens, start), None, done, owner))
    assert isinstance(record, Record)
    return record


def read(of: DiskCache, record: Record) -> Payload | None:
    found: Payload | None = outcome(lambda done: of.read(record, done))
    return found


def listed(of: DiskCache) -> list[list[int]]:
    return [record.tokens.tolist() for record in of.records()]


def files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file() and path.name != cache_files.ABOUT]


def age(record: Record, seconds: float) -> None:
    """Make a record so old."""
    when = record.path.stat().st_mtime - seconds
    os.utime(record.path, (when, when))


FIXED = np.arange(7, dtype=np.uint8)


@pytest.mark.parametrize(
    ("tokens", "start", "row", "fixed"),
    [
        ([5, 6, 7], 0, rows([5, 6, 7]), None),
        ([5, 6, 7], 1, rows([5, 6, 7], 1), FIXED),
        ([5], 0, None, FIXED),
        ([5, 6], 2, None, FIXED),
        ([5, 6], 0, rows([5, 6])[:, ::2], FIXED[:0]),
    ],
    ids=["rows", "both", "fixed", "fixed of no tokens", "not contiguous and empty"],
)
def test_what_is_written_is_there_for_the_next_process(
    tmp_path: Path, tokens: list[int], start: int, row: Any, fixed: Any
) -> None:
    with cache(tmp_path) as first:
        made = outcome(lambda done: first.write(tokens, start, row, fixed, done))
        assert made.size == made.path.stat().st_size
    with cache(tmp_path) as second:
        [record] = second.records()
        for each in (made, record):
            assert (each.tokens.tolist(), each.start, each.has_rows) == (tokens, start, row is not None)
            assert (each.fixed_bytes, each.size, each.path) == (0 if fixed is None else len(fixed), made.size, made.path)
            found = read(second, each)
            assert found is not None
            for part, expected in zip(found, (row, fixed), strict=True):
                assert (part is None) == (expected is None)
                assert part is None or np.array_equal(part, expected)


def test_fingerprints_and_owners_are_apart(tmp_path: Path) -> None:
    with cache(tmp_path) as mine, cache(tmp_path, model=OTHER) as other:
        put(mine, [1, 2])
        assert (len(mine.records()), other.records()) == (1, [])
        put(mine, [1, 2], owner="ann")
        put(other, [1, 2], owner="ann")
        assert len(files(tmp_path)) == 3 and len({path.parent for path in files(tmp_path)}) == 3
    with cache(tmp_path) as again:
        assert sorted((record.owner, record.tokens.tolist()) for record in again.records()) == [("", [1, 2]), ("ann", [1, 2])]


def test_the_same_part_again_replaces_its_file(tmp_path: Path) -> None:
    with cache(tmp_path) as kept:
        first, second = put(kept, [1, 2]), put(kept, [1, 2])
        assert first.path == second.path and len(files(tmp_path)) == 1


def test_files_are_for_their_user_only(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "cache"
    with cache(directory) as kept:
        record = put(kept, [1, 2])
    found = [directory, record.path.parent, record.path, record.path.parent / cache_files.ABOUT]
    assert [path.stat().st_mode & 0o777 for path in found] == [0o700, 0o700, 0o600, 0o600]


def test_a_directory_that_was_there_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with cache(tmp_path) as kept:
        put(kept, [1, 2])
    assert tmp_path.stat().st_mode & 0o777 == 0o755


@given(st.data())
def test_a_damaged_file_is_removed_and_never_read(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder, cache(Path(folder)) as kept:
        record = outcome(lambda done: kept.write([1, 2, 3], 1, rows([1, 2, 3], 1)[:, :60], FIXED, done))
        whole = record.path.read_bytes()
        at = data.draw(st.integers(0, len(whole) - 1))
        damage = data.draw(st.sampled_from(("flip", "cut", "grow", "empty", "insert")))
        if damage == "flip":
            damaged = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
        else:
            damaged = {"cut": whole[:at], "grow": whole + b"x", "empty": b"", "insert": whole[:at] + b"\0" + whole[at:]}[damage]
        record.path.write_bytes(damaged)
        if data.draw(st.booleans()):  # as the next process finds it: a damaged state is found when it is read
            assert all(read(kept, found) is None for found in kept.records())
        else:
            assert read(kept, record) is None
        assert files(Path(folder)) == []


def test_a_damaged_file_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with cache(tmp_path) as kept:
        record = put(kept, [1, 2])
        record.path.write_bytes(record.path.read_bytes()[:-1])
        assert kept.records() == []
    assert f"removed from the prefix cache: {record.path}: the file has another length than its header says" in caplog.text


def test_a_file_of_another_place_is_removed(tmp_path: Path) -> None:
    with cache(tmp_path) as kept, cache(tmp_path, model=OTHER) as other:
        mine, foreign = put(kept, [1, 2]), put(other, [3, 4])
        foreign.path.rename(mine.path.with_name(foreign.path.name))
        put(kept, [5, 6]).path.rename(mine.path.with_name(mine.path.name.replace("-2-", "-3-")))
        assert listed(kept) == [[1, 2]]
        assert files(tmp_path) == [mine.path]


def test_a_file_that_cannot_be_read_counts_as_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(path: Path) -> Any:
        raise MemoryError

    monkeypatch.setattr(cache_files, "read", fail)
    with cache(tmp_path) as kept:
        record = put(kept, [1, 2])
        assert read(kept, record) is None
        assert record.path.exists() and len(caplog.records) == 1


def test_files_may_vanish(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with cache(tmp_path) as kept:
        record = put(kept, [1, 2])
        cache_files.clear(tmp_path)
        kept.touch(record)
        assert read(kept, record) is None
        assert kept.records() == []
        assert read(kept, put(kept, [1, 2])) is not None
    assert caplog.records == []


def test_a_folder_that_vanishes_during_a_write_costs_that_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with cache(tmp_path) as kept:
        with monkeypatch.context() as patch:
            patch.setattr(cache_files, "make_folder", lambda *arguments: None)
            assert outcome(lambda done: kept.write([1], 0, rows([1]), None, done)) is None
        put(kept, [1])
    assert caplog.records == []


def test_least_recently_used_files_go_first(tmp_path: Path) -> None:
    gone: list[Record] = []
    with cache(tmp_path, 3 * FILE) as kept:
        kept.evicted = gone.append
        first, second, third = (put(kept, [n] * 4) for n in (1, 2, 3))
        for seconds, record in enumerate((third, second, first), 1):
            age(record, seconds)
        kept.touch(first)
        put(kept, [4] * 4)
        assert gone == [second]
        assert listed(kept) == [[3] * 4, [1] * 4, [4] * 4]
        assert sum(path.stat().st_size for path in files(tmp_path)) <= 3 * FILE


def test_what_a_used_file_continues_stays_and_goes_after_it(tmp_path: Path) -> None:
    gone: list[Record] = []
    with cache(tmp_path, 4 * FILE) as kept:
        kept.evicted = gone.append
        root, leaf, aside = put(kept, [1] * 4), put(kept, [1] * 8, 4), put(kept, [2] * 4)
        for seconds, record in enumerate((leaf, aside, root), 1):
            age(record, seconds)
        assert listed(kept) == [[2] * 4, [1] * 8, [1] * 4]
        for n in (3, 4, 5):
            put(kept, [n] * 4)
        assert [record.path for record in gone] == [aside.path, leaf.path]
    with cache(tmp_path, FILE) as kept:
        assert listed(kept) == [[5] * 4], "a smaller capacity holds from the start"


def test_what_does_not_fit_beside_what_it_continues_is_dropped(tmp_path: Path) -> None:
    with cache(tmp_path, 2 * FILE) as kept:
        root = put(kept, [1] * 4)
        tokens = [1] * 10
        assert outcome(lambda done: kept.write(tokens, 4, rows(tokens, 4), None, done)) is None
        assert files(tmp_path) == [root.path]


def test_old_files_of_another_model_go_first(tmp_path: Path) -> None:
    with cache(tmp_path, model=OTHER) as other:
        age(put(other, [1] * 4), 60)
    with cache(tmp_path, FILE) as kept:
        put(kept, [2] * 4)
        assert len(files(tmp_path)) == 1


@given(st.data())
def test_no_file_goes_before_a_newer_one_that_continues_it(data: st.DataObject) -> None:
    ends = {"": 0}
    entries: list[Entry] = []
    for n in range(data.draw(st.integers(0, 12))):
        parent = data.draw(st.sampled_from(sorted(ends)))
        step = data.draw(st.integers(int(not parent), 3))
        prefix = str(n) if step else parent  # a fixed part alone may be of no tokens
        ends[prefix] = ends[parent] + step
        size, used = data.draw(st.integers(1, 5)), data.draw(st.integers(0, 3))
        entries.append(Entry(Path(f"folder/{n}"), parent, prefix, ends[parent], ends[prefix], size, used))
    capacity = data.draw(st.integers(0, 60))
    gone = excess(entries, capacity)
    left = [entry for entry in entries if entry not in gone]
    assert sum(entry.size for entry in left) <= capacity
    assert not gone or sum(entry.size for entry in [*left, gone[-1]]) > capacity
    assert {entry.parent for entry in left} <= {"", *(entry.prefix for entry in left if entry.start < entry.end)}
    alone = [entry for entry in entries if entry.parent == "" and entry.prefix not in {each.parent for each in entries}]
    assert all(a.used <= b.used for a in alone for b in alone if a in gone and b in left)


def test_a_full_disk_is_one_line_and_serving_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with cache(tmp_path) as kept:
        before = put(kept, [1, 2])
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            patch.setattr(disk_cache, "PAUSE", 0.0)
            for n in (3, 4):
                assert outcome(lambda done, n=n: kept.write([n], 0, rows([n]), None, done)) is None
            assert [record.getMessage() for record in caplog.records] == [
                f"{tmp_path}: the prefix cache on disk cannot be written: No space left on device"
            ]
            assert files(tmp_path) == [before.path]
            assert read(kept, before) is not None
        put(kept, [5])
        assert len(caplog.records) == 1


def test_nothing_is_written_for_a_while_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go, tried = threading.Event(), []

    def full(handle: int) -> None:
        tried.append(handle)
        assert go.wait(PATIENCE)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    results: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with cache(tmp_path) as kept:
        for n in (1, 2):
            kept.write([n], 0, rows([n]), None, results.put)
        go.set()
        assert [results.get(timeout=PATIENCE) for _ in range(2)] == [None] * 2
        kept.write([3], 0, rows([3]), None, results.put)
        assert results.get_nowait() is None
    assert len(tried) == 1


def test_a_read_only_disk_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def read_only(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with cache(tmp_path) as kept:
        record = put(kept, [1, 2])
        for name in ("replace", "utime", "unlink", "mkdir"):
            monkeypatch.setattr(os, name, read_only)
        monkeypatch.setattr(disk_cache, "PAUSE", 0.0)
        kept.touch(record)
        kept.capacity = 0
        assert listed(kept) == [[1, 2]]
        kept.capacity = PLENTY
        assert outcome(lambda done: kept.write([3], 0, rows([3]), None, done)) is None
        assert read(kept, record) is not None
        monkeypatch.undo()
    assert len(caplog.records) == 1


def test_a_directory_that_cannot_be_used_is_one_line_and_keeps_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with cache(tmp_path / "file") as kept:
        assert outcome(lambda done: kept.write([1], 0, rows([1]), None, done)) is None
        assert kept.records() == []
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'file'}: the prefix cache on disk cannot be written: File exists"
    ]


def test_a_mistake_of_the_caller_is_logged_and_costs_that_record(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with cache(tmp_path) as kept:
        assert outcome(lambda done: kept.write([1, 2], 0, rows([1]), None, done)) is None
        put(kept, [1, 2])
    assert "rows of other tokens" in caplog.text and len(caplog.records) == 1


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from locallab import cache_files
from locallab.engine.disk_cache import DiskCache

cache_files._replace.__globals__["os"].replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL)
DiskCache(Path(sys.argv[1]), 1 << 30, cache_files.fingerprint("a model", kv_type="f16")).write(
    [1, 2], 0, np.zeros((2, 9), np.uint8), None, print
)
"""


def test_a_process_killed_while_it_writes_leaves_nothing_that_loads(tmp_path: Path) -> None:
    with cache(tmp_path) as kept:
        put(kept, [1]).path.unlink()  # its folder is made
        done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, timeout=PATIENCE)
        assert done.returncode == -signal.SIGKILL
        [left] = files(tmp_path)
        assert kept.records() == []
        assert left.exists(), "it may be another process's that is still writing"
        os.utime(left, (0, 0))
        assert kept.records() == [] and files(tmp_path) == []


def test_two_caches_may_share_a_directory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prompts = [[n % 3] * 4 + [n] * (n % 4) for n in range(12)]
    wrong: list[object] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        with cache(tmp_path, 6 * FILE) as kept:
            for _ in range(60):
                tokens = chance.choice(prompts)
                record = outcome(lambda done, tokens=tokens: kept.write(tokens, 0, rows(tokens), None, done))
                found = kept.records() if chance.random() < 0.2 else [record] if record else []
                for each in found:
                    if chance.random() < 0.1:
                        each.path.unlink(missing_ok=True)
                    kept.touch(each)
                    payload = read(kept, each)
                    if payload is not None and not np.array_equal(payload[0], rows(each.tokens.tolist())):  # type: ignore[arg-type]
                        wrong.append(each)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert wrong == [] and caplog.records == []
    with cache(tmp_path, 6 * FILE) as kept:
        assert len(kept.records()) > 0 and sum(path.stat().st_size for path in files(tmp_path)) <= 6 * FILE


@contextlib.contextmanager
def held_writes(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Hold every write at its end; the event tells that one has come so far."""
    begun, go = threading.Event(), threading.Event()

    def hold(handle: int) -> None:
        begun.set()
        assert go.wait(PATIENCE)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", hold)
        try:
            yield begun
        finally:
            go.set()


def test_what_waits_is_bounded_and_reads_do_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_cache, "WAITING", 5 * WIDTH)
    results: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with cache(tmp_path) as kept:
        before = put(kept, [9])
        with held_writes(monkeypatch) as begun:
            kept.write([1] * 4, 0, rows([1] * 4), None, lambda record: None)
            assert begun.wait(PATIENCE)
            kept.write([2], 0, rows([2]), None, lambda record: None)
            kept.write([3], 0, rows([3]), None, results.put)
            assert results.get_nowait() is None
            assert read(kept, before) is not None
        large = [4] * 9
        while outcome(lambda done: kept.write(large, 0, rows(large), None, done)) is None:
            """Nothing waits once both are written: then one of any size is taken."""
        assert sorted(listed(kept)) == [[1] * 4, [2], large, [9]]


def test_tokens_may_change_once_they_are_handed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = [1, 2]
    with cache(tmp_path) as kept:
        with held_writes(monkeypatch):
            kept.write([7], 0, rows([7]), None, lambda record: None)
            kept.write(tokens, 0, rows(tokens), None, lambda record: None)
            tokens.append(3)
        put(kept, [8])
        assert [1, 2] in listed(kept)


def test_closing_finishes_what_is_being_written_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results: list[object] = []
    kept = DiskCache(tmp_path, PLENTY, MODEL)
    with held_writes(monkeypatch) as begun:
        kept.write([1], 0, rows([1]), None, results.append)
        kept.write([2], 0, rows([2]), None, results.append)
        assert begun.wait(PATIENCE)
        closing = threading.Thread(target=kept.close)
        closing.start()
        while outcome(lambda done: kept.write([3], 0, rows([3]), None, done) if kept._closed else done("open")) == "open":
            """Wait for the other thread."""
        while not kept._writes._shutdown:
            """Wait for it to drop what waits."""
    closing.join(PATIENCE)
    [record] = results
    assert isinstance(record, Record) and files(tmp_path) == [record.path]
    assert read(kept, record) is None
    kept.touch(record)
    kept.close()


def test_the_thread_that_writes_has_a_low_priority(tmp_path: Path) -> None:
    def priority(record: Record | None) -> tuple[int, int]:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id()), threading.get_native_id()

    with cache(tmp_path) as kept:
        own, _ = priority(None)
        found, thread = outcome(lambda done: kept.write([1], 0, rows([1]), None, lambda record: done(priority(record))))
    assert found == min(19, own + disk_cache.NICENESS) or found == disk_cache.NICENESS
    assert thread != threading.get_native_id()


def test_model_digest(tmp_path: Path) -> None:
    path = tmp_path / "model [1].gguf"
    path.write_bytes(b"GGUF" + bytes(3 << 20))
    os.utime(path, ns=(1, 1))
    first = model_digest(path)
    assert (model_digest(path), model_digest(path, "known")) == (first, "known")
    found = {first}
    for at in (0, 3 << 20):
        with path.open("r+b") as file:
            file.seek(at)
            file.write(b"x")
        os.utime(path, ns=(1, 1))
        found.add(model_digest(path))
    os.utime(path, ns=(2, 2))
    found.add(model_digest(path))
    os.truncate(path, 3 << 20)
    os.utime(path, ns=(2, 2))
    found.add(model_digest(path))
    assert len(found) == 5


def test_model_digest_covers_all_shards(tmp_path: Path) -> None:
    first, second = (tmp_path / f"m-0000{n}-of-00002.gguf" for n in (1, 2))
    for path in (first, second, tmp_path / "m-00001-of-00003.gguf"):
        path.write_bytes(b"GGUF")
        os.utime(path, ns=(1, 1))
    before = model_digest(first)
    (tmp_path / "m-00001-of-00003.gguf").write_bytes(b"x")
    assert model_digest(first) == before
    second.write_bytes(b"x")
    assert model_digest(first) != before
