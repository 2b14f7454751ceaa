"""scripts/deploy/Dockerfile is carried out, line by line, in a Debian root, and its image runs; Dockerfile.cuda has the same
commands on NVIDIA's images."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support import tiny_gguf
from tests.support.chroot_image import CERTIFICATES, bootstrap, build, export
from tests.support.deploy_programs import DEPLOY, missing, program
from tests.support.dockerfile import Instruction, Stage, assignments, context, parse
from tests.support.wait import LONG_PATIENCE, free_port, until
from tests.support.wheel import repacked

ROOT = DEPLOY.parents[1]
CPU, CUDA = (parse((DEPLOY / name).read_text()) for name in ("Dockerfile", "Dockerfile.cuda"))
USER = 10001


def test_the_parser_reads_what_docker_reads() -> None:
    text = """\
# a comment
FROM debian:x-slim AS build
RUN one \\
    # inside
    && two
ARG A=1 B
ENV C="a b" \\

    D=2
from debian:x-slim
COPY --from=build --chown=1:2 /a /b
CMD ["a", "b c"]
"""
    build, last = parse(text)
    assert (build.base, build.name, last.name) == ("debian:x-slim", "build", "1")
    assert build.instructions[0] == Instruction("RUN", {}, "one     && two")
    assert assignments(build.last("ARG")) == {"A": "1", "B": None}
    assert assignments(build.last("ENV")) == {"C": "a b", "D": "2"}
    assert last.last("COPY") == Instruction("COPY", {"from": "build", "chown": "1:2"}, "/a /b")
    assert last.last("CMD").is_exec and last.last("CMD").words == ["a", "b c"] and not build.instructions[0].is_exec
    for wrong in ("RUN x", "FROM a\nADD b c", "FROM a\nRUNN b"):
        with pytest.raises(ValueError, match=r"is in no stage|unknown instruction"):
            parse(wrong)


def test_the_context_is_the_package_and_nothing_else() -> None:
    found = {str(path) for path in context(ROOT, (ROOT / ".dockerignore").read_text().splitlines())}
    assert {"setup.cfg", "models.yaml", "locallab/settings.py", "locallab/server/page/app.js"} <= found
    tops = {path.partition("/")[0] for path in found}
    assert tops == {"LICENSE", "README.md", "locallab", "models.yaml", "pyproject.toml", "setup.cfg"}
    assert not any("__pycache__" in path for path in found)


@pytest.mark.parametrize("stages", [CPU, CUDA], ids=["cpu", "cuda"])
def test_an_image_gets_signals_and_is_not_root(stages: list[Stage]) -> None:
    last = stages[-1]
    assert last.last("ENTRYPOINT").is_exec and last.last("CMD").is_exec and last.last("USER").text == f"{USER}:{USER}"
    health = last.last("HEALTHCHECK")
    assert health.text.startswith("CMD [") and {"start-period", "interval", "timeout"} <= set(health.flags)


def test_both_dockerfiles_have_the_same_commands() -> None:
    """So those of Dockerfile.cuda are executed below, except that nvcc compiles nothing there, and on Debian, not on Ubuntu,
    which has the packages by the same names."""
    for cpu, cuda in zip(CPU, CUDA, strict=True):
        own = [each for each in cpu.instructions if not each.text.startswith("CMAKE_ARGS=")]
        assert own == [each for each in cuda.instructions if not each.text.startswith("CMAKE_ARGS=")]
    images = [re.fullmatch(r"nvidia/cuda:([\d.]+)-(devel|runtime)-(ubuntu[\d.]+)", stage.base) for stage in CUDA]
    assert all(images) and [image[2] for image in images if image] == ["devel", "runtime"]
    assert len({(image[1], image[3]) for image in images if image}) == 1  # the same CUDA on the same system


def test_each_dockerfile_compiles_for_its_device() -> None:
    cpu, cuda = (
        next(each["CMAKE_ARGS"] for each in map(assignments, stages[0].all("ARG")) if "CMAKE_ARGS" in each)
        for stages in (CPU, CUDA)
    )
    assert cpu == "-DGGML_NATIVE=OFF"
    assert cuda and set(cuda.split()) > {"-DGGML_NATIVE=OFF", "-DGGML_CUDA=ON"}


def first_process(outer: psutil.Process) -> psutil.Process | None:
    """Return the first process of the image: the entrypoint, once it is there."""
    return next((each for each in outer.children() if each.uids().real == USER), None)


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    program("debootstrap")
    if os.geteuid() != 0:
        missing("debootstrap and chroot need root")
    yield bootstrap("trixie", tmp_path)
    shutil.rmtree(tmp_path)  # two gigabytes


@pytest.mark.deploy
@pytest.mark.timeout(1500)
def test_the_image_is_built_and_runs(base: Path, tmp_path: Path) -> None:
    assert CPU[0].base == CPU[1].base == f"debian:{base.name}-slim"
    wheels = base / "wheels"
    wheels.mkdir()
    repacked("llama-cpp-python", wheels)
    shutil.copy(CERTIFICATES, base / "certificates.crt")
    own = {"PIP_CERT": "/certificates.crt"}
    image = build(CPU, base, export(ROOT, tmp_path / "context"), {"PIP_FIND_LINKS": "/wheels"}, own)

    volume = tmp_path / "volume"
    subprocess.run(["cp", "-a", f"{image.root}/data", str(volume)], check=True)  # as an engine fills a new volume
    shutil.copy(tiny_gguf.write(tmp_path / "tiny.gguf", "llama"), volume)
    own = {"LOCALLAB_MODEL": "/data/tiny.gguf", "LOCALLAB_PORT": str(free_port())}

    def healthy() -> bool:
        return image.run(image.healthcheck, image.user, **own).returncode == 0

    assert not healthy()
    with image.running([*image.entrypoint, *CPU[-1].last("CMD").words], volume, **own) as outer:
        until(lambda: outer.status() == psutil.STATUS_ZOMBIE or healthy(), LONG_PATIENCE)
        entrypoint = first_process(outer)
        assert entrypoint is not None and entrypoint.gids().real == USER and healthy()
        assert (volume / "keys.json").stat().st_uid == USER  # it listens beyond the machine: it has made a key
        entrypoint.send_signal(signal.SIGTERM)
        assert outer.wait(60) == 0
