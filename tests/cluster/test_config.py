"""The configuration of a cluster: what it may say, and what is refused in one line that names the field."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from click.testing import CliRunner

from locallab import cli
from locallab.cluster import config as configs
from locallab.cluster import launch
from locallab.cluster.config import ClusterConfig, ModelConfig, Scaling, parse
from locallab.cluster.entrance import naming
from locallab.errors import ConfigError
from locallab.models import Registry
from tests.support.fake_engine import registry

MODEL = {"model": "smollm2:135m"}


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"modles": []}, "unknown field `modles`.*known there: models, server, ray, fronts"),
        ({"models": []}, r"length >= 1 - at `\$.models`"),
        ([], "Expected `object`"),
        ({"models": [{**MODEL, "replica": 2}]}, r"unknown field `replica` - at `\$.models\[0\]`; known there: model, replicas"),
        ({"models": [{**MODEL, "replicas": {"mim": 0}}]}, "unknown field `mim`.*known there: min, max, queued_tokens"),
        ({"models": [{**MODEL, "replicas": 0}]}, "Expected `int` >= 1"),
        (
            {"models": [{**MODEL, "replicas": {"min": 3, "max": 2}}]},
            r"models\[0\]: replicas: max must be at least min, got 2 and 3",
        ),
        (
            {"models": [{**MODEL, "settings": {"contxt": 1}}]},
            r"models\[0\]: settings: unknown setting 'contxt'; did you mean context",
        ),
        ({"models": [{**MODEL, "settings": {"context": "many"}}]}, r"models\[0\]: settings: context: Expected `int"),
        ({"models": [MODEL, MODEL]}, r"models\[1\]: model: 'smollm2:135m' is listed already; raise its replicas"),
        ({"models": [MODEL], "server": {"hst": 1}}, "server: unknown setting 'hst'; did you mean host"),
        ({"models": [MODEL], "server": {"port": -1}}, "server: port: Expected `int` >= 0"),
        ({"models": [MODEL], "server": {"model": "x"}}, "server: model: list it under `models`"),
        ({"models": [{**MODEL, "gpus": -1}]}, "Expected `float` >= 0"),
    ],
)
def test_what_is_wrong_is_named(found: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse(found, "cluster.yaml")
    assert "\n" not in str(caught.value) and str(caught.value).startswith("cluster.yaml: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read: No such file"),
        ("- a: [", "is not YAML: while parsing"),
        ("x" * (configs.LONGEST_FILE + 1), "is larger than 1 MiB"),
        ("[" * 5000, "is not YAML"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "cluster.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        configs.read(str(path))


def test_what_is_printed_can_be_read_again() -> None:
    scaling = Scaling(min=0, max=4, queued_tokens=100)
    config = ClusterConfig(
        models=[ModelConfig(model="a", replicas=scaling, gpus=0.5, settings={"context": 512}), ModelConfig(model="b")],
        server={"port": 9000},
        fronts=2,
    )
    assert parse(yaml.safe_load(yaml.safe_dump(configs.as_dict(config))), "here") == config
    printed = configs.for_serve(config)
    assert printed["http_options"] == {"host": "127.0.0.1", "port": 9000}
    assert parse(printed["applications"][0]["args"], "here") == config


def test_flags_go_ahead_of_the_file() -> None:
    config = parse(
        {"models": [{**MODEL, "settings": {"context": 512, "threads": 2}}], "server": {"port": 1, "host": "::1"}}, "f"
    )
    [changed] = configs.with_flags(config, {"context": 1024, "temperature": None}).models
    assert changed.settings == {"context": 1024, "threads": 2}
    server = configs.server_settings(config, "f", ("--port", {"port": 2}))
    assert (server.port, server.host) == (2, "::1")


def test_names_find_their_model(tmp_path: Path) -> None:
    models = registry(tmp_path)
    ids = [each.id for each in models]
    named = naming(models, {"some/path.gguf": ids[0], ids[1]: ids[1]})
    assert named("") == named("anything") == named("some/PATH.gguf") == named(ids[0].upper()) == (ids[0], "")
    assert named(ids[1]) == (ids[1], "")
    assert named(f"{ids[1]}:poet") == (ids[1], "poet")


@pytest.mark.parametrize(
    ("versions", "message"),
    [
        ({}, "ray is not installed; a cluster needs Ray 2.60 or later, below 3: pip install 'locallab-server\\[ray\\]'"),
        ({"ray": "2.60.1"}, "fastapi is not installed"),
        ({"ray": "2.9.3", "fastapi": "1"}, "Ray 2.9.3 is installed"),
        ({"ray": "3.0.0", "fastapi": "1"}, "Ray 3.0.0 is installed"),
    ],
)
def test_ray_must_be_there_in_a_version_that_works(
    monkeypatch: pytest.MonkeyPatch, versions: dict[str, str], message: str
) -> None:
    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(ConfigError, match=message):
        launch.check_ray()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere.invalid:6379", "127.0.0.1:99999"])
def test_an_address_where_nothing_answers_is_refused_at_once(address: str) -> None:
    with pytest.raises(ConfigError, match=f"ray: nothing answers at {address}"):
        launch._check_address(address)


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        ("models: [{model: nosuch}]", [], "unknown model 'nosuch'"),
        ("models: [{model: /nowhere/x.gguf}]", [], "there is no file /nowhere/x.gguf"),
        ("models: [{model: 'smollm2:135m'}]", ["--model", "x"], "--model: list it under `models`"),
        ("models: [{model: 'smollm2:135m'}]", ["--host", "no such host"], "is not an address of this machine"),
        ("models: [{model: 'smollm2:135m'}]", ["--no-auth", "--tunnel"], "a public address requires a key"),
    ],
)
def test_serve_refuses_before_anything_is_started(tmp_path: Path, text: str, flags: list[str], message: str) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    result = CliRunner().invoke(cli.main, ["serve", "--no-supervise", "--cluster", str(path), "--port", "0", *flags])
    assert result.exit_code == 2 and message in result.output and len(result.output.splitlines()) == 1


def test_a_port_in_use_is_refused_before_anything_is_started(tmp_path: Path) -> None:
    import socket

    path = tmp_path / "cluster.yaml"
    path.write_text("models: [{model: 'smollm2:135m'}]")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        flags = ["--no-supervise", "--cluster", str(path), "--host", "127.0.0.1", "--port", str(taken.getsockname()[1])]
        result = CliRunner().invoke(cli.main, ["serve", *flags])
    assert result.exit_code == 2 and "is in use" in result.output


def test_a_configuration_is_printed_for_serve(tmp_path: Path) -> None:
    def printed(*arguments: str) -> Any:
        result = CliRunner().invoke(cli.main, ["cluster", "config", *arguments])
        assert result.exit_code == 0, result.output
        return yaml.safe_load(result.output)["applications"][0]

    assert printed()["args"] == {"models": [{"model": Registry.discover().default.id}]}
    assert printed("smollm2:135m", "--replicas", "2")["args"] == {"models": [{"model": "smollm2:135m", "replicas": 2}]}
    path = tmp_path / "cluster.yaml"
    path.write_text("models: [{model: 'smollm2:135m', gpus: 1}]")
    assert printed("--cluster", str(path))["args"] == {"models": [{"model": "smollm2:135m", "gpus": 1.0}]}
    assert CliRunner().invoke(cli.main, ["cluster", "config", "nosuch"]).exit_code == 2


def test_fields_of_a_configuration_are_described() -> None:
    """Each is named on the page, so that nobody has to read the source."""
    page = (Path(configs.__file__).parent / "README.md").read_text()
    for kind in (ClusterConfig, ModelConfig, Scaling):
        for name in msgspec.structs.fields(kind):
            assert f"`{name.name}`" in page, name.name
