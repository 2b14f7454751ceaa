"""Programs that load a model with adapters: `Engine`, `start`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

import locallab
from locallab.errors import ConfigError, InvalidField, ModelLoadError, UnknownModel
from tests.support import tiny_gguf, tiny_lora

SMALL: dict[str, Any] = {"threads": 1, "gpu_layers": 0, "parallel": 2, "kv_tokens": 1024, "cache_ram_mib": 0}
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_gguf.write(tmp_path / "base.gguf", "llama")


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return tiny_lora.write(tmp_path / "pirate.gguf", base)


def test_an_engine_with_an_adapter(base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with locallab.Engine(str(base), lora=[f"pirate={adapter}:0.5"], **SMALL) as engine:
        assert [(each.name, each.scale) for each in engine.info.adapters] == [("pirate", 0.5)]
        alone, adapted = (engine.generate("abc", lora=lora, **GREEDY) for lora in (None, {"pirate": 1.0}))
        assert adapted != alone == engine.generate("abc", **GREEDY)
        assert engine.chat([{"role": "user", "content": "abc"}], lora={0: 1.0}, **GREEDY)
        with pytest.raises(InvalidField, match="lora: this model has no adapter 'poet'"):
            engine.generate("abc", lora={"poet": 1.0})
    monkeypatch.setenv("LOCALLAB_LORA", f"one={adapter},two={adapter}:2")
    with locallab.Engine(str(base), **SMALL) as engine:
        assert [(each.name, each.scale) for each in engine.info.adapters] == [("one", 1.0), ("two", 2.0)]
    with locallab.Engine(str(base), lora=(), **SMALL) as engine:
        assert engine.info.adapters == ()


def test_an_engine_of_a_model_named_with_an_adapter(base: Path, adapter: Path, tmp_path: Path) -> None:
    registry = tmp_path / "models.yaml"
    registry.write_text(
        f"models:\n- {{id: 'a:b', source: {{kind: file, path: '{base}'}}, description: made, adapters: "
        f"[{{name: pirate, source: {{kind: file, path: '{adapter}'}}}}]}}\n"
    )
    with locallab.Engine("a:b:pirate", registry=str(registry), **SMALL) as engine:
        named, alone = (engine.generate("abc", lora=lora, **GREEDY) for lora in (None, {}))
        assert named == engine.generate("abc", lora={"pirate": 1.0}, **GREEDY) != alone
    with pytest.raises(UnknownModel, match="a:b:pirate"):
        locallab.Engine("a:b:pirat", registry=str(registry), **SMALL)


def test_wrong_adapters_fail_by_name(base: Path, tmp_path: Path) -> None:
    other = tiny_gguf.write(tmp_path / "other.gguf", "mamba")
    wrong = tiny_lora.write(tmp_path / "wrong.gguf", other)
    with pytest.raises(ModelLoadError, match=r"wrong\.gguf: it is made for a model of the architecture mamba"):
        locallab.Engine(str(base), lora=[f"x={wrong}"], **SMALL)
    with pytest.raises(ConfigError, match="lora: x: there is no file"):
        locallab.Engine(str(base), lora=["x=/no/such.gguf"], **SMALL)
    with pytest.raises(ConfigError, match="lora: x: there is no file"):
        locallab.start(str(base), lora="x=/no/such.gguf", **SMALL)
    assert locallab.Engine(str(base), **SMALL).generate("abc", **GREEDY)


def test_a_server_with_adapters(base: Path, adapter: Path) -> None:
    options = {**SMALL, "lora": f"pirate={adapter},half={adapter}:0.5", "auth": False}
    with locallab.start(str(base), **options) as server, httpx.Client(base_url=server.local_url, timeout=60) as client:
        assert server.model == "base"
        assert [each["path"] for each in client.get("/lora-adapters").json()] == ["pirate", "half"]
        listed = {each["id"]: each.get("parent") for each in client.get("/v1/models").json()["data"]}
        assert listed["base"] is None and listed["base:pirate"] == listed["base:half"] == "base"

        def answer(**more: Any) -> str:
            body = {"prompt": "abc", "temperature": 0, "max_tokens": 12, "ignore_eos": True, "model": "base", **more}
            response = client.post("/v1/completions", json=body)
            assert response.status_code == 200, response.text
            return str(response.json()["choices"][0]["text"])

        alone, half = answer(), answer(model="base:half")
        assert len({alone, half, answer(model="base:pirate")}) == 3
        assert half == answer(lora=[{"id": 1, "scale": 0.5}]) == answer(lora=[{"id": 0, "scale": 0.5}])
        assert client.post("/lora-adapters", json=[{"id": 0, "scale": 0.5}]).json() == {"success": True}
        assert (answer(), answer(lora=[{"id": 0, "scale": 0}])) == (half, alone)
        metrics = client.get("/metrics").text
        assert 'locallab_adapter_completion_tokens_total{adapter="half",model="base"} 24.0' in metrics
