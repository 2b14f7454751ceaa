from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from locallab import cli
from tests.support import tiny_gguf

BODY = {"messages": [{"role": "system", "content": "Today is 2026-11-28."}, {"role": "user", "content": "Hi"}], "seed": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp("report") / "tiny.gguf", "llama")


def written(folder: Path, name: str, body: Any) -> str:
    (folder / name).write_text(body if isinstance(body, str) else json.dumps(body))
    return str(folder / name)


def doctor(*args: str) -> Result:
    return CliRunner().invoke(cli.main, ["doctor", *args])


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    a = written(tmp_path, "A.json", BODY)
    return a, written(tmp_path, "B.json", Path(a).read_text().replace("28", "29").replace('"seed": 1', '"seed": 2'))


def test_as_people_see_it(model: Path, files: tuple[str, str]) -> None:
    done = doctor("--cache", *files, "--model", str(model))
    assert done.exit_code == 0
    lines = [" ".join(line.replace(str(Path(files[0]).parent) + "/", "").split()) for line in done.stdout.splitlines()]
    assert lines[0] == "model tiny"
    assert lines[1].endswith("tokens, sent to /v1/chat/completions")
    assert lines[3].startswith("shared the first ")
    assert lines[4] == "then messages[0].content: a date or time"
    assert lines[5].startswith("A.json ") and '"8.' in lines[5]
    assert lines[6].startswith("B.json ") and '"9.' in lines[6]
    assert lines[7].startswith("advice move it behind what stays the same")
    assert lines[8] == "harmless seed"


def test_as_programs_see_it(model: Path, files: tuple[str, str]) -> None:
    found = json.loads(doctor("--cache", *files, "--model", str(model), "--json").stdout)
    assert (found["model"], found["kind"], found["field"]) == ("tiny", "time", "messages[0].content")
    assert [request["file"] for request in found["requests"]] == list(files)
    assert 0 < found["shared_tokens"] < min(request["tokens"] for request in found["requests"])
    assert found["harmless"] == ["seed"]


def test_the_same_body_twice(model: Path, files: tuple[str, str]) -> None:
    done = doctor("--cache", files[0], files[0], "--model", str(model))
    assert "the prompts are the same" in done.stdout and "nothing to do" in done.stdout


def test_the_path_of_both(model: Path, files: tuple[str, str]) -> None:
    found = json.loads(doctor("--cache", *files, "--model", str(model), "--path", "/api/chat", "--json").stdout)
    assert {request["path"] for request in found["requests"]} == {"/api/chat"}


def registry(folder: Path, **paths: Path) -> str:
    entries = [f'- {{id: {name}, source: {{kind: file, path: "{path}"}}, description: x}}' for name, path in paths.items()]
    return written(folder, "models.yaml", "\n".join(["models:", *entries]) + "\n")


def test_the_model_that_the_bodies_name(tmp_path: Path, model: Path) -> None:
    known = registry(tmp_path, one=model, two=model, gone=tmp_path / "gone.gguf")
    one, two, gone = (written(tmp_path, f"{name}.json", {**BODY, "model": name}) for name in ("one", "two", "gone"))
    found = json.loads(doctor("--cache", one, two, "--registry", known, "--json").stdout)
    assert (found["model"], found["kind"], found["field"]) == ("one", "model", "model")
    same = json.loads(doctor("--cache", one, one, "--registry", known, "--json", "--model", "two").stdout)
    assert (same["model"], same["kind"]) == ("two", "same")
    missing = doctor("--cache", gone, gone, "--registry", known)
    assert missing.exit_code == 2
    assert missing.stderr == "locallab: gone is not on disk: `locallab pull gone` fetches it, --model names another\n"


BAD: dict[str, tuple[Any, str]] = {
    "no JSON": ("{", "is not valid JSON"),
    "not UTF-8": ("\udcff", "is not valid JSON"),
    "too deep": ("[" * 100_000, "is not valid JSON"),
    "no object": ([1], "expected the JSON object that is sent to a chat or completion route"),
    "no prompt": ({"a": 1}, "no field holds a prompt: expected messages, input or prompt"),
    "a wrong message": ({"messages": [{"role": "me"}]}, "messages[0].role: unknown role 'me'; known: system,"),
    "a wrong number": ({**BODY, "temperature": -1}, "temperature: must be at least 0"),
}


@pytest.mark.parametrize(("body", "reason"), BAD.values(), ids=BAD)
def test_a_bad_body(tmp_path: Path, model: Path, files: tuple[str, str], body: Any, reason: str) -> None:
    bad = tmp_path / "bad.json"
    bad.write_bytes((body if isinstance(body, str) else json.dumps(body)).encode(errors="surrogateescape"))
    done = doctor("--cache", files[0], str(bad), "--model", str(model))
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"locallab: {bad}: {reason}")


def test_a_missing_file(tmp_path: Path, files: tuple[str, str]) -> None:
    done = doctor("--cache", files[0], str(tmp_path / "none.json"))
    assert done.exit_code == 2
    assert done.stderr.startswith(f"locallab: {tmp_path}/none.json: cannot be read: No such file or directory; expected")


USES = {
    "one file": (["--cache", "A.json"], "Option '--cache' requires 2 arguments"),
    "an unknown path": (
        ["--cache", "A", "B", "--path", "/x"],
        "--path: cannot compare bodies of '/x'; expected one of",
    ),
    "two modes": (["--cache", "A", "B", "--clients"], "--cache cannot be combined with --clients"),
    "a port": (["--cache", "A", "B", "--port", "1"], "--port cannot be combined with --cache"),
    "an address": (["--cache", "A", "B", "--url", "http://x"], "--url requires --clients"),
    "a model alone": (["--model", "x"], "--model requires --cache"),
    "a model for clients": (["--clients", "--model", "x"], "--model requires --cache"),
}


@pytest.mark.parametrize(("args", "reason"), USES.values(), ids=USES)
def test_wrong_use(files: tuple[str, str], args: list[str], reason: str) -> None:
    done = doctor(*[{"A": files[0], "B": files[1]}.get(arg, arg) for arg in args])
    assert done.exit_code == 2
    assert done.stderr.startswith(f"locallab: {reason}")
