"""How models fit, as the routes show it."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from locallab import cli
from locallab.models import HubSource, ModelSpec
from tests.support import tiny_gguf
from tests.support.http_server import Serve, Served
from tests.support.served_process import Process

LARGE = ModelSpec(id="large", source=HubSource("acme/large", file="large.gguf"), size=10**12, description="a large one")
UNKNOWN = ModelSpec(id="unknown", source=HubSource("acme/unknown"), description="of unknown size")


def test_the_listing_says_what_fits_when_it_is_asked_for(serve: Serve) -> None:
    with serve() as served:
        for each in (LARGE, UNKNOWN):
            served.pool.registry.add("a test", each)
        plain = served.http.get("/models/available").json()
        assert "machine" not in plain and not any("fit" in each for each in plain["models"])
        found = served.http.get("/models/available?fit=true").json()
        fits = {each["name"]: each["fit"] for each in found["models"]}
    assert (fits["tiny:1b"]["fits"], fits["large"]["fits"], fits["unknown"]["fits"]) == (True, False, None)
    assert fits["large"]["reason"].startswith("does not fit: even on the CPU")
    assert "does not say its size" in fits["unknown"]["reason"]
    assert fits["tiny:1b"]["total_bytes"] > 90_000_000 and fits["tiny:1b"]["tokens_per_second"] > 0
    # all that are loaded would make room: there is memory for ten models
    assert found["machine"] == {
        "ram_bytes": 1_000_000_000,
        "gpus": [],
        "threads": found["machine"]["threads"],
        "gpu_build": False,
    }


def test_what_the_entry_says_is_listed(served: Served) -> None:
    found = served.http.get("/models/available").json()["models"][0]
    assert (found["current"], found["recommended_for"], found["license"], found["hub"]) == (True, [], None, None)


def test_a_report(served: Served) -> None:
    found = served.http.get("/models/fit/first").json()
    assert found["model"] == "tiny:1b" and "path" not in found
    assert {each["context"] for each in found["table"]} >= {2048, 32768}
    assert found["chosen"]["speed"]["tokens_per_second"] > 0
    assert served.http.get("/models/fit/none").status_code == 404


def test_the_command_line_says_the_same(serve: Serve, tmp_path: Path) -> None:
    path = tiny_gguf.write(tmp_path / "tiny.gguf", "llama")
    said = json.loads(CliRunner().invoke(cli.main, ["fit", str(path), "--json"]).stdout)
    with serve(load=None) as served:
        served.pool.registry.resolve(str(path))
        found = served.http.get("/models/fit/tiny").json()
    for name in ("weights_bytes", "layers", "context_trained", "kv_bytes_per_token"):
        assert found[name] == said[name]
    assert [each["total_bytes"] for each in found["table"]] == [each["total_bytes"] for each in said["table"]]


def test_details_of_the_real_model(live: Process) -> None:
    import httpx

    [model] = [each for each in httpx.get(f"{live.url}/models/available?fit=true").json()["models"] if each["current"]]
    assert model["fit"]["fits"] and not model["fit"]["approximate"]
    status = httpx.get(f"{live.url}/models/status/{model['name']}").json()
    assert status["settings"] == {} and status["adapters"] == {} and status["current"]
