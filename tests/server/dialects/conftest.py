"""A server whose model fills in the middle of a text."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fake_engine import FIM
from tests.support.http_server import Served, start_in


@pytest.fixture(scope="module")
def shared_coder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with start_in(tmp_path_factory.mktemp("coder"))(engine={"fim": FIM, "template": "{{ messages[0].content }}"}) as served:
        yield served


@pytest.fixture
def coder(shared_coder: Served) -> Served:
    """Serve a model that can fill in the middle."""
    shared_coder.engine.reset()
    return shared_coder
