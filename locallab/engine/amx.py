"""Whether llama.cpp's use of AMX, a matrix unit of Intel's CPUs, was compiled wrongly: every model would end the process.

Before 13.3, GCC takes `_tile_loadconfig` to read 8 bytes of its 64 (GCC bug 114098), and leaves out what writes the others: the
first instruction that loads a tile is illegal. Debian 12 and Ubuntu 22.04 have such a GCC.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

SOUND = (13, 3)
"""GCC from which on it is right."""

_COMPILER = re.compile(rb"GCC: \([^)\0]*\) ([0-9]+)\.([0-9]+)")


@functools.cache
def miscompiled(system_info: str) -> str | None:
    """The compiler that the llama.cpp of this process was built by, if it uses AMX and that compiler gets it wrong.

    `system_info` is llama_print_system_info's text. To be asked once llama.cpp is loaded.
    """
    if "AMX_INT8 = 1" not in system_info:
        return None
    return next(filter(None, map(unsound, _libraries(Path("/proc/self/maps")))), None)


def unsound(library: Path) -> str | None:
    """The oldest GCC named in the comments of a compiled library, such as "GCC 12.2", if AMX goes wrong with it."""
    try:
        found = _COMPILER.findall(library.read_bytes())
    except OSError:
        return None
    oldest = min(((int(major), int(minor)) for major, minor in found), default=SOUND)
    return f"GCC {oldest[0]}.{oldest[1]}" if oldest < SOUND else None


def _libraries(maps: Path) -> list[Path]:
    """Files mapped into this process that may hold ggml's code for the CPU."""
    try:
        names = {line.split(maxsplit=5)[-1] for line in maps.read_text().splitlines() if "/" in line}
    except OSError:  # not on Linux: a GCC is hardly what built it there
        return []
    return [Path(name) for name in sorted(names) if re.search(r"/lib(ggml-cpu|ggml|llama)[^/]*\.so", name)]
