"""The Colab notebook, run as a notebook: with the embedded model, and the stand-in for ngrok in the place of the network."""

from __future__ import annotations

import ast
import configparser
import contextlib
import importlib.metadata
import re
import types
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

from tests.support.fake_tunnel import TOKEN, FakeNgrok

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "scripts" / "colab.ipynb"
T4 = "| NVIDIA-SMI 550.54.15   Driver Version: 550.54.15   CUDA Version: 12.4 |"
NVCC = "Cuda compilation tools, release 12.5, V12.5.82"


def notebook() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def code() -> str:
    cells = [cell.source for cell in notebook().cells if cell.cell_type == "code"]
    assert len(cells) == 1
    return str(cells[0])


def functions() -> dict[str, Any]:
    """What the cell defines, without what it does."""

    def defines(node: ast.stmt) -> bool:
        if isinstance(node, ast.Assign):
            return isinstance(node.value, (ast.Constant, ast.Tuple))
        return isinstance(node, ast.FunctionDef) or (isinstance(node, ast.Import) and node.names[0].name != "locallab")

    tree = ast.parse(code())
    names: dict[str, Any] = {}
    exec(compile(ast.Module([node for node in tree.body if defines(node)], []), "cell", "exec"), names)
    return names


def run(monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path, more: str = "", **environ: str) -> str:
    """Everything the notebook prints, run to its end; `more` is one more cell."""
    for name, value in {
        "LOCALLAB_COLAB_INSTALL": "skip",
        "LOCALLAB_COLAB_SECONDS": "0.2",
        "LOCALLAB_MODEL": str(model),
        "LOCALLAB_CONTEXT": "512",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "IPYTHONDIR": str(tmp_path),
        **environ,
    }.items():
        monkeypatch.setenv(name, value)
    book = notebook()
    book.cells.append(nbformat.v4.new_code_cell(f"{more}\nserver.stop()"))
    nbclient.NotebookClient(book, timeout=120, kernel_name="python3").execute(cwd=str(ROOT))
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output.get("text", "") for output in outputs)


def test_with_a_token_it_prints_a_public_address_and_a_key_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, model_path: Path, tmp_path: Path
) -> None:
    ngrok = FakeNgrok(tmp_path, monkeypatch)
    ask = (
        "import httpx; print(httpx.get(server.url + '/v1/models', headers={'authorization': f'Bearer {server.api_key}'}).text)"
    )
    text = run(monkeypatch, model_path, tmp_path, ask, NGROK_AUTHTOKEN=TOKEN)
    assert re.search(r"^Public address: http://127\.0\.0\.1:\d+$", text, re.MULTILINE)
    assert re.search(r"^  key +ll-[\w-]{43}$", text, re.MULTILINE)
    assert re.search(r"\d+ answers, \d+ running, \d+ waiting \| [\d.]+ tokens/s \| tunnel open, this month \d+ requests", text)
    assert '"object":"list"' in text
    assert TOKEN not in text
    assert (len(ngrok.pids), ngrok.running) == (1, [])


def test_a_token_that_is_refused_leaves_the_model_for_the_notebook(
    monkeypatch: pytest.MonkeyPatch, model_path: Path, tmp_path: Path
) -> None:
    ngrok = FakeNgrok(tmp_path, monkeypatch)
    ngrok.goes("bad token")
    ask = "print(server.openai().models.list().data[0].id)"
    text = run(monkeypatch, model_path, tmp_path, ask, LOCALLAB_NGROK_TOKEN=TOKEN)
    assert "No public address: ngrok does not know this token" in text
    assert "answers inside this notebook, at http://127.0.0.1:" in text
    assert text.rstrip().endswith(model_path.stem)
    assert TOKEN not in text


@pytest.mark.parametrize(
    ("smi", "nvcc", "name"),
    [
        (T4, NVCC, "cu125"),
        (T4, "", "cu124"),
        (T4, NVCC.replace("12.5", "12.8"), "cu125"),
        (T4.replace("12.4", "13.0"), "", "cu130"),
        (T4.replace("12.4", "13.1"), "", "cu130"),
        (T4.replace("12.4", "13.2"), "", "cu132"),
        (T4, NVCC.replace("12.5", "11.8"), "cu118"),
        (T4, NVCC.replace("12.5", "12.0"), "cpu"),
        (T4, NVCC.replace("12.5", "14.0"), "cpu"),
        ("", NVCC, "cpu"),
        ("", "", "cpu"),
    ],
)
def test_the_build_for_a_runtime(smi: str, nvcc: str, name: str) -> None:
    cell = functions()
    assert cell["build"](cell["cuda"](smi, nvcc)) == name


def test_what_is_installed() -> None:
    commands: list[list[str]] = []
    cell = functions()
    cell["SOURCE"] = "git+https://example.com/locallab"
    cell["install"]((12, 5), run=lambda command, check: commands.append(command))
    first, second = (" ".join(command[3:]) for command in commands)
    assert first == (
        "install --quiet --no-deps --only-binary :all: --index-url https://abetlen.github.io/llama-cpp-python/whl/cu125 "
        + cell["LLAMA"]
    )
    assert second == "install --quiet git+https://example.com/locallab"
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert cell["LLAMA"] in config["options"]["install_requires"].split()


def test_the_source_is_found_beside_the_notebook(tmp_path: Path) -> None:
    found = functions()["found"]
    assert Path(found(str(NOTEBOOK.parent))).resolve() == ROOT
    folder = tmp_path / "content"
    (folder / "sample_data").mkdir(parents=True)
    with pytest.raises(SystemExit, match="upload its wheel or clone its repository"):
        found(str(folder))
    (folder / "clone" / "locallab" / "engine").mkdir(parents=True)
    assert Path(found(str(folder))) == folder / "clone"
    (folder / "locallab_server-0.1.0-py3-none-any.whl").touch()
    (folder / "locallab-0.11.3-py3-none-any.whl").touch()
    assert Path(found(str(folder))).name == "locallab_server-0.1.0-py3-none-any.whl"


@pytest.mark.parametrize(
    ("installed", "refused"),
    [(["locallab-server", "click"], False), (["locallab", "locallab-server"], True), (["locallab"], True), (["click"], True)],
)
def test_another_project_of_this_name_is_refused(installed: list[str], refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    distributions = [types.SimpleNamespace(metadata={"Name": name}) for name in installed]
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: iter(distributions))
    with pytest.raises(SystemExit, match="is another project") if refused else contextlib.nullcontext():
        functions()["refuse_strangers"]()


def test_a_gpu_without_a_build_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    functions()["install"]((14, 0), run=lambda command, check: None)
    assert "no prebuilt llama.cpp for CUDA 14.0: the GPU will not be used" in capsys.readouterr().out


def test_prompts_are_kept_on_the_drive_if_it_is_mounted(tmp_path: Path) -> None:
    cell = functions()
    assert cell["cache"](str(tmp_path)) == str(tmp_path / "locallab-cache")
    assert cell["cache"](str(tmp_path / "not mounted")) == cell["cache"]() == "auto"


def test_commands_that_are_missing_or_fail_say_nothing() -> None:
    output = functions()["output"]
    assert output("no-such-command-here") == output("false") == ""
    assert output("echo", "x") == "x\n"


def test_it_is_clean() -> None:
    book = notebook()
    nbformat.validate(book)
    assert [cell.cell_type for cell in book.cells] == ["markdown", "code", "markdown"]
    assert book.cells[1].outputs == [] and book.cells[1].execution_count is None
    assert "faq.html" in book.cells[2].source and "12 hours" in book.cells[2].source
