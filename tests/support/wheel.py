"""A wheel of a package that is installed here, for an installation that must not compile it again."""

from __future__ import annotations

import re
import zipfile
from importlib import metadata
from pathlib import Path


def repacked(package: str, folder: Path) -> Path:
    """Write the wheel into `folder`, with the tag that the installed one had, and return its path."""
    found = metadata.distribution(package)
    tag = re.search(r"^Tag: (\S+)", found.read_text("WHEEL") or "", re.MULTILINE)
    assert tag and found.files
    path = folder / f"{package.replace('-', '_')}-{found.version}-{tag[1]}.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for each in found.files:
            if ".." not in each.parts and "__pycache__" not in each.parts:
                wheel.write(each.locate(), str(each))
    return path
