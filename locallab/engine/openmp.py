"""The OpenMP runtime whose threads compute on the CPU, chosen before llama.cpp is loaded. Only on Linux is there a choice.

llama.cpp is linked with GNU's runtime. LLVM's has GNU's entry points too: opened first, and for all libraries, it is the one
that the dynamic linker finds when llama.cpp is loaded. Which one that really is, `runtime` tells.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import importlib.metadata
import logging
import os
import platform
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from locallab.engine import mapped
from locallab.errors import ConfigError
from locallab.settings import variable

SETTING = variable("openmp")
PACKAGES = ("cmeel-libomp", "intel-openmp")
NAMES = ("libomp.so", "libomp.so.5", "libiomp5.so")
LLVM = r"/lib(omp|iomp5)(-[^/]*)?\.so[.0-9]*$"
"""Matches NAMES, and copies of them in the wheels of other projects."""

SPIN = {"GOMP_SPINCOUNT": "300"}
"""How GNU's threads wait at each barrier: they spin for some microseconds, then sleep. By default they spin for so long that
one which shares its core (with the event loop, a client) delays all others by a whole time slice of the kernel.

LLVM's give way to others of their session meanwhile. How long they spin is KMP_BLOCKTIME: llama.cpp sets it to 200 ms unless
the user has; on a quiet machine nothing shorter is better. SmolLM2 on two cores, tokens/s of steps for 1 / 8 sequences:

    GNU, spin count       0: 49 / 166    100: 86 / 173    300: 129 / 240    1,000: 126 / 236    3,000: 128 / 236
    beside a process      0: 90 / 146    100: 78 / 141    300: 61 / 138     1,000: 34 / 109     3,000: 15 / 74
    LLVM, block time      0: 26 / 135    5 us: 110 / 224  100 us: 132 / 234    1 ms: 125 / 233    200 ms: 134 / 238
    beside a process      0: 65 / 137    5 us: 52 / 130   100 us: 29 / 104     1 ms: 29 / 106     200 ms: 29 / 105

The process keeps a core, and is of another session (the kernel's autogroups). With 4 threads: GNU 60 / 206, LLVM 111 / 241.
"""

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""Variables of users who chose how GNU's threads wait."""

logger = logging.getLogger(__name__)

_why = "llama.cpp is not loaded yet"


@dataclasses.dataclass(frozen=True, slots=True)
class Runtime:
    """The runtime that llama.cpp uses: "LLVM" (Intel's is the same), "GNU", or "none" that is known of, and why."""

    name: str
    version: str | None
    path: str | None
    reason: str

    def __str__(self) -> str:
        version = f" {self.version}" if self.version else ""
        where = f" at {self.path}" if self.path else ""
        return f"{self.name}{version}{where} ({self.reason})"


def prepare(choice: str) -> None:
    """Open the runtime that `choice` names, "gnu", "llvm" or the path of a library, and set how GNU's threads wait.

    Call it before llama_cpp is imported. Raises ConfigError for a path that is no OpenMP runtime.
    """
    global _why
    if not any(name in os.environ for name in WAITING):
        os.environ.update(SPIN)
    _why = _choose(choice) if sys.platform == "linux" else "only on Linux is there a choice"


def _choose(choice: str) -> str:
    """Open the chosen runtime; return the reason for the one that is then used."""
    if mapped.libraries(mapped.LLAMA):
        return "llama.cpp was in the process before LocalLab"
    if choice == "gnu":
        return f"{SETTING} is gnu"
    if _answering(ctypes.CDLL(None)):
        return "it was in the process before LocalLab"
    if present := mapped.libraries(LLVM):  # a process with two of them ends with "OMP: Error #15"
        return _first(present, "it was in the process before LocalLab")
    if choice != "llvm":
        return _named(Path(choice).expanduser())
    return _first(found(folders(Path("/"), sys.prefix, os.environ, packaged())), f"{SETTING} is llvm")


def _named(path: Path) -> str:
    try:
        _open(path)
    except OSError as error:
        raise ConfigError(
            f"{SETTING}: this OpenMP runtime cannot be used: {error}; expected gnu, llvm or the path of LLVM's libomp.so"
        ) from None
    return f"{SETTING} names it"


def _first(paths: Iterable[Path], reason: str) -> str:
    """Open the first of the runtimes that can be opened."""
    for path in paths:
        try:
            _open(path)
        except OSError as error:  # built for another kind of processor, or too old
            logger.debug("%s cannot be used: %s", path, error)
        else:
            return reason
    return "no LLVM runtime was found"


def _open(path: Path) -> None:
    """Open a runtime for all libraries that are loaded later. Raises OSError, also if it lacks GNU's entry points."""
    library = ctypes.CDLL(str(path))
    if not hasattr(library, "GOMP_parallel"):
        raise OSError(f"{path}: it has no function GOMP_parallel")
    ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


def packaged() -> dict[Path, str]:
    """Return the runtimes of installed packages, each with its version."""
    runtimes = {}
    for package in PACKAGES:
        for each in importlib.metadata.distributions(name=package):
            files = [file for file in each.files or () if file.name in NAMES]
            runtimes.update({Path(each.locate_file(file)).resolve(): each.version for file in files})  # type: ignore[arg-type]
    return runtimes


def folders(root: Path, prefix: str, environ: Mapping[str, str], packages: Iterable[Path]) -> Iterator[Path]:
    """Yield the folders that may hold a runtime, the preferred ones first: of `packages`, which are files, of the user's search
    path, of this Python's installation (conda), of the system, and of LLVM's own packages, newest first."""
    yield from dict.fromkeys(path.parent for path in packages)
    yield from (Path(each) for each in environ.get("LD_LIBRARY_PATH", "").split(":") if each)
    yield Path(prefix, "lib")
    for each in (f"usr/lib/{platform.machine()}-linux-gnu", "usr/lib64", "usr/lib", "usr/local/lib"):
        yield root / each
    llvms = {path: re.fullmatch(r"llvm-(\d+)", path.name) for path in (root / "usr/lib").glob("llvm-*")}
    versions = {path: int(match[1]) for path, match in llvms.items() if match}
    yield from (path / "lib" for path in sorted(versions, key=versions.__getitem__, reverse=True))


def found(folders: Iterable[Path]) -> Iterator[Path]:
    """Yield the runtimes in the folders, in their order."""
    return (folder / name for folder in folders for name in NAMES if (folder / name).is_file())


@functools.cache
def runtime() -> Runtime:
    """Return the runtime that llama.cpp uses. Call it only after llama.cpp is loaded: the answer is kept."""
    # The dynamic linker looks where all libraries look before it looks into what the library itself was linked with.
    for library in (None, *map(str, mapped.libraries(mapped.LLAMA))):
        try:
            handle = ctypes.CDLL(library)
        except OSError:  # replaced on disk since
            continue
        if path := _answering(handle):
            return Runtime(
                "LLVM" if hasattr(handle, "kmp_set_blocktime") else "GNU", version(path, packaged()), str(path), _why
            )
    return Runtime("none", None, None, _why if sys.platform != "linux" else "llama.cpp was built without OpenMP")


@functools.cache
def announce() -> None:
    """Log the runtime once."""
    logger.info("the OpenMP runtime is %s", runtime())


def version(path: Path, packages: Mapping[Path, str]) -> str | None:
    """Return the version of a runtime: of its package, of the LLVM in whose folder it lies, or of its binary interface."""
    path = path.resolve()
    match = re.search(r"/llvm-([0-9.]+)/", str(path)) or re.search(r"\.so\.([0-9.]+)$", path.name)
    return packages.get(path) or (match and match[1])


class _Symbol(ctypes.Structure):
    """Dl_info."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def _answering(library: ctypes.CDLL) -> Path | None:
    """Return the file of the runtime that `library` calls; None without one."""
    symbol = _Symbol()
    function = getattr(library, "GOMP_parallel", None) or getattr(library, "omp_get_num_threads", None)
    if function is None or not ctypes.CDLL(None).dladdr(ctypes.cast(function, ctypes.c_void_p), ctypes.byref(symbol)):
        return None
    return Path(os.fsdecode(symbol.file))
