"""Facts about the machine that a table of results needs beside it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from locallab.version import __version__

ROOT = Path(__file__).resolve().parents[2]


def facts(models: Sequence[Path], threads: int, llama_server: str | None, argv: Sequence[str]) -> dict[str, str]:
    """Each fact by its name, in the order to print. Of files outside the working directory only the names are told."""
    found = {"CPU": f"{_cpu_model()}, {os.cpu_count()} cores", "memory": _memory(), "GPU": _gpus(), "system": _system()}
    found["LocalLab"] = _commit()
    found["llama-cpp-python"] = _version("llama-cpp-python")
    if llama_server:
        found["llama.cpp"] = _llama_server_version(llama_server)
    if models:
        found["model"] = ", ".join(f"{model.name} ({model.stat().st_size / 2**20:,.0f} MiB)" for model in models)
    found["threads"] = str(threads)
    found["date"] = time.strftime("%Y-%m-%d")
    shown = [os.path.basename(each) if os.path.isabs(each) else each for each in argv]
    found["command"] = f"`{shlex.join(['scripts/bench', *shown])}`"
    return found


def _commit() -> str:
    """The version of this checkout, with its commit and whether it has changes."""
    try:
        asked = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return __version__
    return f"{__version__} ({asked.stdout.strip()})" if asked.returncode == 0 else __version__


def _cpu_model() -> str:
    return _proc_value("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()


def _memory() -> str:
    kib = (_proc_value("/proc/meminfo", "MemTotal") or "").split()
    return f"{int(kib[0]) / 2**20:,.1f} GiB" if kib else "unknown"


def _proc_value(path: str, name: str) -> str | None:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), None)


def _gpus() -> str:
    if not shutil.which("nvidia-smi"):
        return "none"
    asked = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True)
    return ", ".join(asked.stdout.split("\n")).strip(", ") if asked.returncode == 0 else "none"


def _system() -> str:
    return f"{platform.system()} {platform.release().partition('-')[0]}, Python {platform.python_version()}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed beside this script"


def _llama_server_version(binary: str) -> str:
    try:
        asked = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"unknown ({error})"
    lines = (asked.stdout + asked.stderr).splitlines()
    return next((line.removeprefix("version:").strip() for line in lines if line.startswith("version:")), "unknown")
