from __future__ import annotations

import pytest

from locallab.chat.reasoning import TAGS, Tags, ThinkParser, tags_of
from tests.support.splits import every_split

THINK = Tags("<think>", "</think>")

CHANNEL = Tags("<|channel>", "<channel|>", "thought")

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
    answer = every_split(lambda: ThinkParser(THINK, open), raw)
    assert (answer.reasoning, answer.text) == (reasoning, text)


@pytest.mark.parametrize(
    ("raw", "reasoning", "text"),
    [("<|channel>thought\nso\n<channel|>Hello", "so", "Hello"), ("<|channel>final", "", "<|channel>final"), ("Hi", "", "Hi")],
)
def test_reasoning_in_a_channel(raw: str, reasoning: str, text: str) -> None:
    answer = every_split(lambda: ThinkParser(CHANNEL, False), raw)
    assert (answer.reasoning, answer.text) == (reasoning, text)


@pytest.mark.parametrize("tags", TAGS, ids=lambda tags: str(tags.begin))
def test_the_template_determines_the_tags(tags: Tags) -> None:
    assert tags_of(f"... {tags.opening} ... {tags.end} ...") == tags
    assert tags_of("{{ messages }}") is None
