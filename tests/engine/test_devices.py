from __future__ import annotations

import pytest

from locallab.engine import devices, llama
from locallab.errors import ConfigError


def test_there_is_a_cpu_and_gpus_only_where_llama_cpp_can_use_them() -> None:
    found = {each.name: each for each in devices.devices()}
    assert found["CPU"].kind == "cpu" and found["CPU"].description and found["CPU"].buffer_type
    assert bool(devices.gpus()) == llama.supports_gpu()
    assert {each.kind for each in devices.gpus()} <= {"gpu", "integrated"}
    listed = llama.build_features()["devices"]
    assert isinstance(listed, list) and listed[-1] == {
        "name": "CPU",
        "description": found["CPU"].description,
        "kind": "cpu",
    }


def test_a_device_by_its_name() -> None:
    assert devices.device("CPU").kind == "cpu"
    with pytest.raises(ConfigError, match=r"^override_tensor: there is no device CUDA9; there are .*CPU"):
        devices.device("CUDA9")


def test_integrated_gpus_count_only_where_there_are_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: list[devices.Kind] = ["integrated", "gpu", "cpu"]
    made = [devices.Device(f"D{number}", "", kind, 1) for number, kind in enumerate(kinds)]
    monkeypatch.setattr(devices, "devices", lambda: tuple(made))
    assert [each.name for each in devices.gpus()] == ["D1"]
    del made[1]
    assert [each.name for each in devices.gpus()] == ["D0"]
