"""A part of the prefix cache on disk."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Record:
    """A file with a part of the state of `tokens`: if it has rows, that of the tokens from `start` on; if it has a fixed part,
    that at the last token. `size` is the file's, `owner` whose prefix it is."""

    tokens: npt.NDArray[np.int32]
    start: int
    has_rows: bool
    fixed_bytes: int
    size: int
    path: Path
    owner: str = ""
