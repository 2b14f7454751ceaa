"""Files that end or hang llama.cpp do so in a process of their own; the verdict is kept."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

import locallab
from locallab import hardware
from locallab.errors import EngineClosed, ModelLoadError
from locallab.models import FileSource, ModelSpec, Registry, Store
from locallab.pool import Pool, trial
from locallab.pool.memory import Memory, MemoryUse, Need, Suited
from locallab.pool.trial import Trials
from locallab.settings import EngineSettings
from tests.support import damaged_gguf, tiny_embedding_gguf, tiny_gguf
from tests.support.damaged_gguf import SHOWN, TRIED

SETTINGS = {"threads": 1, "gpu_layers": 0}


@pytest.fixture
def trials(tmp_path: Path) -> Trials:
    return Trials(tmp_path / "trials")


def suited(path: Path) -> Suited:
    spec = ModelSpec(id="made", source=FileSource(path), description="made")
    return Memory().suit(spec, path, [("flags", SETTINGS)])


def refusal(trials: Trials, path: Path) -> str:
    """Return the reason for which the file is refused, by its header or in its trial."""
    with pytest.raises(ModelLoadError) as caught:
        trials.look(suited(path), None)
        trials.run(suited(path), None)
    assert "\n" not in str(caught.value)
    return caught.value.reason


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    return tiny_gguf.write(tmp_path / "sound.gguf", "llama")


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Let a shell script run instead of each trial."""
    python = folder / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))


def test_what_ends_llama_cpp_ends_a_process_of_its_own(tmp_path: Path, trials: Trials) -> None:
    paths = {
        name: damaged_gguf.write(tmp_path / f"{number}.gguf", model, edit)
        for number, (name, (model, edit, _)) in enumerate(TRIED.items())
    }
    with ThreadPoolExecutor(2) as threads:
        reasons = dict(zip(paths, threads.map(lambda path: refusal(trials, path), paths.values()), strict=True))
    assert {name: TRIED[name][2] in reason for name, reason in reasons.items()} == dict.fromkeys(TRIED, True), reasons


def test_no_damaged_file_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole path of a server, with a file that works at the end."""
    monkeypatch.setenv("LOCALLAB_HOME", str(tmp_path / "home"))
    damaged = {**SHOWN, **{name: TRIED[name] for name in list(TRIED)[:1]}}
    registry = Registry()
    for name, (model, edit, _) in damaged.items():
        path = damaged_gguf.write(tmp_path / f"{name}.gguf", model, edit)
        registry.add("test", ModelSpec(id=name.replace(" ", "-"), source=FileSource(path), description=name))
    good = tiny_gguf.write(tmp_path / "good.gguf", "lfm2")
    registry.add("test", ModelSpec(id="good", source=FileSource(good), description="good"))
    pool = Pool(registry, Store(), [("flags", SETTINGS)])
    try:
        for name, (_, _, words) in damaged.items():
            with pytest.raises(ModelLoadError) as caught:
                pool.load_now(name.replace(" ", "-"))
            assert words in caught.value.reason and "\n" not in str(caught.value)
        assert pool.load_now("good").engine.info.architecture == "lfm2"
    finally:
        pool.close()


def test_a_program_gets_the_error_too(tmp_path: Path) -> None:
    model, edit, words = TRIED["norm of half floats"]
    path = damaged_gguf.write(tmp_path / "damaged.gguf", model, edit)
    with pytest.raises(ModelLoadError, match=r"it ends llama\.cpp") as caught:
        locallab.Engine(str(path), threads=1)
    assert words in str(caught.value)


@pytest.mark.parametrize("model", ["text", "embeddings"])
def test_a_sound_file_is_tried_once(
    tmp_path: Path, trials: Trials, model: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "model.gguf"
    tiny_gguf.write(path, "gpt-oss") if model == "text" else tiny_embedding_gguf.bert(path)
    with caplog.at_level(logging.WARNING):
        trials.run(suited(path), None)
    assert not caplog.records
    monkeypatch.setattr(trial, "_Trial", None)
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(path.read_bytes())
    trials.run(suited(copy), None)
    Trials(tmp_path / "trials").run(suited(path), None)  # another process


def test_a_failed_file_is_refused_before_anything_makes_room(
    sound: Path, tmp_path: Path, trials: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, monkeypatch, "echo '/src/a.cpp:1: GGML_ASSERT(x) failed' >&2; kill -ABRT $$")
    reason = refusal(trials, sound)
    assert reason == "it ends llama.cpp (SIGABRT): a.cpp:1: GGML_ASSERT(x) failed"
    monkeypatch.setattr(trial, "_Trial", None)
    with pytest.raises(ModelLoadError, match=r"it ends llama\.cpp"):
        trials.look(suited(sound), None)
    monkeypatch.setattr(time, "time", lambda: os.stat(sound).st_mtime + 2 * trial.FORGET)
    trials.look(suited(sound), None)  # the reason may have been the machine


def test_another_file_and_another_llama_cpp_are_tried_again(
    sound: Path, tmp_path: Path, trials: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, monkeypatch, "exit 0")
    trials.run(suited(sound), None)
    stand_in(tmp_path, monkeypatch, "kill -SEGV $$")
    trials.run(suited(sound), None)
    with pytest.raises(ModelLoadError, match="SIGSEGV"):
        trials.run(suited(tiny_gguf.write(tmp_path / "other.gguf", "llama", seed=1)), None)
    monkeypatch.setattr(trial, "build_features", lambda: {"llama_cpp_python": "99", "system_info": ""})
    with pytest.raises(ModelLoadError, match="SIGSEGV"):
        trials.run(suited(sound), None)


@pytest.mark.parametrize("script", ["kill -KILL $$", "echo no room; exit 3"])
def test_what_is_not_the_files_fault_is_not_kept(
    sound: Path, tmp_path: Path, trials: Trials, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    stand_in(tmp_path, monkeypatch, script)
    assert refusal(trials, sound) in ("its first load was ended by SIGKILL, perhaps because memory ran out", "no room")
    stand_in(tmp_path, monkeypatch, "exit 0")
    trials.run(suited(sound), None)


@pytest.mark.parametrize("script", [None, "exit 1"])
def test_where_no_trial_is_possible_the_file_is_loaded(
    sound: Path, tmp_path: Path, trials: Trials, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, script: str
) -> None:
    stand_in(tmp_path, monkeypatch, script or "")
    if script is None:
        monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    trials.run(suited(sound), None)
    assert "cannot be tried in another process" in caplog.text


def test_what_never_returns_is_ended(tmp_path: Path, trials: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    path = damaged_gguf.write(tmp_path / "endless.gguf", "gemma3", SHOWN["rope of nothing"][1])
    monkeypatch.setattr(trial, "SECONDS", 2.0)
    with pytest.raises(ModelLoadError, match="had not loaded it after 2 seconds"):
        trials.run(suited(path), None)
    assert not children()


def test_what_takes_all_memory_is_ended(sound: Path, trials: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "available_memory", lambda: 1 << 20)
    chosen = Suited(EngineSettings(**SETTINGS), Need(sound, MemoryUse(), MemoryUse(1 << 20)), "")  # type: ignore[arg-type]
    with pytest.raises(ModelLoadError, match="takes more than 1 MiB of memory to load it"):
        trials.run(chosen, None)
    assert not children()


def test_a_server_that_stops_waits_for_no_trial(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, "exec sleep 100")
    with pytest.raises(EngineClosed):
        Trials(tmp_path / "trials", lambda: True).run(suited(sound), None)
    assert not children()


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "trial" in " ".join(child.cmdline())]


def test_the_shipped_weights_pay_nothing(sound: Path, trials: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = suited(sound)
    monkeypatch.setattr(trial, "_Trial", None)
    monkeypatch.setattr(trial, "shipped_digests", lambda: {"f" * 64})
    for check in (trials.look, trials.run):
        check(chosen, "f" * 64)
    with pytest.raises(TypeError):
        trials.run(chosen, "e" * 64)


def test_the_embedded_model_is_a_shipped_one(model_path: Path) -> None:
    assert trial._digest(suited(model_path), None) in trial.shipped_digests()


@pytest.mark.parametrize("damage", [b"", b"{", b'{"reason": 1, "time": "x"}', b"\xff" * 10])
def test_a_damaged_verdict_is_none(
    sound: Path, tmp_path: Path, trials: Trials, monkeypatch: pytest.MonkeyPatch, damage: bytes
) -> None:
    stand_in(tmp_path, monkeypatch, f"echo . >> {tmp_path}/tried")
    trials.run(suited(sound), None)
    (verdict,) = (tmp_path / "trials").iterdir()
    verdict.write_bytes(damage)
    trials.run(suited(sound), None)
    trials.run(suited(sound), None)
    assert (tmp_path / "tried").read_text() == ".\n.\n"


def test_verdicts_are_bounded_and_private(tmp_path: Path, trials: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, "exit 0")
    monkeypatch.setattr(trial, "MOST", 2)
    for seed in range(4):
        trials.run(suited(tiny_gguf.write(tmp_path / f"{seed}.gguf", "mamba", seed=seed)), None)
    assert len(list((tmp_path / "trials").iterdir())) == 2
    assert (tmp_path / "trials").stat().st_mode & 0o777 == 0o700
    trials.look(suited(tmp_path / "3.gguf"), None)


def test_a_folder_that_cannot_be_written_costs_a_trial(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stand_in(tmp_path, monkeypatch, "exit 0")
    (tmp_path / "trials").write_text("a file")
    Trials(tmp_path / "trials").run(suited(sound), None)
    assert "cannot be kept" in caplog.text


def placed(path: Path, **settings: Any) -> Suited:
    found = suited(path)
    return dataclasses.replace(found, settings=dataclasses.replace(found.settings, **settings))


def test_another_placement_is_tried_again(sound: Path, tmp_path: Path, trials: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, "exit 0")
    trials.run(suited(sound), None)
    stand_in(tmp_path, monkeypatch, "kill -SEGV $$")
    trials.run(placed(sound, mlock=True), None)
    with pytest.raises(ModelLoadError, match="SIGSEGV"):
        trials.run(placed(sound, rope_scale=2.0), None)


def test_a_trial_places_the_model_as_the_load_does(sound: Path, trials: Trials) -> None:
    trials.run(placed(sound, override_tensor=r"blk\.(0|1)\.=CPU,output=CPU", kv_type_v="f32", mmap=False), None)
    with pytest.raises(ModelLoadError, match="there is no device CUDA99; there are"):
        trials.run(placed(sound, override_tensor="blk=CUDA99"), None)
