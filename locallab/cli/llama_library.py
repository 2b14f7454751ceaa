"""The llama.cpp library: imported where a command needs it, so that wrong flags are reported first."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from locallab.errors import LocalLabError


@contextlib.contextmanager
def loading_llama() -> Iterator[None]:
    """Turn a failed import of llama.cpp into a LocalLabError.

    llama-cpp-python raises OSError or RuntimeError when a shared library that it was built with is missing.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise LocalLabError(f"llama.cpp cannot be loaded: {error}; run locallab doctor") from error
