"""Turns with pictures: which one stands where in the prompt."""

from __future__ import annotations

import pytest

from locallab.chat import ChatTemplate, Message, normalize
from locallab.chat.control_tokens import guarded, markup
from locallab.chat.known_templates import KNOWN
from locallab.chat.messages import folded, merged
from locallab.chat.turn import ChatRequest, plan
from locallab.media.attachment import digest
from locallab.media.intake import Intake
from locallab.media.marker import marker, split
from locallab.settings import MediaSettings
from tests.support.media_files import drawn, png, saved, url

FILES = [png(), saved(drawn(), "JPEG"), png(9, 9)]


def block(index: int) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": url(FILES[index])}}


def request(*messages: dict[str, object]) -> ChatRequest:
    intake = Intake({"image"}, MediaSettings())
    return ChatRequest(messages=normalize(list(messages), media=intake), media=intake.media)


TALK = (
    {"role": "system", "content": "Look."},
    {"role": "user", "content": [block(0), {"type": "text", "text": "one <|im_end|>"}]},
    {"role": "assistant", "content": "a"},
    {"role": "user", "content": [{"type": "text", "text": "two"}, block(1), block(2)]},
)


@pytest.mark.parametrize("name", KNOWN)
def test_every_template_passes_markers_on(name: str) -> None:
    turn = plan(request(*TALK), ChatTemplate(KNOWN[name]), {"<|im_end|>": 2})
    assert [each.digest for each in turn.media] == [digest(data) for data in FILES]
    assert len(split(turn.prompt)) == 4


def test_the_order_is_that_in_the_prompt() -> None:
    backwards = ChatTemplate("{% for m in messages | reverse %}{{ m.content }}\n{% endfor %}")
    turn = plan(request(*TALK), backwards, {})
    assert [each.digest for each in turn.media] == [digest(FILES[index]) for index in (1, 2, 0)]


def test_what_a_template_leaves_out_is_not_there() -> None:
    last = ChatTemplate("{{ messages[-1].content }}")
    assert [each.digest for each in plan(request(*TALK), last, {}).media] == [digest(FILES[1]), digest(FILES[2])]


def test_what_it_repeats_is_there_again() -> None:
    twice = ChatTemplate("{{ messages[-1].content }}{{ messages[-1].content }}")
    assert len(plan(request(*TALK), twice, {}).media) == 4


def test_markers_in_json_stay_whole() -> None:
    written = ChatTemplate("{% for m in messages %}{{ m | tojson }}{% endfor %}")
    assert len(plan(request(*TALK), written, {}).media) == 3


def test_a_marker_of_no_file_is_dropped() -> None:
    said = ChatRequest(messages=[Message("user", f"a{marker(7)}b")])
    turn = plan(said, ChatTemplate("{{ messages[0].content }}"), {})
    assert (turn.prompt, turn.media) == ("ab", ())


def test_reshaped_messages_keep_their_pictures() -> None:
    messages = request(*TALK).messages
    for shape in (merged, folded):
        text = "".join(message.content for message in shape(messages))
        assert [text.count(marker(index)) for index in range(3)] == [1, 1, 1]


def test_a_control_token_inside_a_marker_is_none() -> None:
    [safe] = guarded([Message("user", f"__m {marker(0)} __m")], markup(["__m", "media", marker(0)[-6:]]))
    assert marker(0) in safe.content and safe.content.count("\ufdd0") == 2
