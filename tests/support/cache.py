"""The folder for downloads of tests."""

from __future__ import annotations

from pathlib import Path

import platformdirs

CACHE = Path(platformdirs.user_cache_dir("locallab-tests", appauthor=False))
