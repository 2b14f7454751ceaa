from __future__ import annotations

import re
from pathlib import Path

import pytest

from locallab.errors import ConfigError
from locallab.models import Registry
from locallab.placement_settings import experts_of, overrides, shares
from locallab.settings import EngineSettings, resolve


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, ()),
        ("exps=CPU", (("exps", "CPU"),)),
        ("a=CPU,b=CUDA0", (("a", "CPU"), ("b", "CUDA0"))),
        (r"blk\.\d{1,2}\.=CUDA1,output=CPU", ((r"blk\.\d{1,2}\.", "CUDA1"), ("output", "CPU"))),
        ("a=b=CPU", (("a=b", "CPU"),)),
    ],
)
def test_overrides(text: str | None, expected: tuple[tuple[str, str], ...]) -> None:
    assert overrides(text) == expected


def test_shares() -> None:
    assert shares("3,1.5,0") == (3, 1.5, 0)
    assert shares(None) == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("override_tensor", "exps"),
        ("override_tensor", "=CPU"),
        ("override_tensor", "exps="),
        ("tensor_split", "1,"),
        ("tensor_split", "a"),
        ("tensor_split", "-1,2"),
        ("split_mode", "half"),
        ("main_gpu", "-1"),
        ("n_cpu_moe", "-1"),
        ("kv_type_v", "q5_0"),
        ("rope_scaling", "longrope"),
        ("rope_scale", "0"),
        ("yarn_orig_ctx", "0"),
        ("yarn_beta_fast", "nan"),
        ("numa", "mirror"),
    ],
)
def test_what_is_none_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"^LOCALLAB_{name.upper()}: {name}: .*got {re.escape(repr(value))}"):
        resolve(EngineSettings, (f"LOCALLAB_{name.upper()}", {name: value}))


def test_numbers_beyond_all_bounds_are_refused() -> None:
    for name in ("rope_scale", "rope_freq_base", "yarn_ext_factor"):
        for value in (10**400, "1e400", "inf", -1):
            with pytest.raises(ConfigError, match=f"^flags: {name}: "):
                resolve(EngineSettings, ("flags", {name: value}))


def test_the_form_of_a_pair_is_told() -> None:
    with pytest.raises(ConfigError, match=r"got 'blk'; its form is PATTERN=DEVICE$"):
        resolve(EngineSettings, ("flags", {"override_tensor": "blk"}))


def test_types_of_the_kv_cache() -> None:
    assert EngineSettings().kv_types == ("f16", "f16")
    assert EngineSettings(kv_type="q8_0").kv_types == ("q8_0", "q8_0")
    assert EngineSettings(kv_type="q8_0", kv_type_v="f16").kv_types == ("q8_0", "f16")
    assert EngineSettings(kv_type_k="bf16").kv_types == ("bf16", "f16")


def test_experts_of_some_layers() -> None:
    pattern = re.compile(experts_of(3))
    found = [
        f"blk.{layer}.ffn_{name}.weight" for layer in (0, 2, 3, 22) for name in ("up_exps", "gate_up_exps", "up", "up_shexp")
    ]
    assert experts_of(10**9) == experts_of(512)
    assert [name for name in found if pattern.search(name)] == [
        "blk.0.ffn_up_exps.weight",
        "blk.0.ffn_gate_up_exps.weight",
        "blk.2.ffn_up_exps.weight",
        "blk.2.ffn_gate_up_exps.weight",
    ]


def test_what_is_unusual() -> None:
    """Not the context, the KV cache, the threads, and how the file is read: they change no result."""
    usual = EngineSettings(context=5, kv_type="q8_0", gpu_layers=3, threads=2, mmap=False, mlock=True, numa="isolate")
    assert usual.unusual == {}
    assert EngineSettings(n_cpu_moe=3, rope_scale=2.0, tensor_split="1,2").unusual == {
        "n_cpu_moe": 3,
        "rope_scale": 2.0,
        "tensor_split": "1,2",
    }


def test_an_entry_of_the_registry_may_set_them(tmp_path: Path) -> None:
    file = tmp_path / "more.yaml"
    settings = (
        "{n_cpu_moe: 12, override_tensor: 'output=CPU', tensor_split: '3,1', kv_type_v: q8_0, rope_scale: 4, mmap: false}"
    )
    entry = f"{{id: mine, description: d, source: {{kind: file, path: x.gguf}}, settings: {settings}}}"
    file.write_text(f"models:\n- {entry}\n")
    spec = Registry.discover(str(file)).resolve("mine")
    found = resolve(EngineSettings, ("models.yaml", spec.engine_settings))
    assert (found.n_cpu_moe, found.kv_types, found.rope_scale, found.mmap) == (12, ("f16", "q8_0"), 4.0, False)
    file.write_text(file.read_text().replace("'3,1'", "'3;1'"))
    with pytest.raises(ConfigError, match=r"more\.yaml:2: mine: settings: tensor_split: "):
        Registry.discover(str(file))
