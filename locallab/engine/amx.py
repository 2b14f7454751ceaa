"""Detection of llama.cpp builds whose AMX code (a matrix unit of Intel's CPUs) was miscompiled and would end the process.

Before 13.3, GCC assumes that `_tile_loadconfig` reads 8 of its 64 bytes (GCC bug 114098) and omits the writes of the others, so
that the first instruction that loads a tile is illegal. Debian 12 and Ubuntu 22.04 have such a GCC.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

from locallab.engine import mapped

SOUND = (13, 3)
"""First version of GCC that compiles AMX correctly."""

_COMPILER = re.compile(rb"GCC: \([^)\0]*\) ([0-9]+)\.([0-9]+)")


@functools.cache
def miscompiled(system_info: str) -> str | None:
    """Return the compiler of the llama.cpp loaded in this process if it uses AMX and the compiler miscompiles it, else None.

    `system_info` is the text of llama_print_system_info. Call it only after llama.cpp is loaded: the answer is kept.
    """
    if "AMX_INT8 = 1" not in system_info:
        return None
    return next(filter(None, map(unsound, mapped.libraries(mapped.LLAMA))), None)


def unsound(library: Path) -> str | None:
    """Return the oldest GCC named in the comments of a library, such as "GCC 12.2", if it miscompiles AMX, else None."""
    try:
        found = _COMPILER.findall(library.read_bytes())
    except OSError:
        return None
    oldest = min(((int(major), int(minor)) for major, minor in found), default=SOUND)
    return f"GCC {oldest[0]}.{oldest[1]}" if oldest < SOUND else None
