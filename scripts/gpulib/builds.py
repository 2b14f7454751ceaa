"""Makes a llama.cpp for this machine's GPU: its libraries, which llama-cpp-python loads, and its server, from one build."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import shutil
import site
import sys
import tarfile
from pathlib import Path

from gpulib.stages import Runner, StageFailed
from locallab import hardware
from locallab.engine import llama

OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    "-DGGML_CUDA=ON",
    "-DCMAKE_CUDA_ARCHITECTURES=native",
    "-DGGML_CUDA_FA_QUANTS=f16-f16;q8_0-q8_0",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
)
"""Only what the check needs, for this card alone: on 16 cores that takes minutes."""

TARGETS = ("llama", "mtmd", "llama-server")

CUDA = Path("/usr/local/cuda/bin")


@dataclasses.dataclass(frozen=True, slots=True)
class Build:
    """With what the other stages run: a Python, variables of its environment, and the C++ server if there is one."""

    python: Path
    env: dict[str, str]
    server: Path | None
    on_gpu: bool


def here(server: Path | None, cpu: bool) -> Build:
    """Return the running Python as it is, with `cpu` without its GPU."""
    return Build(Path(sys.executable), {"CUDA_VISIBLE_DEVICES": ""} if cpu else {}, server, llama.supports_gpu() and not cpu)


def make(runner: Runner, wheel: Path | None, server: Path | None) -> Build:
    """Return a build that can use the GPU: of the `wheel`, the running one if it can, else one from source with its server.
    Raises StageFailed."""
    if wheel is not None:
        return _installed(runner, wheel, server)
    found = here(server, cpu=False)
    if found.on_gpu:
        return found
    if not hardware.gpus():
        raise StageFailed("there is no NVIDIA GPU: see nvidia-smi, or use --cpu")
    binaries = _compiled(runner)
    env = {"LLAMA_CPP_LIB_PATH": str(binaries)}
    probe = "from locallab.engine import llama; raise SystemExit(0 if llama.supports_gpu() else 'it finds no GPU')"
    runner.child("probe", [found.python, "-c", probe], env)
    return Build(found.python, env, server or binaries / "llama-server", True)


def with_server(runner: Runner, build: Build) -> Build:
    """Return the build with a C++ server, compiled if it has none. Raises StageFailed."""
    return build if build.server else dataclasses.replace(build, server=_compiled(runner) / "llama-server")


def _installed(runner: Runner, wheel: Path, server: Path | None) -> Build:
    """Install a wheel of llama-cpp-python into an environment of its own, which has all other packages of the running one."""
    folder = runner.output / "venv"
    runner.child("venv", [sys.executable, "-m", "venv", folder])
    python = folder / "bin" / "python"
    runner.child("wheel", [python, "-m", "pip", "install", "--no-deps", "--force-reinstall", wheel])
    packages = next(folder.glob("lib/python*/site-packages"))
    (packages / "gpu-check.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    probe = "from locallab.engine import llama; raise SystemExit(0 if llama.supports_gpu() else 'the wheel finds no GPU')"
    runner.child("probe", [python, "-c", probe])
    return Build(python, {}, server, True)


def _compiled(runner: Runner) -> Path:
    """Compile the llama.cpp in the source package of the installed llama-cpp-python; return the folder of the binaries."""
    cmake = shutil.which("cmake") or _cmake(runner)
    path = os.pathsep.join([str(Path(cmake).parent), os.environ.get("PATH", ""), str(CUDA)])
    if shutil.which("nvcc", path=path) is None:
        raise StageFailed("there is no nvcc: install the CUDA toolkit, or give --wheel and --llama-server")
    source = _source(runner) / "vendor" / "llama.cpp"
    folder = runner.output / "build"
    env = {"PATH": path}
    generator = ["-G", "Ninja"] if shutil.which("ninja", path=path) else []
    runner.child("cmake", [cmake, "-S", source, "-B", folder, *generator, *OPTIONS], env)
    jobs = str(os.cpu_count() or 1)
    runner.child("compile", [cmake, "--build", folder, "--parallel", jobs, "--target", *TARGETS], env)
    return folder / "bin"


def _cmake(runner: Runner) -> str:
    """Install cmake and ninja into an environment of their own."""
    folder = runner.output / "tools"
    runner.child("tools", [sys.executable, "-m", "venv", folder])
    runner.child("cmake-install", [folder / "bin" / "python", "-m", "pip", "install", "cmake", "ninja"])
    return str(folder / "bin" / "cmake")


def _source(runner: Runner) -> Path:
    """Fetch and unpack the source package of the installed version."""
    version = importlib.metadata.version("llama-cpp-python")
    folder = runner.output / "source"
    source = folder / f"llama_cpp_python-{version}"
    if not source.exists():
        folder.mkdir(exist_ok=True)
        words = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-python", "--dest", str(folder)]
        runner.child("download", [*words, f"llama-cpp-python=={version}"])
        with tarfile.open(next(folder.glob("*.tar.gz"))) as packed:
            packed.extractall(folder, filter="data")
    return source
