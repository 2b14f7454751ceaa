"""Pictures of `Engine.chat`, with an engine that plays a script."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from locallab.errors import InvalidField
from locallab.inprocess.requests import Requests
from locallab.media.attachment import digest
from tests.support.http_server import Served, start_in
from tests.support.media_files import png, url, wav

SEEN = f"<image {digest(png())[:8]}>"
ASKED: Any = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}, {"role": "user", "content": "what?"}]


@pytest.fixture(scope="module")
def eye(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with start_in(tmp_path_factory.mktemp("eye"))(engine={"modalities": ("text", "image"), "context": 4096}) as served:
        yield served


def asked(served: Served, prompts: list[Any], *images: Any) -> str:
    served.engine.reset()
    assert served.pool.current
    with Requests(served.pool.current, prompts, {}, images=images) as requests:
        for each in requests.answers:
            each.result(30)
    return served.engine.submitted[-1][0]


def test_they_come_ahead_of_the_users_last_message(eye: Served, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png())
    prompt = asked(eye, [ASKED], path, str(path), png(), url(png()))
    assert f"user\n{4 * SEEN}what?<|im_end|>" in prompt


def test_parts_of_messages(eye: Served) -> None:
    parts = [{"type": "image_url", "image_url": {"url": url(png())}}, {"type": "text", "text": "?"}]
    prompt = asked(eye, [[{"role": "user", "content": parts}]])
    assert f"user\n{SEEN}?<|im_end|>" in prompt


def test_they_belong_to_one_conversation(eye: Served) -> None:
    for prompts in ([ASKED, ASKED], ["text"]):
        with pytest.raises(InvalidField, match="images: belong to one conversation"):
            asked(eye, prompts, png())


def test_a_bad_one_is_named(eye: Served, served: Served, tmp_path: Path) -> None:
    with pytest.raises(InvalidField, match=r"images\[1\]: cannot be read: No such file"):
        asked(eye, [ASKED], png(), tmp_path / "none.png")
    with pytest.raises(InvalidField, match=r"images\[0\]: is no picture"):
        asked(eye, [ASKED], wav())
    with pytest.raises(InvalidField, match="images: this model takes no images"):
        asked(served, [ASKED], png())
