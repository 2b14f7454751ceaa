"""Files that only their owner may read, whatever the umask, and that survive a full disk."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from pathlib import Path

MODE = 0o600
FOLDER_MODE = 0o700


def make_folder(path: Path) -> None:
    """Create a folder and the missing ones above it, for the owner alone. Those that exist keep their mode. Raises OSError."""
    for each in (*reversed(path.parents), path):
        if not each.is_dir():
            each.mkdir(mode=FOLDER_MODE, exist_ok=True)


def touch(path: Path) -> None:
    """Create an empty file for the owner alone unless there is a file already. Raises OSError."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | getattr(os, "O_NONBLOCK", 0), MODE))


def read_regular(path: Path, longest: int) -> bytes:
    """Return the content of a file. Raises OSError for a file of more than `longest` bytes, and at once for a FIFO or device,
    which might never end."""

    def without_waiting(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    with open(path, "rb", opener=without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        content = file.read(longest + 1)
    if len(content) > longest:
        raise OSError(errno.EFBIG, f"it has more than {longest:,} bytes")
    return content


def replace(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read; readers see the old one or the new one, also after a crash.

    Raises OSError, such as for a full disk; then the old one stays.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem}-")  # has the mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    with contextlib.suppress(OSError):  # where folders cannot be synchronized
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
