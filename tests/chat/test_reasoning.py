from __future__ import annotations

import pytest

from locallab.chat.reasoning import TAGS, Tags, ThinkParser, tags_of
from tests.chat.splits import every_split

THINK = Tags("<think>", "</think>")

CASES = [
    (False, "Hello", "", "Hello"),
    (False, "<think>\nso it\n goes\n</think>\n\nHello", "so it\n goes", "Hello"),
    (False, "\n<think>so</think>Hello <think>again</think>", "so", "Hello <think>again</think>"),
    (False, "a < b and <thin", "", "a < b and <thin"),
    (False, "<think>cut off", "cut off", ""),
    (False, "<think></think>Hello", "", "Hello"),
    (True, "so it goes</think>\nHello", "so it goes", "Hello"),
    (True, "cut < off </thin", "cut < off </thin", ""),
    (True, "</think>Hello ", "", "Hello "),
]


@pytest.mark.parametrize(("open", "raw", "reasoning", "text"), CASES)
def test_reasoning_and_text_come_apart_however_they_are_cut(open: bool, raw: str, reasoning: str, text: str) -> None:
    said = every_split(lambda: ThinkParser(THINK, open), raw)
    assert (said.reasoning, said.text) == (reasoning, text)


@pytest.mark.parametrize("tags", TAGS, ids=lambda tags: str(tags.begin))
def test_the_template_tells_the_tags(tags: Tags) -> None:
    assert tags_of(f"... {tags.begin} ... {tags.end} ...") == tags
    assert tags_of("{{ messages }}") is None
