"""What the log shows of a prompt that left the known ones, and what an answer does not."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from tests.support.tiny_server import tiny_server

KNOWN, NEW = "the date is monday", "the date is friday"


def ask(folder: Path, *prompts: str) -> list[str]:
    """Return the headers of the answers."""
    with tiny_server(folder) as served:
        return [str(served.http.post("/generate", json={"prompt": p, "max_tokens": 1}).headers) for p in prompts]


def test_a_divergence_is_shown_with_the_text_around_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "locallab.engine.prompt_events"):
        headers = ask(tmp_path, KNOWN, NEW)
    [line] = [record.getMessage() for record in caplog.records if "diverged" in record.getMessage()]
    shown = re.fullmatch(r"a prompt diverged at token (\d+): behind '(.*)' it has 'friday', a known one 'monday'", line)
    assert shown and "the date is ".endswith(shown[2].replace("\u2581", " ")) and len(shown[2]) > 4
    assert f"diverged at {shown[1]}" in headers[1] and not any("day" in each for each in headers)


def test_nothing_of_a_prompt_is_logged_above_debug(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        ask(tmp_path, KNOWN, NEW)
    assert "day" not in caplog.text
