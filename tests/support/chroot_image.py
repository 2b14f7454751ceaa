"""Images built and run without a container engine: each RUN line of a Dockerfile in a debootstrap root, by chroot.

Commands are the first process of a process namespace and have a mount namespace, so that nothing of them is left.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from tests.support.deploy_programs import program
from tests.support.dockerfile import Instruction, Stage, assignments, context

MIRROR = "http://deb.debian.org/debian"
SETTINGS = {
    "etc/dpkg/dpkg.cfg.d/docker-apt-speedup": "force-unsafe-io\n",
    "etc/apt/apt.conf.d/docker-no-languages": 'Acquire::Languages "none";\n',
}
"""Files that Debian's images have besides: they spare time."""
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SLOW = 600


def bootstrap(suite: str, folder: Path) -> Path:
    """Install the base system of a Debian release into a new folder."""
    root = folder / suite
    command = [program("debootstrap"), "--variant=minbase", suite, str(root), MIRROR]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=SLOW)
    assert done.returncode == 0, done.stdout[-3000:]
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    for name, text in SETTINGS.items():
        (root / name).write_text(text)
    return root


class Image:
    """The file system of a stage, and what its instructions have set."""

    def __init__(self, base: Path, root: Path) -> None:
        subprocess.run(["cp", "-a", str(base), str(root)], check=True)
        self.root = root
        self.environment: dict[str, str] = {"PATH": PATH}
        self.folder = "/"
        self.user = "0:0"
        self.entrypoint: list[str] = []
        self.healthcheck: list[str] = []
        self.volumes: list[str] = []

    def command(self, words: Sequence[str], user: str, environment: Mapping[str, str], mounts: Sequence[str] = ()) -> list[str]:
        """Return the command that runs `words` in the image; `mounts` are what `mount` is called with before that."""
        root = shlex.quote(str(self.root))
        variables = [f"{name}={value}" for name, value in {**self.environment, **environment}.items()]
        chroot = ["chroot", f"--userspec={user}", "--groups=", str(self.root), "env", "-i", "-C", self.folder, *variables]
        steps = [f"mount {each}" for each in (*mounts, f"-t proc proc {root}/proc", f"--rbind /dev {root}/dev")]
        script = " && ".join([*steps, f"exec {shlex.join([*chroot, *words])}"])
        return ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script]

    def run(self, words: Sequence[str], user: str = "0:0", **environment: str) -> subprocess.CompletedProcess[str]:
        command = self.command(words, user, environment)
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=SLOW)

    @contextlib.contextmanager
    def running(self, words: Sequence[str], volume: Path, **environment: str) -> Iterator[psutil.Process]:
        """Run `words` as the image's user, the first process of its namespace. The file system is read-only but for the
        volume and /tmp, as Kubernetes may have it. Yields that process."""
        root = shlex.quote(str(self.root))
        mounts = [
            f"--bind {root} {root}",
            f"-o remount,ro,bind {root}",
            f"--bind {shlex.quote(str(volume))} {root}{self.volumes[0]}",
            f"-t tmpfs tmpfs {root}/tmp",
        ]
        command = self.command(words, self.user, environment, mounts)
        with tempfile.TemporaryFile("w+") as log:
            outer = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            try:
                yield psutil.Process(outer.pid)
            except BaseException:
                log.seek(0)
                print(log.read())
                raise
            finally:
                outer.kill()
                outer.wait()


def build(stages: Sequence[Stage], base: Path, source: Path, arguments: Mapping[str, str], own: Mapping[str, str]) -> Image:
    """Carry out the stages and return the last one's image. `arguments` are those of --build-arg, `own` further variables of
    commands, which an engine would pass on or set up: certificates, a proxy."""
    images: dict[str, Image] = {}
    for stage in stages:
        images[stage.name] = image = Image(base, base.parent / f"image-{stage.name}")
        values: dict[str, str] = {}
        for instruction in stage.instructions:
            if instruction.name == "ARG":
                given = {name: arguments.get(name, default) for name, default in assignments(instruction).items()}
                values.update({name: value for name, value in given.items() if value is not None})
            else:
                _carry_out(instruction, image, images, source, {**own, **values})
    return image


def _carry_out(
    instruction: Instruction, image: Image, images: Mapping[str, Image], source: Path, variables: Mapping[str, str]
) -> None:
    match instruction.name:
        case "RUN":
            done = image.run(["/bin/sh", "-c", instruction.text], image.user, **variables)
            assert done.returncode == 0, f"RUN {instruction.text}\n{done.stdout[-3000:]}"
        case "COPY":
            _copy(instruction, image, images, source)
        case "ENV":
            image.environment.update({name: value or "" for name, value in assignments(instruction).items()})
        case "WORKDIR":
            image.folder = instruction.text
            _below(image.root, image.folder).mkdir(parents=True, exist_ok=True)
        case "USER":
            image.user = instruction.text
        case "VOLUME":
            image.volumes += instruction.words
        case "ENTRYPOINT":
            image.entrypoint = instruction.words
        case "HEALTHCHECK":
            image.healthcheck = Instruction("CMD", {}, instruction.text.removeprefix("CMD ")).words


def _copy(instruction: Instruction, image: Image, images: Mapping[str, Image], source: Path) -> None:
    *names, target = instruction.words
    origin = instruction.flags.get("from")
    into = _below(image.root, os.path.join(image.folder, target))
    for name in names:
        found = _below(images[origin].root, name) if origin else source / name
        if found.is_dir():
            shutil.copytree(found, into, symlinks=True, dirs_exist_ok=True)
        else:
            into.mkdir(parents=True, exist_ok=True)
            shutil.copy2(found, into / found.name)


def _below(root: Path, path: str) -> Path:
    return root / path.lstrip("/")


def export(folder: Path, target: Path) -> Path:
    """Copy the context of a build, what its .dockerignore leaves, from `folder` to `target`."""
    for path in context(folder, (folder / ".dockerignore").read_text().splitlines()):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(folder / path, target / path)
    return target
