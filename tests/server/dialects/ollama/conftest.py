"""A client of Ollama's API."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import ollama
import pytest

from tests.support.http_server import Served


@pytest.fixture
def client(thinking: Served) -> Iterator[ollama.Client]:
    with contextlib.closing(ollama.Client(thinking.url)) as client:
        yield client
