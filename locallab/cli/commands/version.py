"""`locallab version`: the installed versions."""

from __future__ import annotations

import json
import platform
from typing import Any

import click

from locallab.cli.tables import facts
from locallab.version import __version__


@click.command("version")
@click.option("--json", "as_json", is_flag=True, help="print an object of locallab, python, platform and llama_cpp")
def command(as_json: bool) -> None:
    """Print the versions of LocalLab, llama-cpp-python and Python, and the build options of llama.cpp."""
    build: dict[str, Any]
    try:
        from locallab.engine import build_features

        build = {**build_features()}
    except (ImportError, OSError, RuntimeError) as error:
        build = {"error": f"cannot be loaded: {error}"}
    if as_json:
        known = {"locallab": __version__, "python": platform.python_version(), "platform": platform.platform()}
        click.echo(json.dumps({**known, "llama_cpp": build}))
        return
    facts(
        [
            ("locallab", __version__),
            ("llama-cpp-python", build.get("llama_cpp_python") or build["error"]),
            ("llama.cpp", build.get("system_info")),
            ("gpu", _gpu(build) if "cuda" in build else None),
            ("python", platform.python_version()),
            ("platform", platform.platform()),
        ]
    )


def _gpu(build: dict[str, Any]) -> str:
    return "yes, by CUDA" if build["cuda"] else "yes" if build["gpu_offload"] else "no: built for the CPU only"
