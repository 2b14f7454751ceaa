from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest

from locallab.cli.terminal import sampling_fields
from locallab.errors import ConfigError


def test_the_fields_are_those_of_requests() -> None:
    known = sampling_fields.fields()
    assert {"temperature", "top_p", "seed", "stop", "max_tokens"} <= set(known)
    assert "greedy" in known["temperature"]
    assert "repeat_penalty" not in known  # an alias


def test_names() -> None:
    assert sampling_fields.named("top_k") == "top_k"
    assert sampling_fields.named("repeat_penalty") == "repetition_penalty"
    with pytest.raises(ConfigError, match="temprature: there is no such field; did you mean temperature"):
        sampling_fields.named("temprature")
    with pytest.raises(ConfigError, match="zzz: there is no such field; /set lists the names"):
        sampling_fields.named("zzz")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("temperature", "0.5", 0.5),
        ("max_tokens", "20", 20),
        ("max_tokens", "2e1", 20),
        ("ignore_eos", "true", True),
        ("stop", "END", "END"),
        ("stop", "1", "1"),
        ("stop", '["a", "b"]', ["a", "b"]),
        ("stop", '"a b\\n"', "a b\n"),
        ("logit_bias", '{"5": -100}', {"5": -100}),
        ("lora", '[{"id": 0, "scale": 0.5}]', [{"id": 0, "scale": 0.5}]),
        ("temperature", "null", None),
    ],
)
def test_values(name: str, text: str, value: Any) -> None:
    found = sampling_fields.read(name, text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("temperature", "hot", "temperature: expected float.*; it is: sampling temperature; 0 is greedy"),
        ("temperature", "-1", "temperature: must be at least 0.*, got -1"),
        ("temperature", "NaN", "temperature: expected float"),
        ("top_p", "7", "top_p: must be above 0 and at most 1, got 7"),
        ("max_tokens", "1.5", "max_tokens: expected int"),
        ("samplers", '["luck"]', "samplers.*luck"),
        ("bad_words", "x", "bad_words: expected array"),
        ("ignore_eos", "maybe", "ignore_eos: expected bool"),
    ],
)
def test_what_is_no_value(name: str, text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        sampling_fields.read(name, text)


VALUES = ("1", "0.5", "true", "x", "[1]", '["a"]', '{"1": 1}', '[{"id": 0, "scale": 1}]', "null", "[" * 5000)


@pytest.mark.parametrize("name", sampling_fields.fields())
def test_every_field_takes_a_value_that_can_be_sent(name: str) -> None:
    taken = []
    for text in VALUES:
        with contextlib.suppress(ConfigError):
            taken.append(json.dumps(sampling_fields.read(name, text)))
    assert [value for value in taken if value != "null"]
