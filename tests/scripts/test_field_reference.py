from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "locallab" / "server" / "fields" / "README.md").read_text()


def test_the_page_has_the_tables_as_they_are() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "field-reference")]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert shown == PAGE, "run scripts/field-reference --write"
    assert "| `guided_regex` | alias of `regex` |" in shown and "| `functions` | refused | use tools |" in shown
