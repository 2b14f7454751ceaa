"""What a GPU computes is what a CPU computes, however layers and cache are placed. Without a GPU, both sides are the CPU."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
import pytest

from locallab.engine import TextEngine, llama
from locallab.engine.batch import Batch
from locallab.engine.context import Context
from locallab.errors import ModelLoadError
from locallab.settings import MOST, EngineSettings
from tests.support.live_engine import ask, check, running, start

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from gpulib import random_model
from gpulib.measure import ON_DEVICE

pytestmark = pytest.mark.gpu

PLACE = -1 if llama.supports_gpu() else 0
"""Layers on the GPU if there is one."""

NOISE = 0.02
"""Largest difference of two logits that are equal but for rounding, as a share of the range of all: 8 bits a weight, and each
device sums in an order of its own."""

N = 100

OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")
OVERCOMMITS = OVERCOMMIT.exists() and OVERCOMMIT.read_text().strip() == "1"

Logits = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model.write(tmp_path_factory.mktemp("models") / "tiny.gguf", random_model.SHAPES["tiny"])


class Rig:
    """A model with a context of four sequences."""

    def __init__(self, path: Path, gpu_layers: int, **options: Any) -> None:
        self.model = llama.Model(path, gpu_layers)
        settings = {"n_ctx": 4 * 256, "n_batch": 512, "n_sequences": 4, "threads": 1, "kv_type": "f16", **options}
        self.context = Context(self.model, **settings)
        self._batch = Batch(512)

    def prefill(self, *sequences: int, end: int = N) -> Logits:
        """Compute one text in each of these sequences; return the logits of their last tokens."""
        n = len(sequences)
        tokens = [self.token(position, sequence) for sequence in sequences for position in range(end)]
        ids = [sequence for sequence in sequences for _ in range(end)]
        return self._decode(tokens, [*range(end)] * n, ids, ([0] * (end - 1) + [1]) * n, n)

    def step(self, *sequences: int, at: int = N) -> Logits:
        """Compute one more token of each."""
        n = len(sequences)
        return self._decode([self.token(at, sequence) for sequence in sequences], [at] * n, sequences, [1] * n, n)

    def token(self, position: int, sequence: int) -> int:
        return (7 * position + 11 * sequence + 5) % self.model.n_vocab

    def close(self) -> None:
        self.context.close()
        self.model.close()

    def _decode(
        self, tokens: Sequence[int], positions: Sequence[int], ids: Sequence[int], outputs: Sequence[int], n: int
    ) -> Logits:
        self._batch.fill(tokens, positions, ids, outputs)
        assert self.context.decode(self._batch) == 0
        return self.context.logits()[:n].copy()


@contextlib.contextmanager
def rig(path: Path, gpu_layers: int = PLACE, **options: Any) -> Iterator[Rig]:
    made = Rig(path, gpu_layers, **options)
    try:
        yield made
    finally:
        made.close()


def same(ours: Logits, theirs: Logits) -> None:
    assert ours.shape == theirs.shape and np.isfinite(ours).all()
    assert np.abs(ours - theirs).max() < NOISE * np.ptp(theirs)


@pytest.fixture(scope="module")
def expected(path: Path) -> tuple[Logits, Logits]:
    """The logits of a CPU: of a prompt in each of four sequences, and of the next step."""
    with rig(path, 0, unified=False) as cpu:
        return cpu.prefill(0, 1, 2, 3), cpu.step(0, 1, 2, 3)


def test_the_texts_differ(expected: tuple[Logits, Logits]) -> None:
    """Else the other tests could compare anything."""
    for logits in expected:
        differences = [np.abs(logits[one] - logits[other]).max() for one in range(4) for other in range(one)]
        assert min(differences) > 3 * NOISE * np.ptp(logits)


@pytest.mark.parametrize("unified", [True, False])
@pytest.mark.parametrize("n_ubatch", [512, 64])
def test_logits_are_those_of_the_cpu(path: Path, expected: tuple[Logits, Logits], unified: bool, n_ubatch: int) -> None:
    with rig(path, unified=unified, n_ubatch=n_ubatch) as there:
        same(there.prefill(0, 1, 2, 3), expected[0])
        same(there.step(0, 1, 2, 3), expected[1])


@pytest.mark.parametrize("layers", [1, 2])
def test_some_layers_on_the_gpu(path: Path, expected: tuple[Logits, Logits], layers: int) -> None:
    with rig(path, layers if PLACE else 0, unified=False) as there:
        same(there.prefill(0, 1, 2, 3), expected[0])
        same(there.step(0, 1, 2, 3), expected[1])


@pytest.mark.parametrize("unified", [True, False])
def test_a_state_goes_to_the_host_and_back(path: Path, expected: tuple[Logits, Logits], unified: bool) -> None:
    with rig(path, unified=unified) as there:
        there.prefill(0, 1, 2, 3)
        there.context.learn_format(N, True)
        rows, fixed = there.context.save(2, 0, N)
        there.context.clear()
        assert there.context.restore(0, [rows], fixed, N)
        there.prefill(1)
        text = there._decode([there.token(N, 2), there.token(N, 1)], [N, N], [0, 1], [1, 1], 2)
        same(text, expected[1][[2, 1]])


@pytest.mark.parametrize("unified", [True, False])
def test_a_state_moves_on_the_device(path: Path, expected: tuple[Logits, Logits], unified: bool) -> None:
    with rig(path, unified=unified) as there:
        there.prefill(0, 1)
        handle = there.context.handle
        state = (ctypes.c_uint8 * llama_cpp.llama_state_seq_get_size_ext(handle, 1, ON_DEVICE))()
        assert llama_cpp.llama_state_seq_get_data_ext(handle, state, len(state), 1, ON_DEVICE)
        assert llama_cpp.llama_state_seq_set_data_ext(handle, state, len(state), 3, ON_DEVICE)
        assert there.context.last_position(3) == N - 1
        text = there._decode([there.token(N, 0), there.token(N, 1)], [N, N], [0, 3], [1, 1], 2)
        same(text, expected[1][:2])


@pytest.mark.parametrize("layout", ["streams", "unified"])
@pytest.mark.parametrize("sampling", ["on", "off"])
def test_answers_are_those_of_the_cpu(path: Path, layout: str, sampling: str) -> None:
    """A prefix of the first is shared, from host RAM in streams; what does not fit waits."""
    options = {"gpu_layers": PLACE, "kv_layout": layout, "device_sampling": sampling, "cache_ram_mib": 16}
    prompts = [[1, *range(40, 100), index, 7] for index in range(6)]
    with running(path, **options) as engine:
        answers = [ask(engine, prompts[0], 8), *(start(engine, prompt, 8) for prompt in prompts[1:])]
        assert all(len(answer.ended().tokens) == 8 for answer in answers)
        assert max(answer.cached for answer in answers) >= 60
    for prompt, answer in zip(prompts[:2], answers, strict=False):
        check(path, prompt, answer.tokens)


def test_a_cache_that_does_not_fit_is_a_clear_error(path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"a KV pool of \d+ tokens needs [\d.]+ GiB, [\d.]+ GiB are free; set a smaller"):
        TextEngine(path, EngineSettings(gpu_layers=PLACE, kv_tokens=MOST // 2, context=256, parallel=1))


@pytest.mark.skipif(not PLACE and OVERCOMMITS, reason="this system promises any memory, and kills who uses it")
def test_a_context_that_cannot_be_allocated_is_a_clear_error(tmp_path: Path) -> None:
    """As when another program takes the memory after it was measured. 128 KiB a token: half a TiB with few cells."""
    deep = random_model.Shape(layers=64, embed=256, heads=4, kv_heads=4, feed_forward=32, vocabulary=512)
    model = llama.Model(random_model.write(tmp_path / "deep.gguf", deep), PLACE)
    with contextlib.closing(model), pytest.raises(ModelLoadError, match=r"deep\.gguf.*(alloc|memory|buffer)"):
        Context(model, n_ctx=1 << 22, n_batch=512, n_sequences=1, threads=1, kv_type="f32")
