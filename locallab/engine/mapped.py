"""The shared libraries in this process. Only Linux tells."""

from __future__ import annotations

import re
from pathlib import Path

MAPS = Path("/proc/self/maps")

LLAMA = r"/lib(ggml-cpu|ggml|llama)[^/]*\.so"
"""Matches the libraries that may contain ggml's CPU code."""


def libraries(pattern: str, maps: Path = MAPS) -> list[Path]:
    """List the files mapped into this process whose paths contain a match of `pattern`; none where `maps` cannot be read."""
    try:
        names = {line.split(maxsplit=5)[-1] for line in maps.read_text().splitlines() if "/" in line}
    except OSError:
        return []
    return [Path(name) for name in sorted(names) if re.search(pattern, name)]
