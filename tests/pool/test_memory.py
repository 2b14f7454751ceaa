from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

import locallab
from locallab import hardware
from locallab.errors import ConfigError, ModelLoadError
from locallab.fit.machine import GPU_MARGIN
from locallab.models import FileSource, ModelSpec, Registry, Store, gguf
from locallab.pool import Pool
from locallab.pool.memory import NO_MEMORY, Layers, Memory, MemoryUse, Need, Reading, Suited
from locallab.settings import EngineSettings
from tests.support import tiny_gguf

ROOT = Path(__file__).parents[2]
MIB = 1 << 20


def test_memory_really_returns(model_path: Path) -> None:
    """In a process of its own, with the real model: before, loaded, after, three times in a row."""
    script = ROOT / "tests/support/memory.py"
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script, model_path], env=environ, capture_output=True, text=True, check=True)
    turns = json.loads(done.stdout)
    first = turns[0][0]
    for before, loaded, after, measured in turns:
        took = loaded - before
        assert took > 150 * MIB, "this model's weights and KV pool take more"
        assert after - first < took / 5
        assert took / 2 < measured < 3 * took / 2
    assert len(turns) == 3


def test_weights_in_use_are_no_room(tmp_path: Path) -> None:
    """The system counts mapped files as memory it can have back."""
    file = tmp_path / "weights"
    file.write_bytes(bytes(64 * MIB))
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    descriptor = os.open(file, os.O_RDONLY)
    before = psutil.Process().memory_info().shared
    populated = 0x1 | 0x8000  # MAP_SHARED | MAP_POPULATE
    address = libc.mmap(None, 64 * MIB, 0x1, populated, descriptor, 0)
    os.close(descriptor)
    try:
        mapped = psutil.Process().memory_info().shared
        assert mapped - before >= 60 * MIB
        assert Memory().room().ram <= hardware.memory()["available_bytes"] - mapped + 32 * MIB
    finally:
        libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(64 * MIB))


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return tiny_gguf.write(tmp_path / "tiny.gguf", "llama")


def spec(**more: Any) -> ModelSpec:
    return ModelSpec(id="x", source=FileSource(Path("/x.gguf")), description="made", **more)


class Roomy(Memory):
    """So many free bytes of RAM; the GPUs are as the test says."""

    def __init__(self, ram: int, gpu: bool = False) -> None:
        super().__init__(gpu)
        self._ram = ram

    def room(self) -> MemoryUse:
        return MemoryUse(self._ram, super().room().vram)


def test_the_engine_gets_what_was_chosen_and_what_is_fixed(tiny: Path) -> None:
    layers = [("--parallel", {"parallel": 3}), ("--step-ms", {"step_ms": 7})]
    suited = Roomy(2 << 30).suit(spec(context=400, settings={"kv_type": "f32"}), tiny, layers)
    found = suited.settings
    assert (found.context, found.kv_type, found.parallel, found.step_ms) == (400, "f32", 3, 7)
    assert found.kv_tokens and found.kv_tokens >= 3 * 400
    assert suited.reason.startswith("on the CPU, context 400, KV f32 in 3 streams, 3 requests at once: takes ")


def test_the_context_that_an_entry_wants_is_lowered_where_it_does_not_fit(tiny: Path) -> None:
    wanted = spec(context=1 << 20)
    assert Roomy(4 << 30).suit(wanted, tiny, ()).settings.context == 1 << 20
    lowered = Roomy(400 * MIB).suit(wanted, tiny, ()).settings.context
    assert lowered and lowered < 1 << 20
    with pytest.raises(ModelLoadError, match="does not fit: even on the CPU, context 1,048,576"):
        Roomy(400 * MIB).suit(wanted, tiny, [("--context", {"context": 1 << 20})])


def test_what_others_hold_counts_as_free_when_it_can_be_given_back(tiny: Path) -> None:
    with pytest.raises(ModelLoadError, match="does not fit"):
        Roomy(MIB).suit(spec(), tiny, ())
    assert Roomy(MIB).suit(spec(), tiny, (), MemoryUse(2 << 30)).need.path == tiny


def test_where_it_is_likely_to_fit_it_fits(tiny: Path) -> None:
    need = Roomy(64 << 30).suit(spec(context=4096), tiny, ()).need
    again = Roomy(need.likely.ram).suit(spec(context=4096), tiny, ())
    assert again.settings.context == 4096 and again.need == need
    assert need.least.ram <= tiny.stat().st_size < need.likely.ram


def test_a_file_that_cannot_be_read_is_left_to_the_engine(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + bytes(10 * MIB))
    suited = Roomy(2 << 30).suit(spec(context=300), path, [("--parallel", {"parallel": 3})])
    assert suited.settings == EngineSettings(context=300, parallel=3)
    assert suited.need.least.ram == pytest.approx(10 * MIB, rel=0.01)
    assert Roomy(MIB).suit(spec(), path, ()).settings == EngineSettings()


class Counting(Roomy):
    """Memory whose free RAM changes once, when the model has been fitted to it; keeps the outcomes of `suit`."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__(before)
        self._after = after
        self.suited: list[Suited] = []

    def suit(
        self,
        spec: ModelSpec,
        path: Path,
        layers: Layers,
        held: MemoryUse = NO_MEMORY,
        header: gguf.Header | None = None,
        draft: Path | None = None,
        mmproj: Path | None = None,
    ) -> Suited:
        self.suited.append(super().suit(spec, path, layers, held, header, draft, mmproj))
        self._ram = self._after
        return self.suited[-1]


@pytest.mark.parametrize(
    ("before", "after", "fits"),
    [
        (4 << 30, 4 << 30, 1),
        (4 << 30, 8 << 30, 1),
        (4 << 30, 400 * MIB, 2),
        (400 * MIB, 4 << 30, 2),
    ],
    ids=["the same memory", "more than it wants", "less than it wants", "at last enough"],
)
def test_one_load_reads_the_header_once_and_fits_once(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, before: int, after: int, fits: int
) -> None:
    """A second fit, by the same header, is made only where the memory that is free by then makes a difference."""
    reads: list[Path] = []
    read = gguf.read
    monkeypatch.setattr(gguf, "read", lambda path: reads.append(path) or read(path))
    memory, registry = Counting(before, after), Registry()
    registry.add("a test", ModelSpec(id="x", source=FileSource(tiny), description="made", context=1 << 20))
    flags = {"threads": 1, "gpu_layers": 0, "parallel": 1}
    pool = Pool(registry, Store(tiny.parent / "store"), [("flags", flags)], memory=memory)
    try:
        loaded = pool.load_now("x")
    finally:
        pool.close()
    assert (reads, len(memory.suited)) == ([tiny], fits)
    settings = memory.suited[-1].settings
    assert loaded.engine.info.kv_tokens == settings.kv_tokens
    assert (settings.context == 1 << 20) == (after >= 4 << 30)


GPU = {"name": "a GPU", "total_bytes": 16 << 30, "free_bytes": 10 << 30}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    gpus: list[dict[str, Any]] = [dict(GPU), dict(GPU)]
    monkeypatch.setattr(hardware, "gpus", lambda: gpus)
    monkeypatch.setattr(hardware, "own_vram", lambda: None)
    return gpus


def test_need_on_a_gpu(gpu: list[dict[str, Any]], tiny: Path) -> None:
    memory = Roomy(8 << 30, gpu=True)

    def need(**flags: int) -> Need:
        return memory.suit(spec(), tiny, [("flags", flags)]).need

    everything, half, none = need(), need(gpu_layers=3), need(gpu_layers=0)
    assert everything.least.vram > everything.least.ram > 0 == none.least.vram
    assert everything.likely.vram > half.likely.vram > 2 * GPU_MARGIN > 0 == none.likely.vram
    assert half.least.vram < everything.least.vram
    assert everything.least.ram + everything.least.vram == none.least.ram
    assert memory.room().vram == 20 << 30


def test_what_others_hold_on_the_gpus_is_theirs_to_give_back(gpu: list[dict[str, Any]], tiny: Path) -> None:
    for each in gpu:
        each["free_bytes"] = 0
    memory = Roomy(8 << 30, gpu=True)
    assert memory.suit(spec(), tiny, ()).settings.gpu_layers == 0
    assert memory.suit(spec(), tiny, (), MemoryUse(vram=4 << 30)).settings.gpu_layers == -1


def test_a_gpu_without_memory_of_its_own_counts_as_ram(gpu: list[dict[str, Any]], tiny: Path) -> None:
    for each in gpu:
        each["free_bytes"] = each["total_bytes"] = None
    memory = Memory(gpu=True)
    assert not memory.gpu and memory.room().vram == 0 and memory.reading().device == 0
    suited = memory.suit(spec(), tiny, ())
    assert suited.settings.gpu_layers == -1
    assert suited.need.least.vram == suited.need.likely.vram == 0 < suited.need.least.ram


def test_readings(gpu: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver's own figure for this process counts, if it has one; else what the GPUs hold more than before."""
    memory = Memory(gpu=True)
    before = memory.reading()
    gpu[1]["free_bytes"] -= 3 << 30
    assert memory.reading().since(before).vram == 3 << 30
    monkeypatch.setattr(hardware, "own_vram", lambda: 2 << 30)
    assert memory.reading().since(before).vram == 2 << 30
    assert Reading(5, own=7).since(Reading(9, own=3)) == MemoryUse(0, 4)
    assert Reading(5, device=7).since(Reading(1, device=9)) == MemoryUse(4, 0)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"n_cpu_moe": 3}, "n_cpu_moe: tiny.gguf has no experts"),
        ({"override_tensor": "experts=CPU"}, "override_tensor: 'experts' matches no tensor of tiny.gguf"),
        ({"override_tensor": "blk=CUDA99"}, "override_tensor: there is no device CUDA99; there are "),
        ({"kv_type_v": "q8_0"}, "kv_type_v: q8_0 stores 32 numbers in a block, and a head of tiny.gguf has 16"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_cannot_be_had_is_refused_before_a_load(tiny: Path, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(reason)):
        Roomy(2 << 30).suit(spec(settings=settings), tiny, ())
    with pytest.raises(ConfigError, match=re.escape(reason)):
        locallab.Engine(str(tiny), **settings)


def test_devices_are_checked_for_a_file_without_a_header(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + bytes(MIB))
    with pytest.raises(ConfigError, match="there is no device CUDA99"):
        Roomy(2 << 30).suit(spec(), path, [("flags", {"override_tensor": "blk=CUDA99"})])
