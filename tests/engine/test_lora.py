"""Adapters on real contexts: the logits of a model with an adapter are those of a model into which it is merged."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import llama_cpp
import numpy as np
import pytest

from locallab.engine import Caller, TextEngine
from locallab.engine.adapters import AdapterFile
from locallab.engine.batch import Batch
from locallab.engine.context import Context
from locallab.engine.llama import Model
from locallab.errors import InvalidField, ModelLoadError
from locallab.models import gguf as headers
from locallab.settings import EngineSettings
from tests.support import tiny_gguf, tiny_lora
from tests.support.live_engine import Answer, agree, ask, check, running, start
from tests.support.stepped_engine import Request, SteppedEngine
from tests.support.wait import until

KINDS = ("llama", "gemma3", "lfm2", "mamba", "gpt-oss", "qwen35")
TOKENS = [tiny_gguf.FIRST_PLAIN + (7 * i + i * i) % 40 for i in range(90)]
each_kind = pytest.mark.parametrize("kind", KINDS)
each_layout = pytest.mark.parametrize("layout", ["unified", "streams"])

Made = tuple[Path, list[AdapterFile]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """Return a model of a kind, and two adapters for it."""
    folder = tmp_path_factory.mktemp("lora")

    def make(kind: str) -> Made:
        base = folder / f"{kind}.gguf"
        if not base.exists():
            tiny_gguf.write(base, kind)
        files = [folder / f"{kind}-{name}.gguf" for name in ("one", "two")]
        for seed, file in enumerate(files):
            if not file.exists():
                tiny_lora.write(file, base, seed=seed)
        return base, [AdapterFile(name, file) for name, file in zip(("one", "two"), files, strict=True)]

    return make


def merged(path: Path, kind: str, base: Path, scales: Sequence[float]) -> Path:
    """Write the model with its adapters, whose seeds are their ids, in its weights."""
    plus: dict[str, np.ndarray] = {}
    header = headers.read(base)
    for seed, scale in enumerate(scales):
        found = dict(tiny_lora.matrices(header, seed, tiny_lora.RANK))
        for name in {each.rpartition(".")[0] for each in found}:
            delta = 2 * scale * found[f"{name}.lora_b"] @ found[f"{name}.lora_a"]  # alpha is twice the rank
            plus[name] = plus.get(name, np.float32(0)) + delta
    return tiny_gguf.write(path, kind, plus=plus)


@each_kind
@pytest.mark.parametrize("scales", [(1.0,), (-0.5,), (0.5, 0.75)], ids=str)
def test_an_adapter_does_what_the_merged_weights_do(
    kind: str, scales: tuple[float, ...], made: Callable[[str], Made], tmp_path: Path
) -> None:
    base, files = made(kind)
    lora = tuple(enumerate(scales))
    whole = merged(tmp_path / "merged.gguf", kind, base, scales)
    with running(base, files) as engine, running(whole) as other:
        for prompt in (TOKENS[:1], TOKENS[:33], TOKENS):
            agree(ask(engine, prompt, 12, lora=lora, logprobs=0), ask(other, prompt, 12, logprobs=0))
        alone = ask(engine, TOKENS, 12, logprobs=0)
    with running(base) as plain:
        agree(alone, ask(plain, TOKENS, 12, logprobs=0))
    assert alone.tokens != ask_once(whole), "the adapter changes nothing"


def ask_once(path: Path) -> list[int]:
    with running(path) as engine:
        return ask(engine, TOKENS, 12).tokens


def test_the_logits_are_those_of_a_context_of_its_own(made: Callable[[str], Made]) -> None:
    """By the calls of llama.cpp's own server: load, make the context, set the adapters, decode."""
    base, files = made("llama")
    with running(base, files) as engine:
        answer = ask(engine, TOKENS[:40], 8, lora=((1, 0.5),), logprobs=0)
    expected = logits(base, files[1].path, 0.5, TOKENS[:40] + answer.tokens[:-1])[-8:]
    for row, told in zip(expected, answer.logprobs, strict=True):
        assert int(row.argmax()) == told.token
        assert abs(float(row[told.token] - np.log(np.exp(row - row.max()).sum()) - row.max()) - told.logprob) < 0.01


def logits(base: Path, adapter: Path, scale: float, tokens: Sequence[int]) -> np.ndarray:
    with contextlib.ExitStack() as native:
        model = Model(base, 0)
        native.callback(model.close)
        handle = llama_cpp.llama_adapter_lora_init(model.handle, str(adapter).encode())
        context = Context(model, n_ctx=256, n_batch=256, n_sequences=256, threads=1, kv_type="f16")
        native.callback(context.close)
        handles, scales = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(handle), (llama_cpp.llama_cpp.ctypes.c_float * 1)(scale)
        assert llama_cpp.llama_set_adapters_lora(context.handle, handles, 1, scales) == 0
        batch = Batch(256)
        batch.fill(list(tokens), range(len(tokens)), [0] * len(tokens), [1] * len(tokens))
        assert context.decode(batch) == 0
        return context.logits()[: len(tokens)].copy()


@each_layout
@pytest.mark.parametrize("kind", ["llama", "gemma3", "lfm2"])
def test_whoever_else_is_computed_each_gets_the_answer_of_its_adapters(
    kind: str, layout: str, made: Callable[[str], Made]
) -> None:
    base, files = made(kind)
    chance = random.Random(kind + layout)
    settings = {"kv_layout": layout, "kv_tokens": 1024, "cache_ram_mib": 1, "cache_tokens": 128}
    with running(base, files, **settings) as engine:
        asked = []
        for _ in range(14):
            lora = chance.choice([(), ((0, 1.0),), ((0, 0.5),), ((1, 1.0),), ((0, 1.0), (1, -0.5))])
            prompt = [*TOKENS[: chance.choice([1, 30, 60])], *TOKENS[: chance.randrange(20)]]
            asked.append((prompt, lora, start(engine, prompt, chance.choice([1, 12, 24]), lora=lora)))
            if chance.random() < 0.3:
                asked[-1][2].ended()
        for _, _, answer in asked:
            answer.ended()
        totals = engine.totals
    for prompt, lora, answer in asked:
        check(base, prompt, answer.tokens, files, lora=lora)
    expected = {f.name: sum(len(a.tokens) for _, lora, a in asked if i in dict(lora)) for i, f in enumerate(files)}
    assert totals.adapter_tokens == expected and totals.adapter_switches >= 2


@pytest.mark.parametrize("options", [{"draft_model": True}, {"device_sampling": "on"}], ids=str)
def test_drafts_and_sampling_on_the_device_change_nothing(options: dict[str, object], made: Callable[[str], Made]) -> None:
    base, files = made("llama")
    if "draft_model" in options:
        options = {"draft_model": str(base)}
    prompt = TOKENS[:20] * 3
    with running(base, files, **options) as engine:
        asked = [(lora, start(engine, prompt, 40, lora=lora)) for lora in ((), ((0, 1.0),), ((1, 0.3),))]
        answers = [(lora, answer.ended().tokens) for lora, answer in asked]
    for lora, tokens in answers:
        check(base, prompt, tokens, files, lora=lora)


def cached(request: Request) -> int:
    assert request.last is not None and request.last.usage is not None
    return request.last.usage.cached_tokens


@each_layout
@pytest.mark.parametrize("kind", ["llama", "gemma3", "lfm2"])
@pytest.mark.parametrize("cache_tokens", [0, 400], ids=["in host RAM", "in a sequence"])
def test_prefixes_are_found_by_the_same_adapters_alone(
    kind: str, layout: str, cache_tokens: int, made: Callable[[str], Made]
) -> None:
    base, files = made(kind)
    options = {"kv_layout": layout, "kv_tokens": 1024, "cache_ram_mib": 1, "cache_tokens": cache_tokens}
    whole = len(TOKENS) - 1
    with contextlib.closing(SteppedEngine(base, adapters=files, **options)) as engine:
        found = []
        for lora in ((), ((0, 1.0),), ((0, 0.5),), ((1, 1.0),), ((0, 1.0),), (), ((0, 1.0), (1, 0.0))):
            request = engine.ask(TOKENS, 8, lora=lora)
            engine.drain()
            engine.rest()
            found.append(cached(request))
    assert found == [0, 0, 0, 0, whole, whole, whole]


@each_layout
@pytest.mark.parametrize("kind", ["llama", "lfm2"])
def test_what_is_public_is_so_among_requests_of_the_same_adapters(kind: str, layout: str, made: Callable[[str], Made]) -> None:
    base, files = made(kind)
    ann, bob = (Caller(id=name, owner=name) for name in ("ann", "bob"))
    with contextlib.closing(SteppedEngine(base, adapters=files, kv_layout=layout, kv_tokens=1024, cache_ram_mib=1)) as engine:
        engine.share([TOKENS[:40]])
        found = []
        for caller, lora in ((ann, ()), (bob, ((0, 1.0),)), (ann, ((0, 1.0),)), (bob, ()), (bob, ((0, 1.0),))):
            request = engine.ask(TOKENS, 8, lora=lora, caller=caller)
            engine.drain()
            engine.rest()
            found.append(cached(request))
    assert found == [0, 0, 40, 40, len(TOKENS) - 1]


def test_nobody_waits_for_what_is_computed_with_other_adapters(made: Callable[[str], Made]) -> None:
    base, files = made("llama")
    with contextlib.closing(SteppedEngine(base, adapters=files, kv_tokens=1024, cache_ram_mib=1)) as engine:
        asked = [engine.ask(TOKENS, 4, lora=lora) for lora in ((), ((0, 1.0),), (), ((0, 1.0),))]
        engine.drain()
        assert [cached(request) for request in asked] == [0, 0, len(TOKENS) - 1, len(TOKENS) - 1]


def test_on_disk_sets_are_told_apart_by_the_content_of_their_files(made: Callable[[str], Made], tmp_path: Path) -> None:
    base, files = made("llama")
    options = {"kv_tokens": 1024, "cache_ram_mib": 1, "cache_tokens": 0, "cache_disk": str(tmp_path / "cache")}
    with contextlib.closing(SteppedEngine(base, adapters=files, **options)) as before:
        before.ask(TOKENS, 8, lora=(("one", 1.0),))
        before.drain()
        before.rest()
        before.ask(TOKENS[:1], 1)
        before.drain()
        until(lambda: len(list((tmp_path / "cache").rglob("*.prefix"))) >= 1 and not before._worker._mover._disk._waiting)
    other = [AdapterFile("one", files[1].path), AdapterFile("two", files[0].path)]
    for adapters, lora, expected in (
        (files, (), 0),
        (files, (("one", 1.0),), len(TOKENS) - 1),
        (other, (("one", 1.0),), 0),
        (other, (("two", 1.0),), len(TOKENS) - 1),
    ):
        with contextlib.closing(SteppedEngine(base, adapters=adapters, **options)) as after:
            request = after.ask(TOKENS, 4, lora=lora)
            after.drain(1_000_000)
            assert cached(request) == expected


def test_requests_that_choose_nothing_have_what_is_active(made: Callable[[str], Made]) -> None:
    base, files = made("llama")
    with running(base, files) as engine:
        answers = {lora: ask(engine, TOKENS, 12, lora=lora).tokens for lora in ((), ((0, 0.5),))}
        assert ask(engine, TOKENS, 12).tokens == answers[()] and engine.active.scales == ()
        engine.activate([("one", 0.5)])
        assert engine.active.scales == ((0, 0.5),)
        assert ask(engine, TOKENS, 12).tokens == answers[((0, 0.5),)]
        assert ask(engine, TOKENS, 12, lora=()).tokens == answers[()]
        with pytest.raises(InvalidField, match="lora: this model has no adapter 2; it has 0 \\(one\\), 1 \\(two\\)"):
            engine.activate([(2, 1.0)])
        assert engine.active.scales == ((0, 0.5),)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -100.5])
def test_a_scale_out_of_range_is_refused(scale: float, made: Callable[[str], Made]) -> None:
    base, files = made("llama")
    with running(base, files) as engine:
        with pytest.raises(InvalidField, match="lora: a scale must be between -100 and 100"):
            start(engine, TOKENS, 1, lora=((0, scale),))
        assert len(ask(engine, TOKENS, 2).tokens) == 2


def test_a_model_without_adapters_refuses_them_by_name(made: Callable[[str], Made]) -> None:
    with running(made("llama")[0]) as engine, pytest.raises(InvalidField, match="no adapter 0; it has none"):
        start(engine, TOKENS, 1, lora=((0, 1.0),))


def test_what_the_file_says_is_known(made: Callable[[str], Made], tmp_path: Path) -> None:
    base, _ = made("llama")
    facts = {"adapter.lora.task_name": "translating", "adapter.lora.prompt_prefix": "Translate: "}
    file = tiny_lora.write(tmp_path / "lora.gguf", base, facts=facts)
    with running(base, [AdapterFile("de", file, 0.5)]) as engine:
        [info] = engine.info.adapters
    assert (info.name, info.scale, info.task, info.prompt_prefix) == ("de", 0.5, "translating", "Translate: ")


WRONG = {
    "another architecture": ({"general.architecture": "gemma3"}, {}, "model arch and LoRA arch mismatch"),
    "no adapter": ({"general.type": "model"}, {}, "expect general.type to be 'adapter'"),
    "an unknown tensor": ({}, {"blk.9.attn_q.weight.lora_a": np.zeros((4, 64), np.float32)}, "missing one component"),
    "an activated one": ({"adapter.alora.invocation_tokens": [1, 2]}, {}, "it is an activated LoRA"),
}


@pytest.mark.parametrize(("facts", "tensors", "reason"), WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_named_and_nothing_is_half_loaded(
    facts: dict[str, str],
    tensors: tiny_lora.Tensors,
    reason: str,
    made: Callable[[str], Made],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, files = made("llama")
    wrong = tiny_lora.write(tmp_path / "wrong.gguf", base, facts=facts, tensors=tensors)
    freed: list[object] = []
    free = llama_cpp.llama_adapter_lora_free
    monkeypatch.setattr(llama_cpp, "llama_adapter_lora_free", lambda handle: (freed.append(handle), free(handle)))
    with pytest.raises(ModelLoadError, match=reason) as caught:
        TextEngine(base, EngineSettings(gpu_layers=0, threads=1), adapters=[files[0], AdapterFile("wrong", wrong)])
    assert caught.value.path == wrong
    assert len(freed) == (2 if "activated" in reason else 1)
    with running(base, files) as engine:
        assert len(ask(engine, TOKENS, 2).tokens) == 2


def test_an_adapter_in_half_precision_does_the_same(made: Callable[[str], Made], tmp_path: Path) -> None:
    """As most files have them."""
    base, files = made("llama")
    halves = {name: each.astype(np.float16) for name, each in tiny_lora.matrices(headers.read(base), 0, tiny_lora.RANK)}
    answers: list[Answer] = []
    for file in (files[0].path, tiny_lora.write(tmp_path / "f16.gguf", base, tensors=halves)):
        with running(base, [AdapterFile("x", file)]) as engine:
            answers.append(ask(engine, TOKENS[:30], 8, lora=(("x", 1.0),), logprobs=0))
    agree(*answers)
