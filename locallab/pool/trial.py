"""Files that are not known to be good: what their header shows is refused, and llama.cpp loads them in another process first.

llama.cpp ends the process for many kinds of damage, and for some it never returns. The verdict of such a trial is kept under
the digest of the file and the build of llama.cpp, so that a file is tried once. The weights of the shipped registry are good.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import msgspec
import psutil

from locallab import hardware
from locallab.engine.disk_cache import model_digest
from locallab.engine.llama import build_features
from locallab.engine.trial import ADAPTER, REFUSED, smallest
from locallab.errors import EngineClosed, ModelLoadError
from locallab.models import adapter_rules, gguf, header_rules
from locallab.models.registry import shipped_digests
from locallab.pool.memory import Suited
from locallab.units import binary_bytes

VERSION = 1
"""Of what a trial does: verdicts of another one do not count."""

SECONDS = 60.0
BYTES_PER_SECOND = 50e6
"""A trial may take SECONDS, and the time to read the file from a slow disk."""

SPARE = 2 << 30
"""Bytes of memory that a trial may take beyond twice what the fit expects."""

LOOK = 0.05
"""Seconds between two looks at a trial."""

FORGET = 3600.0
"""Seconds after which a file that failed may be tried again: the reason may have been the machine."""

MOST = 1000
"""Verdicts kept."""

HASHED = 128 << 20
"""Bytes of a file whose whole content is hashed, in a tenth of a second; of larger ones the edges and the time of change."""

CRASHES = frozenset({signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP})

log = logging.getLogger(__name__)


class Verdict(msgspec.Struct, frozen=True):
    """The outcome of a trial: what is wrong with the file, None for a good one; the time in seconds since the epoch."""

    reason: str | None
    time: float

    @property
    def holds(self) -> bool:
        return self.reason is None or 0 <= time.time() - self.time < FORGET


class Trials:
    """Checks files before they are loaded. Verdicts are files in `folder`; `stopped` tells that nobody waits any more."""

    def __init__(self, folder: Path, stopped: Callable[[], bool] = lambda: False) -> None:
        self._folder = folder
        self._stopped = stopped

    def look(self, suited: Suited, sha256: str | None) -> None:
        """Raise ModelLoadError for what the header shows, and for a file that failed its trial. `sha256` is the digest of the
        file, if it is known. Takes no memory: nothing has to be unloaded for a file that cannot be loaded."""
        digest = _digest(suited, sha256)
        if digest in shipped_digests():
            return
        if suited.header is not None:
            header_rules.check(suited.header)
            for adapter in suited.adapters:
                adapter_rules.check(gguf.read(adapter.path), suited.header)
        verdict = self._recall(digest, suited)
        if verdict is not None and verdict.reason is not None:
            raise ModelLoadError(suited.subject, verdict.reason)

    def run(self, suited: Suited, sha256: str | None) -> None:
        """Load the file in a process of its own, unless it is known to be good. Blocks for as long as a load takes.

        Raises ModelLoadError with what is wrong with the file, EngineClosed.
        """
        digest = _digest(suited, sha256)
        if digest in shipped_digests() or self._recall(digest, suited) is not None:
            return
        log.info("%s is not known to be good: it is loaded in a process of its own first", suited.subject)
        reason, lasting = _Trial(suited, self._stopped).outcome()
        if lasting:
            self._remember(digest, suited, Verdict(reason, time.time()))
        if reason is not None:
            raise ModelLoadError(suited.subject, reason)

    def _recall(self, digest: str, suited: Suited) -> Verdict | None:
        """Return the verdict, None without one that holds; a damaged file is none."""
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            verdict = msgspec.json.decode(self._place(digest, suited).read_bytes(), type=Verdict)
            return verdict if verdict.holds else None
        return None

    def _remember(self, digest: str, suited: Suited, verdict: Verdict) -> None:
        """Keep a verdict, and drop the oldest ones beyond MOST. A disk that refuses costs the next load another trial."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._folder, delete=False) as file:
                file.write(msgspec.json.encode(verdict))
            os.replace(file.name, self._place(digest, suited))
            known = sorted(self._folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
            for old in known[MOST:]:
                old.unlink(missing_ok=True)
        except OSError as error:
            log.warning("the verdict about %s cannot be kept in %s: %s", suited.need.path, self._folder, error)

    def _place(self, digest: str, suited: Suited) -> Path:
        facts = build_features()
        on_gpu = suited.settings.gpu_layers != 0
        placed = suited.settings.unusual or ""
        key = f"{VERSION} {digest} {facts['llama_cpp_python']} {facts['system_info']} {on_gpu}{placed}"
        return self._folder / f"{hashlib.sha256(key.encode()).hexdigest()}.json"


class _Trial:
    """One load in a process of its own."""

    def __init__(self, suited: Suited, stopped: Callable[[], bool]) -> None:
        path = suited.need.path
        self._stopped = stopped
        self._seconds = int(SECONDS + path.stat().st_size / BYTES_PER_SECOND)
        self._bytes = min(2 * suited.need.likely.ram + SPARE, hardware.available_memory())
        kind = "embeddings" if suited.header is not None and suited.header.embeds else "text"
        settings = [f"{name}={value}" for name, value in smallest(suited.settings).items() if value is not None]
        settings += [f"{ADAPTER}={adapter.path}" for adapter in suited.adapters]
        # With the search path of this process, wherever it found the package.
        code = f"import sys; sys.path[:] = {sys.path!r}; from locallab.engine.trial import main; sys.exit(main(sys.argv[1:]))"
        self._command = [sys.executable, "-c", code, str(path), kind, str(self._seconds), *settings]

    def outcome(self) -> tuple[str | None, bool]:
        """Return what is wrong with the file, None for nothing, and whether that is to be kept. Raises EngineClosed."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            try:
                process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    env={**os.environ, "GGML_NO_BACKTRACE": "1"},
                    start_new_session=True,  # Ctrl-C in the terminal is for this process
                )
            except OSError as error:
                return self._unknown(str(error))
            try:
                if (reason := self._watch(process)) is not None:
                    return reason, True
            finally:
                process.kill()
                process.wait()
            return self._verdict(process.returncode, _text(out), _text(err))

    def _watch(self, process: subprocess.Popen[bytes]) -> str | None:
        """Wait for the process; return what it takes too much of, None when it has ended. Raises EngineClosed."""
        end = time.monotonic() + self._seconds
        with contextlib.suppress(psutil.NoSuchProcess):
            watched = psutil.Process(process.pid)
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(LOOK)
                    return None
                if self._stopped():
                    raise EngineClosed("the server is stopping")
                if time.monotonic() > end:
                    return (
                        f"llama.cpp had not loaded it after {self._seconds} seconds; the file is damaged, or the disk is slow"
                    )
                use = watched.memory_info()
                if use.rss - use.shared > self._bytes:
                    return f"llama.cpp takes more than {binary_bytes(self._bytes)} of memory to load it; the file is damaged"
        process.wait()
        return None

    def _verdict(self, status: int, out: str, err: str) -> tuple[str | None, bool]:
        if status == 0:
            return None, True
        if status == REFUSED:
            return out.strip() or "llama.cpp gave no reason", False
        if -status == signal.SIGALRM:
            return f"llama.cpp had not loaded it after {self._seconds} seconds; the file is damaged, or the disk is slow", True
        if -status in CRASHES:
            return f"it ends llama.cpp ({signal.Signals(-status).name}): {last_words(err)}", True
        if status < 0:
            return f"its first load was ended by {signal.Signals(-status).name}, perhaps because memory ran out", False
        return self._unknown(f"status {status}, {last_words(err)}")

    def _unknown(self, reason: str) -> tuple[None, bool]:
        log.warning("the file cannot be tried in another process, and is loaded untried: %s", reason)
        return None, False


def last_words(err: str) -> str:
    """Return the line of a program's stderr that says what ended it, without the folders in it."""
    lines = [line.strip() for line in err.splitlines() if line.strip()] or ["the file is damaged"]
    found = next((line for line in lines if _LAST_WORDS.search(line)), lines[-1])
    return re.sub(r"\S*/", "", found.removeprefix("what():").strip())[:300]


_LAST_WORDS = re.compile(r"GGML_ASSERT|what\(\)|: fatal error|\.(?:cpp|c|cu|h):\d+: ")


def _text(file: IO[bytes]) -> str:
    """Return the end of what was written to the file."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - (1 << 16)))
    return file.read().decode("utf-8", "replace")


def _digest(suited: Suited, sha256: str | None) -> str:
    """Return a digest of the file that is to be tried, for a large one without a known digest a cheap one; that of a projector
    or an adapter goes with its model's. Raises ModelLoadError."""
    path = suited.subject
    try:
        parts = (path,) if suited.header is None or path != suited.need.path else suited.header.parts
        own = sha256 or _digest_of(parts)
        if path == suited.need.path or (sha256 and not suited.adapters):
            return own
        return f"{own}-for {model_digest(suited.need.path)}"
    except OSError as error:
        raise ModelLoadError(path, error.strerror or str(error)) from None


def _digest_of(parts: Sequence[Path]) -> str:
    """Return a digest of the files of a model, of large ones a cheap one. Raises OSError."""
    if sum(part.stat().st_size for part in parts) > HASHED:
        return model_digest(parts[0])
    digests = []
    for part in parts:
        with part.open("rb") as file:
            digest = hashlib.sha256()
            while chunk := file.read(1 << 20):
                digest.update(chunk)
            digests.append(digest.hexdigest())
    return "-".join(digests)
