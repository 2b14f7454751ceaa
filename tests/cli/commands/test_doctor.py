from __future__ import annotations

import importlib.metadata
import json
import os
import socket
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import redis as client
from click.testing import CliRunner

from locallab import cli, hardware
from locallab.cli.doctor import checks
from locallab.cli.doctor.checks import Check
from locallab.engine import llama, openmp
from locallab.keys import SharedKeyStore
from locallab.models import hub_status
from locallab.settings import ServerSettings
from tests.support.redis_server import redis as redis_server

NAMES = ["python", "package", "compiler", "llama.cpp", "openmp", "driver", "cuda"]
NAMES += ["memory", "disk", "port", "hub", "token", "ngrok"]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def port() -> int:
    """A free port."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def test_the_whole_of_it(offline: None, port: int) -> None:
    done = CliRunner().invoke(cli.main, ["doctor", "--port", str(port), "--json"])
    found = json.loads(done.stdout)
    assert [check["name"] for check in found] == NAMES
    assert all(set(check) == {"name", "status", "detail", "remedy"} for check in found)
    status = {check["name"]: check["status"] for check in found}
    assert (status["python"], status["port"]) == ("ok", "ok")
    assert status["llama.cpp"] == ("warn" if llama.miscompiled_amx() else "ok")
    assert done.exit_code == int("fail" in status.values())


def test_as_people_see_it(offline: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        done = CliRunner().invoke(cli.main, ["doctor", "--port", str(number)])
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    (at,) = (index for index, line in enumerate(lines) if line.startswith("fail  port "))
    assert str(number) in lines[at]
    assert "→ stop the program" in lines[at + 1]
    assert any(line.startswith("ok    python ") for line in lines)


def test_another_project_of_the_same_name(tmp_path: Path) -> None:
    (tmp_path / "locallab-0.11.3.dist-info").mkdir()
    (tmp_path / "locallab-0.11.3.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: locallab\nVersion: 0.11.3\n")
    found = checks.package(importlib.metadata.distributions(name="locallab", path=[str(tmp_path)]))
    assert found.status == "fail"
    assert found.detail == "another project called locallab 0.11.3 is installed in the same folder"
    assert found.remedy and found.remedy.startswith("pip uninstall -y locallab")
    assert checks.package([]).status == "ok"


def test_a_check_that_fails_or_hangs_breaks_no_other() -> None:
    never = threading.Event()
    fine = Check("fine", "ok", "d")

    def hang() -> Check:
        never.wait()
        return fine

    def broken() -> Check:
        raise RuntimeError("oh")

    try:
        found = checks.run({"broken": broken, "hangs": hang, "fine": lambda: fine}, deadline=1)
    finally:
        never.set()
    assert found == [
        Check("broken", "warn", "could not be checked: RuntimeError: oh"),
        Check("hangs", "warn", "no answer within 1 s", "run locallab doctor again"),
        fine,
    ]


def test_all_checks_are_in_order() -> None:
    assert list(checks.everything(ServerSettings())) == NAMES


@pytest.mark.parametrize(("version", "status"), [((3, 9), "fail"), ((3, 10), "ok"), ((3, 14), "ok"), ((3, 15), "warn")])
def test_python(version: tuple[int, int], status: str) -> None:
    check = checks.python(version)
    assert check.status == status
    assert (check.remedy is None) == (status == "ok")


def test_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    check = checks.compiler()
    assert (check.status, check.detail) == ("warn", "no C++ compiler and no cmake")
    assert check.remedy
    for name in ("g++", "cmake"):
        (tmp_path / name).touch(mode=0o755)
    assert checks.compiler() == Check("compiler", "ok", f"{tmp_path}/g++, {tmp_path}/cmake")


def facts(system: str, *, gpu: bool = False, miscompiled: str | None = None) -> Mapping[str, Any]:
    return {"llama_cpp_python": "1.2", "gpu_offload": gpu, "system_info": system, "miscompiled_amx": miscompiled}


def test_llama_cpp_that_uses_the_cpu() -> None:
    check = checks.features(facts("CPU : AVX2 = 1 | FMA = 1 | F16C = 1 | "), ["avx2", "fma", "f16c"])
    assert check == Check("llama.cpp", "ok", "llama-cpp-python 1.2, CPU only; CPU : AVX2 = 1 | FMA = 1 | F16C = 1")


def test_llama_cpp_built_for_less_than_the_cpu_has() -> None:
    check = checks.features(facts("CPU : SSE3 = 1 | FMA = 1"), ["avx2", "fma"])
    assert (check.status, "without this CPU's AVX2" in check.detail) == ("warn", True)
    assert check.remedy
    assert checks.features(facts("CPU : SSE3 = 1", gpu=True), ["avx2"]).status == "ok"  # the GPU computes
    assert checks.features(facts("CPU : SSE3 = 1"), []).status == "ok"


def test_llama_cpp_built_by_a_compiler_that_gets_amx_wrong() -> None:
    check = checks.features(facts("CPU : AMX_INT8 = 1", miscompiled="GCC 12.2"), [])
    assert check.status == "warn"
    assert "GCC 12.2, which miscompiles AMX" in check.detail and "CXX=" in (check.remedy or "")


@pytest.mark.parametrize(
    ("status", "output", "reason"),
    [
        (-4, "", "crashes with SIGILL: it was built for another CPU"),
        (
            1,
            "Traceback\nOSError: libcudart.so.12: cannot open",
            "was built with CUDA, which is missing here: OSError: libcudart",
        ),
        (1, "Traceback\nRuntimeError: no llama", "cannot be loaded: RuntimeError: no llama"),
        (1, "", "cannot be loaded: it gave no reason"),
    ],
)
def test_llama_cpp_that_cannot_be_loaded(status: int, output: str, reason: str) -> None:
    check = checks.unloadable(status, output)
    assert (check.status, check.detail.startswith(reason)) == ("fail", True)
    assert check.remedy


@pytest.mark.parametrize(
    ("name", "choice", "advised"),
    [
        ("LLVM", "llvm", False),
        ("none", None, False),
        ("GNU", None, False),
        ("GNU", "llvm", True),
        ("GNU", "gnu", False),
    ],
)
def test_openmp(name: str, choice: str | None, advised: bool) -> None:
    check = checks.waiting({"openmp": {"name": name}, "runtime": "itself"}, choice)
    assert (check.name, check.status, check.detail) == ("openmp", "warn" if advised else "ok", "itself")
    command = f"{sys.executable} -m pip install cmeel-libomp"
    assert check.remedy and check.remedy.endswith(command) if advised else check.remedy is None


def test_openmp_of_the_llama_cpp_that_is_loaded() -> None:
    check = checks.openmp()
    assert check.detail == str(openmp.runtime()) and "omp" in check.detail


def test_openmp_that_is_no_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    checks._import.cache_clear()
    monkeypatch.setenv("LOCALLAB_OPENMP", "/no/such/file")
    try:
        check = checks.llama()
        assert check.detail.startswith("cannot be loaded: locallab.errors.ConfigError: LOCALLAB_OPENMP: ")
        assert check.remedy == "unset LOCALLAB_OPENMP, or set it to gnu"
        assert checks.openmp() == Check("openmp", "warn", "not known, because llama.cpp cannot be loaded", "see llama.cpp")
    finally:
        checks._import.cache_clear()


def test_llama_cpp_is_really_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks.llama().detail.startswith("llama-cpp-python ")
    checks._import.cache_clear()
    monkeypatch.setattr(checks, "FEATURES", "import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    try:
        assert "SIGILL" in checks.llama().detail
    finally:
        checks._import.cache_clear()


T4 = {"name": "Tesla T4", "driver": "550.1", "compute_capability": "7.5"}


def test_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "gpus", lambda: [T4])
    assert checks.driver() == Check("driver", "ok", "NVIDIA 550.1: Tesla T4")
    monkeypatch.setattr(hardware, "gpus", list)
    monkeypatch.setattr(checks, "nvidia_card", lambda root: False)
    assert checks.driver().status == "ok"
    monkeypatch.setattr(checks, "nvidia_card", lambda root: True)
    assert checks.driver().status == "warn"


@pytest.mark.parametrize(
    ("vendor", "kind", "expected"),
    [("0x10de", "0x030200", True), ("0x10de", "0x0c0330", False), ("0x1002", "0x030000", False)],
    ids=["a 3D controller", "the USB port of one", "another maker's"],
)
def test_nvidia_card(tmp_path: Path, vendor: str, kind: str, expected: bool) -> None:
    device = tmp_path / "sys/bus/pci/devices/0000:00:04.0"
    device.mkdir(parents=True)
    assert not checks.nvidia_card(tmp_path)
    (device / "vendor").write_text(vendor + "\n")
    (device / "class").write_text(kind + "\n")
    assert checks.nvidia_card(tmp_path) == expected


def test_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "cuda_version", lambda: None)
    assert checks.cuda() == Check("cuda", "ok", "not used: no NVIDIA driver")
    monkeypatch.setattr(hardware, "cuda_version", lambda: (12, 4))
    monkeypatch.setattr(hardware, "gpus", lambda: [T4])
    found = checks.cuda()
    assert (found.status, found.detail) == ("warn", "the driver supports CUDA 12.4")
    assert found.remedy == hardware.cuda_hint(False)
    monkeypatch.setattr(hardware, "cuda_hint", lambda gpu_build: None)
    assert checks.cuda() == Check("cuda", "ok", "the driver supports CUDA 12.4")


@pytest.mark.parametrize(("free", "status"), [(4 << 30, "ok"), (1 << 30, "warn"), (1 << 20, "fail")])
def test_memory(free: int, status: str) -> None:
    assert checks.memory(free).status == status


@pytest.mark.parametrize(("free", "status"), [(40 << 30, "ok"), (4 << 30, "warn"), (1 << 20, "fail")])
def test_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: int, status: str) -> None:
    monkeypatch.setattr(hardware, "disk", lambda path: {"free_bytes": free})
    check = checks.disk(tmp_path / "not" / "yet")
    assert check.status == status
    assert (check.remedy is None) == (status == "ok")


def test_disk_that_cannot_be_written_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    check = checks.disk(tmp_path / "not" / "yet")
    assert (check.status, check.detail) == ("fail", f"{tmp_path} is not writable")


def test_port(port: int) -> None:
    assert checks.port(ServerSettings(host="127.0.0.1", port=port)) == Check("port", "ok", f"127.0.0.1:{port} is free")
    assert checks.port(ServerSettings(host="127.0.0.1", port=0)).detail == "any free port at 127.0.0.1"
    with socket.create_server(("127.0.0.1", port)):
        assert checks.port(ServerSettings(host="127.0.0.1", port=port)).status == "fail"
    assert checks.port(ServerSettings(host="no.such.host.invalid", port=port)).status == "fail"


def test_redis(port: int) -> None:
    url = f"redis://:pass@127.0.0.1:{port}/0"
    gone = checks.redis(url)
    assert (gone.status, "pass" in gone.detail) == ("fail", False)
    assert gone.detail.startswith(f"redis_url: Redis at 127.0.0.1:{port} fails: ") and gone.remedy
    with redis_server(port, "--requirepass", "pass"), client.Redis.from_url(url) as admin:
        SharedKeyStore(admin).create("ann", "free")
        found = checks.redis(url)
        assert found.status == "ok"
        assert f" at 127.0.0.1:{port} has 1 API keys; keys, rate limits, usage and stored responses are shared" in found.detail
        admin.config_set("maxmemory-policy", "allkeys-lru")
        assert checks.redis(url).status == "warn" and "allkeys-lru" in checks.redis(url).detail
    assert checks.redis("localhost").detail.startswith("redis_url: must begin with")
    assert "redis" not in checks.everything(ServerSettings())
    assert "redis" in checks.everything(ServerSettings(redis_url=url))


def test_hub(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    found = checks.hub()
    assert (found.status, found.detail) == ("warn", f"http://127.0.0.1:{port} cannot be used: Connection refused")
    assert found.remedy
    monkeypatch.setattr(hub_status, "hub_problem", lambda: None)
    assert checks.hub() == Check("hub", "ok", f"http://127.0.0.1:{port} answers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert checks.hub() == Check("hub", "ok", "not checked: HF_HUB_OFFLINE is set")


def test_token(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    assert checks.token(None).status == "ok"
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    unknown = checks.token("hf_x")
    assert (unknown.status, "Connection refused" in unknown.detail) == ("warn", True)
    monkeypatch.setattr(hub_status, "token_owner", lambda token: {"hf_x": "ada"}.get(token))
    assert checks.token("hf_x") == Check("token", "ok", "belongs to ada")
    assert checks.token("hf_y").status == "fail"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert checks.token("hf_y").detail == "set, but not checked: HF_HUB_OFFLINE is set"


def test_no_token_is_ever_shown(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("LOCALLAB_NGROK_TOKEN", "ngrok_secret")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    done = CliRunner().invoke(cli.main, ["doctor", "--port", "0", "--json"])
    status = {check["name"]: check for check in json.loads(done.stdout)}
    assert status["token"]["detail"].startswith("set, ")
    assert status["ngrok"]["status"] == "ok"
    assert "secret" not in done.output


def test_ngrok(tmp_path: Path) -> None:
    agent = tmp_path / "ngrok"
    missing = checks.ngrok(None, agent)
    assert (missing.status, missing.detail) == ("warn", "no token; the agent is fetched at first use")
    assert missing.remedy
    agent.touch()
    assert checks.ngrok("t", agent) == Check("ngrok", "ok", f"a token is set; agent at {agent}")


def test_this_python_is_fine() -> None:
    assert checks.python(sys.version_info[:2]).status == "ok"


def test_cloudflared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(checks.everything(ServerSettings(tunnel="cloudflared"))) == [*NAMES[:-1], "cloudflared"]
    agent = tmp_path / "cloudflared"
    missing = checks.cloudflared(str(agent))
    assert missing.status == "fail" and str(agent) in missing.detail and "github.com/cloudflare" in str(missing.remedy)
    agent.touch(0o755)
    assert checks.cloudflared(str(agent)) == Check("cloudflared", "ok", f"agent at {agent}")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert checks.cloudflared(None).detail == f"agent at {agent}"
