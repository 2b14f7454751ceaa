"""scripts/deploy/compose.yaml and compose.cuda.yaml, against the schema of the specification and the files they name."""

from __future__ import annotations

import contextlib
import importlib.resources
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import redis
import yaml

from locallab.server.runner import ENDING
from locallab.settings import ServerSettings
from tests.support.deploy_programs import DEPLOY, program
from tests.support.dockerfile import Instruction, parse
from tests.support.wait import until

FILES = ("compose.yaml", "compose.cuda.yaml")


def services(file: str = "compose.yaml") -> Any:
    return yaml.safe_load((DEPLOY / file).read_text())["services"]


@pytest.mark.parametrize("file", FILES)
def test_it_is_as_the_specification_has_it(file: str) -> None:
    schemas = importlib.resources.files("check_jsonschema").joinpath("builtin_schemas/vendor/compose-spec.json")
    checked = jsonschema.Draft7Validator(json.loads(schemas.read_text()))
    found = yaml.safe_load((DEPLOY / file).read_text())
    assert [error.message for error in checked.iter_errors(found)] == []
    assert list(checked.iter_errors({**found, "servces": {}}))  # it knows what it does not know


@pytest.mark.parametrize("file", FILES)
def test_the_images_are_those_of_the_dockerfiles(file: str) -> None:
    build = services(file)["locallab"]["build"]
    root = (DEPLOY / services()["locallab"]["build"]["context"]).resolve()
    stages = parse((root / build["dockerfile"]).read_text())
    [image] = stages[-1].all("VOLUME")
    health = Instruction("CMD", {}, stages[-1].last("HEALTHCHECK").text.removeprefix("CMD ")).words
    own = services()["locallab"]
    assert own["healthcheck"]["test"] == ["CMD", *health]
    assert own["volumes"] == [f"models:{image.text}"]
    [port] = own["ports"]
    assert port.endswith(f":{stages[-1].last('EXPOSE').text}") and port.startswith("127.0.0.1:")


def test_the_file_of_keys_is_read_and_there_is_an_example() -> None:
    [file] = services()["locallab"]["env_file"]
    assert (DEPLOY / f"{file['path']}.example").is_file() and not file["required"]
    assert f"scripts/deploy/{file['path']}" in (DEPLOY.parents[1] / ".gitignore").read_text().splitlines()


def test_running_requests_have_the_time_to_end() -> None:
    period = services()["locallab"]["stop_grace_period"]
    assert float(period.removesuffix("s")) > ServerSettings().grace + 2 * ENDING


def test_redis_is_bounded_and_reached_by_the_server_alone(tmp_path: Path) -> None:
    own = services()["redis"]
    assert "ports" not in own
    url = re.fullmatch(r"redis://(\w+):6379/0", services()["locallab"]["environment"]["LOCALLAB_REDIS_URL"])
    assert url and url[1] in services() and services()["locallab"]["depends_on"] == {url[1]: {"condition": "service_healthy"}}
    assert own["volumes"] == ["shared:/data"] and own["read_only"]
    for kept in (None, b"kept"):
        with running(own["command"], tmp_path) as client:
            assert client.get("key") == kept
            assert client.config_get("maxmemory") == {"maxmemory": str(256 << 20)}
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "volatile-ttl"}
            client.set("key", "kept")


@contextlib.contextmanager
def running(command: list[str], folder: Path) -> Iterator[redis.Redis]:
    """Run Redis with its files in a folder, and end it by SIGKILL."""
    socket = folder / "socket"
    socket.unlink(missing_ok=True)
    further = ["--appendfsync", "always", "--port", "0", "--unixsocket", str(socket)]
    with subprocess.Popen([program(command[0]), *command[1:], *further], cwd=folder, stdout=subprocess.DEVNULL) as server:
        try:
            until(socket.exists)
            with redis.Redis(unix_socket_path=str(socket)) as client:
                until(lambda: answers(client))
                yield client
        finally:
            server.kill()


def answers(client: redis.Redis) -> bool:
    with contextlib.suppress(redis.exceptions.BusyLoadingError, redis.exceptions.ConnectionError):
        return bool(client.ping())
    return False
