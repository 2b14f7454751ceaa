"""The checks of `locallab doctor`. An error in one does not affect the others."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from locallab import hardware, redis_link, settings
from locallab.errors import ConfigError, LocalLabError
from locallab.keys import SharedKeyStore
from locallab.models import hub_status
from locallab.server import listener, tls
from locallab.settings import ServerSettings
from locallab.version import DISTRIBUTION, __version__

Status = Literal["ok", "warn", "fail"]
DEADLINE = 9.0
"""Seconds after which an unfinished check is abandoned."""

OLDEST, NEWEST = (3, 10), (3, 14)
DISK_LEAST, DISK_AMPLE = 1 << 30, 10 << 30
RAM_LEAST, RAM_AMPLE = 512 << 20, 2 << 30
FEATURES = """
import json
from locallab.engine import build_features, openmp
print(json.dumps({**build_features(), "runtime": str(openmp.runtime())}))
"""
OPENMP = settings.variable("openmp")
AGAIN = f"{sys.executable} -m pip install --force-reinstall --no-cache-dir llama-cpp-python"
NVIDIA, DISPLAY = "0x10de", "0x03"
"""PCI's vendor id of NVIDIA, and the prefix of the class ids of display and 3D controllers."""


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """The result of a check; `remedy` is advice for the user."""

    name: str
    status: Status
    detail: str
    remedy: str | None = None


Look = Callable[[], Check]


def everything(server: ServerSettings) -> dict[str, Look]:
    """Return all checks by name, in the order of the report."""

    def hub_token() -> Check:
        from huggingface_hub import get_token

        return token(get_token())

    def tunnel() -> Check:
        from pyngrok import conf

        secret = server.ngrok_token or os.environ.get("NGROK_AUTHTOKEN")
        return ngrok(secret, Path(conf.get_default().ngrok_path))

    url = server.redis_url
    chosen: dict[str, Look] = {"cloudflared": lambda: cloudflared(server.cloudflared_path)}
    return {
        "python": lambda: python(sys.version_info[:2]),
        "package": lambda: package(importlib.metadata.distributions(name="locallab")),
        "compiler": compiler,
        "llama.cpp": llama,
        "openmp": openmp,
        "driver": driver,
        "cuda": cuda,
        "memory": lambda: memory(hardware.available_memory()),
        "disk": lambda: disk(settings.home()),
        "port": lambda: port(server),
        **({"redis": lambda: redis(url)} if url else {}),
        "hub": hub,
        "token": hub_token,
        **(chosen if server.tunnel == "cloudflared" else {"ngrok": tunnel}),
    }


def run(looks: Mapping[str, Look], deadline: float = DEADLINE) -> list[Check]:
    """Run all checks concurrently. One that raises or exceeds the deadline becomes a warning."""
    done: queue.SimpleQueue[Check] = queue.SimpleQueue()

    def guarded(name: str, look: Look) -> None:
        try:
            done.put(look())
        except Exception as error:
            done.put(Check(name, "warn", f"could not be checked: {type(error).__name__}: {error}"))

    for item in looks.items():
        threading.Thread(target=guarded, args=item, daemon=True).start()
    found: dict[str, Check] = {}
    ends = time.monotonic() + deadline
    while len(found) < len(looks):
        try:
            check = done.get(timeout=max(0.0, ends - time.monotonic()))
        except queue.Empty:
            break
        found[check.name] = check
    late = f"no answer within {deadline:g} s"
    return [found.get(name) or Check(name, "warn", late, "run locallab doctor again") for name in looks]


def python(version: Sequence[int]) -> Check:
    text = f"{version[0]}.{version[1]} at {sys.executable}"
    if tuple(version) < OLDEST:
        return Check("python", "fail", text, "install Python 3.10 or newer")
    if tuple(version) > NEWEST:
        return Check(
            "python", "warn", f"{text}, which is newer than the versions LocalLab is tested with", "use Python 3.12 if it fails"
        )
    return Check("python", "ok", text)


def package(others: Iterable[importlib.metadata.Distribution]) -> Check:
    """Look for another project whose files lie in the same folder: distributions called locallab."""
    for other in others:
        detail = f"another project called locallab {other.version} is installed in the same folder"
        remedy = f"pip uninstall -y locallab; then install {DISTRIBUTION} again with pip's --force-reinstall --no-deps"
        return Check("package", "fail", detail, remedy)
    return Check("package", "ok", f"{DISTRIBUTION} {__version__}")


def compiler() -> Check:
    """Look for a compiler, which only a build of llama.cpp from source needs."""
    cxx = next(filter(None, map(shutil.which, (os.environ.get("CXX") or "c++", "g++", "clang++"))), None)
    cmake = shutil.which("cmake")
    if cxx and cmake:
        return Check("compiler", "ok", f"{cxx}, {cmake}")
    missing = " and ".join([*([] if cxx else ["no C++ compiler"]), *([] if cmake else ["no cmake"])])
    remedy = "only to build llama-cpp-python from source: apt install build-essential cmake"
    return Check("compiler", "warn", missing, remedy)


@functools.cache
def _import() -> subprocess.CompletedProcess[str]:
    """Import llama.cpp in a process of its own, which crashes if it was built for another CPU."""
    return subprocess.run([sys.executable, "-c", FEATURES], capture_output=True, text=True, timeout=DEADLINE)


def llama() -> Check:
    done = _import()
    if done.returncode == 0:
        return features(json.loads(done.stdout), hardware.cpu()["flags"])
    return unloadable(done.returncode, done.stderr)


def unloadable(status: int, output: str) -> Check:
    """Explain why llama.cpp cannot be loaded, from the exit status and the output of the process that tried."""
    if status < 0:
        detail = f"crashes with {signal.Signals(-status).name}: it was built for another CPU"
        return Check("llama.cpp", "fail", detail, f"build it here: {AGAIN}")
    reason = (output.strip().splitlines() or ["it gave no reason"])[-1]
    if OPENMP in reason:
        return Check("llama.cpp", "fail", f"cannot be loaded: {reason}", f"unset {OPENMP}, or set it to gnu")
    if "libcu" in reason:  # libcudart, libcublas, libcuda: the prebuilt CUDA wheels contain none of them
        remedy = "install CUDA's runtime and cuBLAS, and add their folder to LD_LIBRARY_PATH"
        return Check("llama.cpp", "fail", f"was built with CUDA, which is missing here: {reason}", remedy)
    return Check("llama.cpp", "fail", f"cannot be loaded: {reason}", f"install it again: {AGAIN}")


def features(facts: Mapping[str, Any], flags: Sequence[str]) -> Check:
    """Check that llama.cpp was built to use the CPU's vector instructions, by a compiler that handles AMX."""
    system = str(facts["system_info"]).strip(" |")
    found = [f"{each['name']} ({each['description']})" for each in facts.get("devices", ())]
    device = "GPU offload" if facts["gpu_offload"] else "CPU only"
    device += f", devices {', '.join(found)}" if found else ""
    detail = f"llama-cpp-python {facts['llama_cpp_python']}, {device}; {system}"
    unused = [flag.upper() for flag in ("avx2", "fma", "f16c") if flag in flags and f"{flag.upper()} = 1" not in system]
    if unused and not facts["gpu_offload"]:
        remedy = f"it is several times slower than it could be; build it here: {AGAIN}"
        return Check("llama.cpp", "warn", f"{detail} was built without this CPU's {', '.join(unused)}", remedy)
    if facts["miscompiled_amx"]:
        remedy = f"long prompts are slower than they could be; build it with a newer one: CC=gcc-13 CXX=g++-13 {AGAIN}"
        return Check("llama.cpp", "warn", f"{detail} was built by {facts['miscompiled_amx']}, which miscompiles AMX", remedy)
    return Check("llama.cpp", "ok", detail)


def openmp() -> Check:
    done = _import()
    if done.returncode != 0:
        return Check("openmp", "warn", "not known, because llama.cpp cannot be loaded", "see llama.cpp")
    return waiting(json.loads(done.stdout), os.environ.get(OPENMP))


def waiting(facts: Mapping[str, Any], choice: str | None) -> Check:
    """Check which OpenMP runtime has the threads on the CPU wait for each other; `choice` is the user's."""
    if choice != "llvm" or facts["openmp"]["name"] != "GNU":
        return Check("openmp", "ok", facts["runtime"])
    return Check("openmp", "warn", facts["runtime"], f"install LLVM's: {sys.executable} -m pip install cmeel-libomp")


def driver() -> Check:
    found = hardware.gpus()
    if found:
        names = ", ".join(str(gpu["name"]) for gpu in found)
        return Check("driver", "ok", f"NVIDIA {found[0]['driver']}: {names}")
    if nvidia_card(Path("/")):
        remedy = "install NVIDIA's driver; start a container with --gpus all and NVIDIA's container toolkit"
        return Check("driver", "warn", "there is an NVIDIA GPU, but no working driver", remedy)
    return Check("driver", "ok", "no NVIDIA GPU; models run on the CPU")


def nvidia_card(root: Path) -> bool:
    """Return whether an NVIDIA GPU is installed, with or without a driver."""
    for device in (root / "sys/bus/pci/devices").glob("*"):
        try:
            if (device / "vendor").read_text().strip() == NVIDIA and (device / "class").read_text().startswith(DISPLAY):
                return True
        except OSError:
            continue
    return False


def cuda() -> Check:
    version = hardware.cuda_version()
    if version is None:
        return Check("cuda", "ok", "not used: no NVIDIA driver")
    text = f"the driver supports CUDA {version[0]}.{version[1]}"
    done = _import()
    hint = hardware.cuda_hint(done.returncode == 0 and json.loads(done.stdout)["gpu_offload"])
    return Check("cuda", "warn", text, hint) if hint else Check("cuda", "ok", text)


def memory(free: int) -> Check:
    text = f"{free / 2**30:.1f} GiB of RAM free"
    if free >= RAM_AMPLE:
        return Check("memory", "ok", text)
    remedy = "close other programs, or serve a small model: locallab fit MODEL shows what fits"
    return Check("memory", "warn" if free >= RAM_LEAST else "fail", text, remedy)


def disk(home: Path) -> Check:
    free = hardware.disk(home)["free_bytes"]
    text = f"{free / 2**30:.1f} GiB free at {home}"
    remedy = "delete models you do not need: locallab rm MODEL; or set LOCALLAB_HOME to a folder on a larger disk"
    existing = next(parent for parent in (home.absolute(), *home.absolute().parents) if parent.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        return Check("disk", "fail", f"{existing} is not writable", "set LOCALLAB_HOME to a folder of yours")
    if free >= DISK_AMPLE:
        return Check("disk", "ok", text)
    return Check("disk", "warn" if free >= DISK_LEAST else "fail", text, remedy)


def port(server: ServerSettings) -> Check:
    where = server.uds or f"{server.host}:{server.port}"
    try:
        tls.configured(server)
        with listener.opened(server):
            pass
    except ConfigError as error:
        return Check(
            "port",
            "fail",
            str(error),
            "stop the program that uses it (another LocalLab server?), or choose another --port",
        )
    return Check("port", "ok", f"{where} is free" if server.port or server.uds else f"any free port at {server.host}")


def redis(url: str) -> Check:
    """Check the Redis that servers share."""
    try:
        with redis_link.asking(url) as client:
            facts: Any = client.info()
            keys = len(SharedKeyStore(client).read())
    except LocalLabError as error:
        return Check("redis", "fail", str(error), "start it, or set another --redis-url; servers go on alone meanwhile")
    policy = facts.get("maxmemory_policy", "noeviction")
    found = f"Redis {facts['redis_version']} at {redis_link.address(url)} has {keys} API keys; {redis_link.SHARED} are shared"
    if policy.startswith("allkeys"):
        remedy = "CONFIG SET maxmemory-policy noeviction, or a Redis of its own for LocalLab"
        return Check("redis", "warn", f"{found}, but its policy {policy} drops any of them when its memory is full", remedy)
    return Check("redis", "ok", found)


def hub() -> Check:
    if hub_status.offline():
        return Check("hub", "ok", "not checked: HF_HUB_OFFLINE is set")
    problem = hub_status.hub_problem()
    if problem is None:
        return Check("hub", "ok", f"{hub_status.endpoint()} answers")
    remedy = "models on disk and the embedded one work without it; for others, check the network and HF_ENDPOINT"
    return Check("hub", "warn", f"{hub_status.endpoint()} cannot be used: {problem}", remedy)


def token(secret: str | None) -> Check:
    """Check the user's token with the Hub."""
    if not secret:
        return Check("token", "ok", "none; only gated and private models need one")
    if hub_status.offline():
        return Check("token", "ok", "set, but not checked: HF_HUB_OFFLINE is set")
    try:
        owner = hub_status.token_owner(secret)
    except OSError as error:
        return Check("token", "warn", f"set, but the Hub does not confirm it: {error}", "see hub")
    if owner is None:
        remedy = "create one at https://huggingface.co/settings/tokens and set HF_TOKEN"
        return Check("token", "fail", "the Hub rejects it", remedy)
    return Check("token", "ok", f"belongs to {owner}")


def ngrok(secret: str | None, agent: Path) -> Check:
    """Check the token and the agent that --tunnel needs."""
    where = f"agent at {agent}" if agent.exists() else "the agent is fetched at first use"
    if secret:
        return Check("ngrok", "ok", f"a token is set; {where}")
    remedy = "only for --tunnel: set LOCALLAB_NGROK_TOKEN to the authtoken of your ngrok account"
    return Check("ngrok", "warn", f"no token; {where}", remedy)


def cloudflared(program: str | None) -> Check:
    """Check the program that --tunnel cloudflared needs."""
    found = shutil.which(program or "cloudflared")
    if found:
        return Check("cloudflared", "ok", f"agent at {found}")
    remedy = "get it from github.com/cloudflare/cloudflared/releases; LOCALLAB_CLOUDFLARED_PATH may name it"
    return Check("cloudflared", "fail", f"there is no program {program or 'cloudflared on the PATH'}", remedy)
