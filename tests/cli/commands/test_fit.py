from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from locallab import cli, hardware
from locallab.engine import llama
from tests.support import tiny_gguf
from tests.support.gguf_headers import Made

GIB = 1 << 30


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """8 GiB of free RAM, no GPU."""
    monkeypatch.setattr(hardware, "available_memory", lambda: 8 * GIB)
    monkeypatch.setattr(hardware, "gpus", list)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU with 6 GiB free, which llama.cpp can use."""
    monkeypatch.setattr(hardware, "gpus", lambda: [{"name": "RTX 3060", "free_bytes": 6 * GIB, "total_bytes": 8 * GIB}])
    monkeypatch.setattr(llama, "supports_gpu", lambda: True)


def fit(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, ["fit", *arguments])


def report(*arguments: str) -> Any:
    done = fit(*arguments, "--json")
    assert done.exit_code in (0, 1), done.output
    return json.loads(done.stdout)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny_gguf.write(tmp_path / "tiny.gguf", "llama")


def test_a_file(path: Path) -> None:
    done = fit(str(path))
    assert done.exit_code == 0
    assert "tiny: the file" in done.stdout
    assert "5 layers with the output, trained with a context of 512" in done.stdout
    assert "free here: 8.0 GiB of RAM; no GPU" in done.stdout
    assert "chosen: on the CPU, context 512, KV f16 in 32 streams, 32 requests at once: takes " in done.stdout
    assert "estimated" not in done.stdout


def test_a_draft_model_counts(path: Path, tmp_path: Path) -> None:
    """Whether the flag names it or the entry; its weights and its part of the KV cache are in every figure."""
    alone, both = report(str(path))["chosen"], report(str(path), "--draft-model", str(tiny_copy(path)))["chosen"]
    assert both["weights_bytes"] == 2 * alone["weights_bytes"]
    assert both["kv_bytes"] == 2 * alone["kv_bytes"] and both["total_bytes"] > alone["total_bytes"]
    assert "with its draft model" in both["reason"]
    registry = tmp_path / "models.yaml"
    source, draft = (f"{{kind: file, path: '{each}'}}" for each in (path, tiny_copy(path)))
    registry.write_text(f"models:\n- {{id: pair, source: {source}, draft: {draft}, description: two}}\n")
    assert report("pair", "--registry", str(registry))["chosen"]["weights_bytes"] == both["weights_bytes"]
    without = report("pair", "--registry", str(registry), "--draft-model", "none")["chosen"]
    assert without["weights_bytes"] == alone["weights_bytes"]
    hub = report(str(path), "--draft-model", "gemma3:270m-base")["chosen"]
    assert hub["weights_bytes"] > 10 * alone["weights_bytes"], "one that is not on disk is estimated by its size"
    assert "locallab pull" in fit(str(path), "--draft-model", "hf:acme/tiny").stderr


def tiny_copy(path: Path) -> Path:
    return Path(shutil.copy(path, path.with_name("copy.gguf")))


def test_what_scripts_get(path: Path) -> None:
    found = report(str(path))
    assert (found["model"], found["path"], found["approximate"]) == ("tiny", str(path), False)
    assert found["machine"] == {"ram_bytes": 8 * GIB, "gpus": [], "threads": hardware.threads(), "gpu_build": False}
    assert (found["layers"], found["context_trained"]) == (5, 512)
    assert found["kv_bytes_per_token"]["f16"] == 4 * 2 * (16 + 16) * 2
    assert found["chosen"]["fits"]
    assert found["chosen"]["context"] == 512
    assert [found["chosen"][name] for name in ("kv_layout", "parallel", "requests_at_once")] == ["streams", 64, 32]
    assert found["chosen"]["total_bytes"] == found["chosen"]["ram_bytes"]
    assert found["chosen"]["reason"].startswith("on the CPU")


def test_a_model_that_is_not_on_disk_is_judged_by_its_size() -> None:
    found = report("qwen2.5-coder:7b")
    assert (found["path"], found["approximate"]) == (None, True)
    assert found["weights_bytes"] == pytest.approx(4683073536, rel=0.001)
    assert found["chosen"]["context"] == 16384
    assert {row["context"] for row in found["table"]} == {2048, 4096, 8192, 16384, 32768}
    assert "not on disk: estimated from its size" in fit("qwen2.5-coder:7b").stdout


def test_the_table_has_a_row_for_each_context_and_a_column_for_each_kv_type() -> None:
    rows = report("qwen2.5-coder:7b")["table"]
    assert [row["kv_type"] for row in rows[:4]] == ["f16", "q8_0", "q4_0", "f16"]
    assert all(row["gpu_layers"] == 0 for row in rows)
    fitting = {(row["context"], row["kv_type"]) for row in rows if row["fits"]}
    assert (8192, "f16") in fitting
    assert (32768, "f16") not in fitting
    assert (32768, "q4_0") in fitting
    text = fit("qwen2.5-coder:7b").stdout
    assert "KV q8_0" in text
    assert "KV cache of one such request" in text


def test_wishes(gpu: None) -> None:
    free = report("qwen2.5-coder:7b")["chosen"]
    assert (free["gpu_layers"], free["fits"]) == (-1, True)
    asked = report("qwen2.5-coder:7b", "--gpu-layers", "12", "--context", "3000", "--kv-type", "q4_0", "--parallel", "2")[
        "chosen"
    ]
    assert [asked[name] for name in ("gpu_layers", "context", "kv_type", "parallel")] == [12, 3000, "q4_0", 2]
    assert 0 < asked["gpu_bytes"] < free["gpu_bytes"]
    assert "GPU 12" in fit("qwen2.5-coder:7b", "--gpu-layers", "12").stdout


def test_what_goes_where(path: Path, gpu: None) -> None:
    mixture = tiny_gguf.write(path.with_name("mixture.gguf"), "gpt-oss")
    free, apart = (report(str(mixture), *flags)["chosen"] for flags in ((), ("--cpu-moe",)))
    assert (free["n_cpu_moe"], apart["n_cpu_moe"]) == (0, 4)
    assert apart["gpu_bytes"] < free["gpu_bytes"] and "the experts of 4 in RAM" in apart["reason"]
    assert report(str(mixture), "--n-cpu-moe", "2")["chosen"]["n_cpu_moe"] == 2
    flags = ("--override-tensor", r"blk\.0\.=CPU", "--override-tensor", "blk.1=CPU")
    assert report(str(path), *flags)["chosen"]["gpu_bytes"] < report(str(path))["chosen"]["gpu_bytes"]
    assert fit(str(path), "--override-tensor", "blk=CUDA9").exit_code == 2
    assert "n_cpu_moe: tiny.gguf has no experts" in fit(str(path), "--n-cpu-moe", "2").stderr


def test_the_speed_to_expect(path: Path, gpu: None) -> None:
    found = report(str(path), "--gpu-layers", "3")["chosen"]["speed"]
    assert found["gpu_bandwidth"] == 360 * 10**9 and found["gpu_known"]
    assert found["gpu_bytes"] and found["ram_bytes"] and found["tokens_per_second"] > 0
    shown = fit(str(path), "--gpu-layers", "3").stdout
    assert "tokens/s for one request, by memory bandwidth" in shown
    assert "the speed comes from 360 GB/s of the GPU (as its maker states) and " in shown


def test_a_layout_of_one_s_own() -> None:
    pooled = report("qwen2.5-coder:7b", "--kv-layout", "unified")
    assert {row["kv_layout"] for row in pooled["table"]} == {"unified"}
    assert pooled["chosen"]["requests_at_once"] == 64
    assert " in one pool, " in pooled["chosen"]["reason"]


def test_a_window_makes_the_cache_of_a_request_smaller(tmp_path: Path) -> None:
    made = Made(architecture="gemma3", layers=6, width=640, heads=4, kv_heads=1, head=256, vocabulary=64000, window=512)
    done = fit(str(made.write(tmp_path / "windows.gguf")))
    layer = 2 * 256 * 2
    assert f" {(layer * 32768 + 5 * layer * 1024) >> 20} MiB / " in done.stdout


def test_wishes_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALLAB_CONTEXT", "3000")
    assert report("qwen2.5-coder:7b")["chosen"]["context"] == 3000
    assert report("qwen2.5-coder:7b", "--context", "2000")["chosen"]["context"] == 2000


def test_a_model_of_a_registry_of_the_user_s(tmp_path: Path) -> None:
    registry = tmp_path / "more.yaml"
    entry = "{id: mine, description: d, size: 2 GB, context: 4096, source: {kind: file, path: none.gguf}}"
    registry.write_text(f"models:\n  - {entry}\n")
    assert report("mine", "--registry", str(registry))["chosen"]["context"] == 4096
    assert fit("mine").exit_code == 2


def test_what_does_not_fit_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "available_memory", lambda: GIB)
    done = fit("qwen2.5-coder:14b")
    assert done.exit_code == 1
    assert "does not fit: even on the CPU, context 512" in done.stdout
    assert not report("qwen2.5-coder:14b")["chosen"]["fits"]


def test_models_that_are_none(tmp_path: Path) -> None:
    unknown = fit("qwen9")
    assert (unknown.exit_code, unknown.stdout) == (2, "")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    damaged = fit(str(tmp_path / "bad.gguf"))
    assert damaged.exit_code == 1
    assert "damaged or cut short" in damaged.stderr
    unsized = fit("hf:owner/repo:Q4_K_M")
    assert unsized.exit_code == 1
    assert "locallab pull" in unsized.stderr
