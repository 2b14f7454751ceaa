from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import click
import pytest
from click.testing import CliRunner
from msgspec import Meta

from locallab.cli.settings_options import flag, layers, options, unknown


@dataclasses.dataclass(frozen=True)
class Sample:
    some_count: Annotated[int, Meta(ge=1, le=9, description="a count")] = 3
    limit: Annotated[int | None, Meta(description="a limit; default: none")] = None
    kind: Annotated[Literal["a", "b"], Meta(description="a kind")] = "a"
    quick: Annotated[bool, Meta(description="whether to hurry")] = False
    share: Annotated[float, Meta(ge=0, description="a share")] = 0.5
    size: Annotated[float, Meta(gt=0, le=9, description="a size")] = 1.0
    name: Annotated[str, Meta(description="a name")] = "x"
    way: Annotated[bool | Literal["by", "with"], Meta(description="a way")] = False
    pairs: Annotated[str | None, Meta(description="pairs, comma-separated", extra={"each": "KEY=VALUE"})] = None


def run(*arguments: str) -> tuple[dict[str, Any], click.testing.Result]:
    seen: dict[str, Any] = {}

    @click.command()
    @options(Sample)
    def command(**flags: Any) -> None:
        seen.update(flags)

    return seen, CliRunner().invoke(command, arguments)


def test_flag() -> None:
    assert flag("kv_type") == "--kv-type"


def test_unused_options_are_none() -> None:
    assert set(run()[0].values()) == {None, False}
    names = ["some_count", "limit", "kind", "quick", "share", "size", "name", "way", "no_way", "pairs"]
    assert sorted(run()[0]) == sorted(names)


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ([], None),
        (["--way"], "by"),
        (["--way", "with"], "with"),
        (["--way=with"], "with"),
        (["--way", "--quick"], "by"),
        (["--no-way"], False),
        (["--way", "--no-way"], False),
    ],
)
def test_a_switch_that_takes_words(arguments: list[str], value: bool | str | None) -> None:
    values = [found["way"] for _, found in layers(Sample, run(*arguments)[0]) if "way" in found]
    assert values == ([] if value is None else [value])
    assert "is not one of" in run("--way", "off")[1].output


def test_options_have_their_types() -> None:
    numbers = ("--some-count", "4", "--limit", "5", "--share", "1", "--size", "2.5")
    seen, _ = run(*numbers, "--kind", "b", "--no-quick", "--name", "y")
    assert seen == {
        "some_count": 4,
        "limit": 5,
        "kind": "b",
        "quick": False,
        "share": 1.0,
        "size": 2.5,
        "name": "y",
        "way": None,
        "no_way": False,
        "pairs": None,
    }
    assert run("--quick")[0]["quick"] is True


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--some-count", "10"], "1<=x<=9"),
        (["--some-count", "few"], "few"),
        (["--limit", "x"], "not a valid integer"),
        (["--kind", "c"], "'a', 'b'"),
        (["--share", "-1"], "x>=0"),
        (["--size", "0"], "0<x<=9"),
        (["--size", "2GB"], "'2GB' is not a valid"),
    ],
)
def test_wrong_values_are_refused(arguments: list[str], reason: str) -> None:
    _, result = run(*arguments)
    assert result.exit_code == 2
    assert arguments[0] in result.stderr
    assert reason in result.stderr


def test_a_flag_may_be_given_several_times() -> None:
    assert run("--pairs", "a=1")[0]["pairs"] == "a=1"
    assert run("--pairs", "a=1", "--pairs", "b=2,c=3")[0]["pairs"] == "a=1,b=2,c=3"
    assert "--pairs KEY=VALUE pairs, comma-separated" in " ".join(run("--help")[1].output.split())


def test_help_has_descriptions_defaults_and_ranges() -> None:
    text = " ".join(run("--help")[1].output.split())
    assert "--some-count INTEGER a count [default: 3] [1<=x<=9]" in text
    assert "--limit INTEGER a limit; default: none --kind [a|b] a kind [default: a]" in text
    assert "--quick / --no-quick whether to hurry [default: off]" in text
    assert "--share NUMBER a share [default: 0.5] [x>=0]" in text


def test_layers_put_flags_after_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALLAB_SOME_COUNT", "2")
    found = layers(Sample, {"some_count": 4, "limit": None, "name": "y", "another": 1})
    assert found == [
        ("LOCALLAB_SOME_COUNT", {"some_count": "2"}),
        ("--some-count", {"some_count": 4}),
        ("--name", {"name": "y"}),
    ]


def test_variables_that_set_nothing() -> None:
    environ = dict.fromkeys(
        ("LOCALLAB_SOME_COUNT", "LOCALLAB_HOME", "LOCALLAB_URL", "LOCALLAB_CHAT_HISTORY", "LOCALLAB_SOMECOUNT", "PATH"), "1"
    )
    assert unknown(environ, Sample) == ["LOCALLAB_SOMECOUNT"]


def test_only_some_settings() -> None:
    @click.command()
    @options(Sample, only=("kind", "limit"))
    def command(**flags: Any) -> None: ...

    assert [option.name for option in command.params] == ["limit", "kind"]
