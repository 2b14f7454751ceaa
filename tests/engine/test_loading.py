"""Unfit files are refused with their path and the reason, and leave nothing behind. The real llama.cpp."""

from __future__ import annotations

import logging
import os
import random
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import gguf
import psutil
import pytest

from locallab import hardware
from locallab.engine import TextEngine
from locallab.errors import ConfigError, ModelLoadError
from locallab.settings import MOST, EngineSettings, resolve
from tests.support import tiny_gguf
from tests.support.live_engine import ask, running

ROOT = Path(__file__).parents[2]
PROMPT = [tiny_gguf.BOS, *range(100, 120)]

ABORTING = ("tokenizer.ggml.tokens", "block_count", "head_count_kv", "layer_norm_rms_epsilon")
"""Metadata whose damage can make llama.cpp end the process (GGML_ASSERT): two tokens with one text, no layers or more than
it has room for, so many heads that their size wraps around to the right one, a negative epsilon. A tensor's type can, too:
integers where an operation knows only floats."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny_gguf.write(tmp_path / "llama.gguf", "llama")


def refusal(path: Path, **settings: object) -> str:
    """Return the reason for which `path` is refused; assert that nothing of it is left."""
    defaults = {"context": 256, "threads": 1, "gpu_layers": 0}
    with pytest.raises(ModelLoadError) as caught:
        TextEngine(path, EngineSettings(**{**defaults, **settings}))  # type: ignore[arg-type]
    assert caught.value.path == path
    assert str(caught.value) == f"cannot load {path}: {caught.value.reason}"
    assert not any(path.name in thread.name for thread in threading.enumerate())
    assert not any(mapped.path == str(path) for mapped in psutil.Process().memory_maps())
    return caught.value.reason


def cut(size: int) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, size)


def cut_at(share: float) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, int(path.stat().st_size * share))


def replace(old: bytes, new: bytes) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        data = path.read_bytes()
        assert data.count(old) == 1 and len(old) == len(new)
        path.write_bytes(data.replace(old, new))

    return apply


def into_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


TOKENIZER = b"tokenizer.ggml.model\x08\0\0\0\x05\0\0\0\0\0\0\0"

UNFIT: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, "there is no such file"),
    "directory": (into_directory, "this is not a file"),
    "empty": (cut(0), "this is not a GGUF file"),
    "shorter than the magic": (cut(3), "this is not a GGUF file"),
    "not GGUF": (lambda path: path.write_text("<!doctype html>" * 100), "this is not a GGUF file"),
    "ends in the header": (cut(20), "failed to read header"),
    "ends in the metadata": (cut(100), "failed to read key-value pairs"),
    "ends in the tensor list": (
        lambda path: os.truncate(path, gguf.GGUFReader(path).data_offset - 200),
        "exceeds remaining file size",
    ),
    "ends in the weights": (cut_at(0.5), "corrupted or incomplete"),
    "ends a byte early": (lambda path: os.truncate(path, path.stat().st_size - 1), "corrupted or incomplete"),
    "unknown version": (replace(b"GGUF\x03", b"GGUF\x63"), "version 99"),
    "unknown architecture": (lambda path: tiny_gguf.write(path, "llama", called="hal"), "unknown model architecture: 'hal'"),
    "another architecture": (lambda path: tiny_gguf.write(path, "llama", called="gemma3"), "blk.0.post_attention_norm.weight"),
    "missing tensor": (
        lambda path: tiny_gguf.write(path, "llama", without=["blk.1.ffn_up.weight"]),
        "'blk.1.ffn_up.weight' not found",
    ),
    "unknown vocabulary": (replace(TOKENIZER + b"llama", TOKENIZER + b"ghost"), "unknown tokenizer: 'ghost'"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_an_unfit_file_is_refused(path: Path, name: str) -> None:
    damage, reason = UNFIT[name]
    damage(path)
    assert reason in refusal(path)


def test_a_file_that_ends_anywhere_is_refused(path: Path) -> None:
    """As after a broken download."""
    size = path.stat().st_size
    start_of_data = gguf.GGUFReader(path).data_offset
    for end in sorted({*range(start_of_data, 0, -97), *range(size - 1, start_of_data, -size // 9)}, reverse=True):
        os.truncate(path, end)
        assert refusal(path)


def test_weights_larger_than_memory_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "available_memory", lambda: path.stat().st_size - 1)
    assert "its weights need 0.0 GiB" in refusal(path)


def test_a_pool_larger_than_memory_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "available_memory", lambda: 2 << 20)
    assert "a KV pool of 8192 tokens needs 0.0 GiB" in refusal(path, kv_tokens=8192)
    assert "a KV pool of 8192 tokens" in refusal(path, context=8000)
    with running(path, kv_tokens=2048) as engine:
        assert engine.info.kv_tokens == 2048


def test_a_pool_that_llama_cpp_refuses(path: Path) -> None:
    """Heads of 16 numbers cannot be stored in blocks of 32; the weights, loaded by then, are freed."""
    assert "block size 32" in refusal(path, kv_type="q4_0")


def test_a_refused_file_can_be_mended(path: Path) -> None:
    """A failed load leaves llama.cpp fit for the next one, from the same place."""
    tiny_gguf.write(path, "llama", without=["output_norm.weight"])
    refusal(path)
    tiny_gguf.write(path, "llama")
    with running(path) as engine:
        assert len(ask(engine, PROMPT, 8).tokens) == 8


def test_the_smallest_batch_computes_prompts_of_any_length(path: Path) -> None:
    with running(path, batch=32) as engine:
        assert ask(engine, [3 + i % 100 for i in range(150)], 4).tokens


EDGES: dict[str, list[object]] = {
    "context": [1, 2],
    "kv_tokens": [1],
    "kv_layout": ["streams", "unified"],
    "gpu_layers": [-1, 0, MOST],
    "n_cpu_moe": [0, MOST],
    "main_gpu": [0, MOST],
    "yarn_orig_ctx": [1, MOST],
    "threads": [1, 512],
    "parallel": [1, 192],
    "queue": [0, MOST],
    "batch": [32, 8192],
    "ubatch": [32, 8192],
    "device_sampling": ["on", "off"],
    "step_ms": [1, 600_000],
    "cache_tokens": [0, MOST],
    "cache_ram_mib": [0, MOST],
    "cache_disk_gib": [1e-9, 1_000_000],
}


NAMED = ("kv_layout", "device_sampling", "cache_disk_gib")
"""Those that are no whole numbers."""


@pytest.mark.parametrize("architecture", ["llama", "mamba", "gemma3"])
@pytest.mark.parametrize("name", EDGES)
def test_the_edges_of_each_setting_work(tmp_path: Path, architecture: str, name: str) -> None:
    path = tiny_gguf.write(tmp_path / "model.gguf", architecture)
    for value in EDGES[name]:
        settings = resolve(EngineSettings, ("flags", {"threads": 1, "gpu_layers": 0, "context": 256, name: value}))
        engine = TextEngine(path, settings)
        try:
            if engine.info.context > 2 and settings.queue:
                assert len(ask(engine, PROMPT[:2], 1).tokens) == 1
        finally:
            engine.close()


@pytest.mark.parametrize(("name", "value"), [("kv_tokens", MOST)])
def test_the_largest_context_is_refused_where_it_does_not_fit(path: Path, name: str, value: int) -> None:
    reason = refusal(path, **{name: value})
    assert re.fullmatch(r"a KV pool of [0-9]+ tokens needs [0-9.]+ GiB, .*", reason)


@pytest.mark.parametrize(("name", "value"), [(name, MOST + 1) for name in EDGES if name not in NAMED])
def test_a_number_beyond_the_edge_is_refused_by_its_name(name: str, value: int) -> None:
    for each in (value, -2, 10**400):
        with pytest.raises(ConfigError, match=f"flags: {name}: Expected"):
            resolve(EngineSettings, ("flags", {name: each}))


def test_any_file_name_will_do(path: Path, tmp_path: Path) -> None:
    odd = tmp_path / "Größe 模型 'x' %s.gguf"
    path.rename(odd)
    link = tmp_path / "link"
    link.symlink_to(odd)
    for name in (odd, link):
        with running(name) as engine:
            assert engine.info.path == name
            assert len(ask(engine, PROMPT, 8).tokens) == 8


def test_damaged_metadata_never_crashes(path: Path) -> None:
    """Load many damaged copies in a process of its own: each is refused or, where the damage is harmless, works."""
    code = f"from tests.engine import test_loading; test_loading.load_damaged({str(path)!r}, 150)"
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    child = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert child.returncode == 0, f"after {child.stdout[-200:]}: {child.stderr[-2000:]}"
    outcomes = [line.split()[-1] for line in child.stdout.splitlines()]
    assert len(outcomes) == 150
    assert {"refused", "works"} == set(outcomes)


def load_damaged(name: str, copies: int) -> None:
    """Load copies of a model, each with a wrong byte in its metadata, and print the outcomes."""
    path = Path(name)
    data = path.read_bytes()
    places = damageable(path)
    for seed in range(copies):
        chosen = random.Random(seed)
        damaged = bytearray(data)
        at = chosen.choice(places)
        damaged[at] ^= chosen.randrange(1, 256)
        print(seed, at, damaged[at], end=" ", flush=True)
        path.write_bytes(damaged)
        print(load_or_refuse(path), flush=True)


def load_or_refuse(path: Path) -> str:
    try:
        with running(path, context=64) as engine:
            ask(engine, PROMPT[:3], 4)
            return "works"
    except ModelLoadError:
        return "refused"


def damageable(path: Path) -> list[int]:
    """Return the offsets of all bytes before the weights but those that may abort; of a long list only the beginning."""
    reader = gguf.GGUFReader(path)
    spared: set[int] = set()
    for key, field in reader.fields.items():
        value = field.offset + 8 + len(key) + 4
        end = field.offset + sum(part.nbytes for part in field.parts)
        if key.endswith(ABORTING):
            spared.update(range(value, end))
        elif end - value > 100:
            spared.update(range(value + 100, end))
    for tensor in reader.tensors:
        *_, type_, offset = tensor.field.parts
        end = tensor.field.offset + sum(part.nbytes for part in tensor.field.parts) - offset.nbytes
        spared.update(range(end - type_.nbytes, end))
    return [at for at in range(4, reader.data_offset) if at not in spared]


def test_llama_cpp_logs_to_logging(path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    """Under `locallab.llama`; nothing is written past Python, and a successful load logs no warning."""
    with caplog.at_level(logging.DEBUG), running(path, cache_tokens=256, cache_ram_mib=1) as engine:
        ask(engine, PROMPT, 8)
    lines = [record for record in caplog.records if record.name == "locallab.llama"]
    assert any("llama" in record.message for record in lines)
    assert max(record.levelno for record in lines) < logging.WARNING
    assert capfd.readouterr() == ("", "")


def test_a_failed_load_is_told_once(path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    """By the exception: llama.cpp's own messages are logged for debugging, without a second error."""
    tiny_gguf.write(path, "llama", without=["output_norm.weight"])
    with caplog.at_level(logging.DEBUG):
        reason = refusal(path)
    details = [record for record in caplog.records if "output_norm.weight" in record.message]
    assert "output_norm.weight" in reason
    assert details and {record.name for record in details} == {"locallab.llama"}
    assert max(record.levelno for record in caplog.records) < logging.WARNING
    assert capfd.readouterr() == ("", "")
