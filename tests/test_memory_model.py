"""The layouts of the KV cache that the engine allocates and `fit` predicts with."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallab.memory_model import (
    CACHED_SEQUENCES,
    ENOUGH_CPU,
    ENOUGH_GPU,
    MAX_SEQUENCES,
    KvCache,
    default_contexts,
    kv_cache,
    kv_layout,
    sequence_ids,
    ubatches,
    wanted_layout,
    whole_cells,
    windowed,
)
from locallab.settings import KvLayout, Layout

CHOICES: dict[str, tuple[int, int, int, bool, Layout]] = {
    "a context for each request": (4 * 8192, 8192, 4, False, "streams"),
    "a token too few": (4 * 8192 - 1, 8192, 4, False, "unified"),
    "one request": (8192, 8192, 1, False, "streams"),
    "less than a context": (4096, 8192, 1, False, "unified"),
    "many requests, enough for a CPU": (ENOUGH_CPU * 8192, 8192, 64, False, "streams"),
    "many requests, too few for a GPU": (ENOUGH_CPU * 8192, 8192, 64, True, "unified"),
    "many requests, enough for a GPU": (ENOUGH_GPU * 8192, 8192, 64, True, "streams"),
    "few requests on a GPU": (3 * 8192, 8192, 3, True, "streams"),
    "a long context": (32768, 32768, 8, False, "unified"),
    "a short context": (16384, 512, 32, False, "streams"),
    "contexts that fill their blocks in part": (4096, 400, 8, False, "streams"),
    "a block too many for each": (4096, 600, 8, False, "unified"),
}


@pytest.mark.parametrize(("cells", "context", "parallel", "on_gpu", "expected"), CHOICES.values(), ids=CHOICES)
def test_streams_are_chosen_where_enough_contexts_fit(
    cells: int, context: int, parallel: int, on_gpu: bool, expected: Layout
) -> None:
    assert kv_layout("auto", cells, context, parallel, on_gpu) == expected
    assert kv_layout("streams", cells, context, parallel, on_gpu) == "streams"
    assert kv_layout("unified", cells, context, parallel, on_gpu) == "unified"


@pytest.mark.parametrize(
    ("cache", "expected"),
    [
        (kv_cache("auto", 65536, 8192, 64, False, False), KvCache("streams", 65536, 8, 8)),
        (kv_cache("auto", 65536, 8192, 64, True, False), KvCache("streams", 65536, 8, 8)),
        (kv_cache("auto", 16384, 8192, 64, False, False), KvCache("unified", 16384, 64, 128)),
        (kv_cache("unified", 16000, 8192, 4, True, False), KvCache("unified", 16128, 4, 8)),
        (kv_cache("streams", 20000, 4096, 64, False, False), KvCache("streams", 4 * 5120, 4, 4)),
        (kv_cache("streams", 4096, 300, 64, False, False), KvCache("streams", 4096, 8, 8)),
        (kv_cache("streams", 4096, 8192, 64, False, False), KvCache("streams", 4096, 1, 1)),
    ],
)
def test_a_stream_holds_a_whole_context(cache: KvCache, expected: KvCache) -> None:
    assert cache == expected


@given(
    st.sampled_from(["auto", "streams", "unified"]),
    st.integers(1, 1 << 20),
    st.integers(1, 1 << 17),
    st.integers(1, 192),
    st.booleans(),
    st.booleans(),
)
def test_a_cache_holds_what_was_asked_for(
    wanted: KvLayout, tokens: int, context: int, parallel: int, keeps_state: bool, on_gpu: bool
) -> None:
    cache = kv_cache(wanted, tokens, context, parallel, keeps_state, on_gpu)
    assert cache.cells >= tokens - 256 * (cache.streams - 1)
    assert cache.cells < tokens + 256 * cache.streams
    assert cache.cells % (256 * cache.streams) == 0
    assert 1 <= cache.parallel <= min(parallel, cache.sequences)
    assert cache.sequences <= MAX_SEQUENCES
    assert cache.cells // cache.streams >= min(context, tokens)
    assert 0 < cache.window_cells(512, 2048) <= cache.cells


@pytest.mark.parametrize(
    ("cache", "ubatch", "expected"),
    [
        (KvCache("streams", 65536, 8, 8), 512, 8 * 1024),
        (KvCache("streams", 65536, 8, 8), 32, 8 * 768),
        (KvCache("streams", 8 * 768, 8, 8), 2048, 8 * 768),
        (KvCache("unified", 65536, 64, 128), 2048, 65536),
        (KvCache("unified", 65536, 4, 68), 512, 512 * 68 + 512),
        (KvCache("streams", 65536, 8, 8), 2048, 8 * 2560),
    ],
)
def test_a_layer_with_a_window_keeps_what_it_and_a_step_need(cache: KvCache, ubatch: int, expected: int) -> None:
    assert cache.window_cells(512, ubatch) == expected


@pytest.mark.parametrize(
    ("batch", "gpus", "partial", "expected"),
    [
        pytest.param(2048, 0, True, (512,), id="a CPU"),
        pytest.param(100, 0, True, (100,), id="small steps on a CPU"),
        pytest.param(2048, 1, False, (2048, 1024, 512), id="a GPU"),
        pytest.param(8192, 1, False, (2048, 1024, 512), id="long steps on a GPU"),
        pytest.param(700, 1, False, (700, 512), id="short steps on a GPU"),
        pytest.param(64, 1, False, (64,), id="short steps"),
        pytest.param(2048, 2, False, (512,), id="GPUs that compute parts of a step one behind the other"),
        pytest.param(8192, 1, True, (8192, 2048, 1024, 512), id="weights that cross the bus"),
        pytest.param(2048, 2, True, (2048, 1024, 512), id="weights that cross the bus to several"),
    ],
)
def test_how_many_tokens_to_compute_in_one_go(batch: int, gpus: int, partial: bool, expected: tuple[int, ...]) -> None:
    assert ubatches(batch, gpus, partial) == expected


@pytest.mark.parametrize(
    ("architecture", "layers", "period", "expected"),
    [
        ("gemma3", 7, None, [1, 1, 1, 1, 1, 0, 1]),
        ("gemma3", 4, 2, [1, 0, 1, 0]),
        ("smallthinker", 5, None, [0, 1, 1, 1, 0]),
        ("exaone4", 30, None, [0] * 30),
        ("exaone4", 64, None, [1, 1, 1, 0] * 16),
        ("gemma4", 3, None, [0, 0, 0]),
    ],
)
def test_layers_with_a_window(architecture: str, layers: int, period: int | None, expected: list[int]) -> None:
    assert windowed(architecture, layers, period) == tuple(map(bool, expected))


@pytest.mark.parametrize(
    ("context", "parallel", "expected"), [(8192, 64, 8), (131072, 64, 8), (512, 64, 32), (1, 192, 192), (8192, 3, 3)]
)
def test_contexts_by_default(context: int, parallel: int, expected: int) -> None:
    assert default_contexts(context, parallel) == expected


@given(st.integers(1, 1 << 20))
def test_cells_are_rounded_up_to_what_llama_cpp_allocates(tokens: int) -> None:
    cells = whole_cells(tokens)
    assert cells % 256 == 0 and tokens <= cells < tokens + 256


@pytest.mark.parametrize(
    ("parallel", "keeps_state", "expected"),
    [(1, False, 65), (64, False, 128), (192, False, 256), (1, True, 2), (16, True, 32), (64, True, 128), (192, True, 256)],
)
def test_finished_sequences_with_states_are_no_more_than_running_ones(parallel: int, keeps_state: bool, expected: int) -> None:
    assert sequence_ids(parallel, "unified", keeps_state) == expected
    assert sequence_ids(parallel, "streams", keeps_state) == parallel


@given(st.integers(1, MAX_SEQUENCES), st.sampled_from(["unified", "streams"]), st.booleans())
def test_ids_are_within_llama_cpp_s(parallel: int, layout: str, keeps_state: bool) -> None:
    assert parallel <= sequence_ids(parallel, layout, keeps_state) <= min(MAX_SEQUENCES, parallel + CACHED_SEQUENCES)


@pytest.mark.parametrize(
    ("wanted", "cache_ram_mib", "parallel", "expected"),
    [
        ("auto", 512, 8, "auto"),
        ("auto", 0, 8, "unified"),
        ("auto", 0, 1, "auto"),
        ("streams", 0, 8, "streams"),
        ("unified", 512, 8, "unified"),
    ],
)
def test_streams_need_host_ram_to_share(wanted: KvLayout, cache_ram_mib: int, parallel: int, expected: str) -> None:
    assert wanted_layout(wanted, cache_ram_mib, parallel) == expected
