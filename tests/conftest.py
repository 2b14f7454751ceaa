from __future__ import annotations

import gc
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants  # noqa: F401  # it reads HF_HUB_OFFLINE when it is imported: ahead of the tests that set it
import hypothesis
import pytest

from locallab import settings
from tests.support.cache import CACHE
from tests.support.dialect_requests import TEMPLATE
from tests.support.http_server import Serve, Served, start_in
from tests.support.served_process import Process, serving
from tests.support.wait import free_port

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so are tests started in the background; their children would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

GIVEN_MODEL = os.environ.get("LOCALLAB_TEST_MODEL")
GIVEN_HOME = settings.home()

hypothesis.settings.register_profile("ci", deadline=None)  # how long an example takes tells how busy the machine is
hypothesis.settings.register_profile("local", deadline=None, max_examples=40)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Three processes for two cores, since many tests wait; none for a single file, which is quicker in one."""
    cores = len(os.sched_getaffinity(0))
    alone = len(config.args) == 1 and ".py" in config.args[0]
    return 0 if alone else min(8, cores + (cores + 1) // 2)


def pytest_collection_finish() -> None:
    """Thousands of tests are there to stay: no collection of garbage has to look through them, and some tests make many."""
    gc.freeze()


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where each test gets folders of its own. Not from `mktemp`, which looks through all that it has made before."""
    return tmp_path_factory.mktemp("folders")


@pytest.fixture(scope="session", autouse=True)
def clean_session(folders: Path) -> Iterator[None]:
    """No server that several tests share sees, or changes, the user's settings, models or tokens."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        clean(monkeypatch, folders)
        yield


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, folders: Path) -> None:
    """Nor does a test, or see what another one left."""
    clean(monkeypatch, folders)


def clean(monkeypatch: pytest.MonkeyPatch, folders: Path) -> None:
    for name in os.environ:
        if name.startswith(("LOCALLAB_", "HF_", "HUGGING_FACE_", "NGROK_", "PYNGROK_", "TUNNEL_", "OTEL_")):
            monkeypatch.delenv(name)
    own = Path(tempfile.mkdtemp(dir=folders))
    for name in ("HF_HOME", "OLLAMA_MODELS", "LOCALLAB_HOME", "LOCALLAB_CONFIG"):
        folder = own / name.lower()
        folder.mkdir()
        monkeypatch.setenv(name, str(folder))
    # A file of a test is tried once, and not by each test that loads it: equal bytes are the same file.
    trials = CACHE / "trials"
    trials.mkdir(parents=True, exist_ok=True)
    (own / "locallab_home" / "trials").symlink_to(trials)


@pytest.fixture(scope="session")
def model_path() -> Path:
    """The embedded model's file: LOCALLAB_TEST_MODEL, else where `locallab serve` keeps it, else fetched once into a cache."""
    return Path(GIVEN_MODEL) if GIVEN_MODEL else fetched("smollm2:135m")


@pytest.fixture(scope="session")
def gemma() -> Path:
    """The file of Gemma 3 270M, a real model with a sliding window: from where `locallab serve` keeps it, or the cache."""
    return fetched("gemma3:270m-base")


def fetched(name: str) -> Path:
    from locallab.models import Registry, Store, default_path, fetch

    spec = Registry.load(default_path()).get(name)
    return Store(GIVEN_HOME / "models").path(spec) or fetch(spec, Store(CACHE))


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """Starts a server: `load` a model first or not, the engine's options, whether it counts as reachable from other machines,
    further routes, a tunnel, memory for so many models, other options for ServerSettings. Its keys are in
    tmp_path / "keys.json"."""
    return start_in(tmp_path)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with start_in(tmp_path_factory.mktemp("shared"))() as served:
        yield served


@pytest.fixture
def served(shared: Served) -> Served:
    """A server with a model loaded, for tests that load no other: its engine is as new."""
    shared.engine.reset()
    return shared


@pytest.fixture(scope="session")
def thinking_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with start_in(tmp_path_factory.mktemp("thinking"))(engine={"template": TEMPLATE, "context": 4096}) as served:
        yield served


@pytest.fixture
def thinking(thinking_server: Served) -> Served:
    """The same with a model that thinks and calls tools."""
    thinking_server.engine.reset()
    return thinking_server


@pytest.fixture(scope="session")
def live(model_path: Path) -> Iterator[Process]:
    """`locallab serve` with the embedded model."""
    with serving(model_path, "--context", "4096", "--native-rate", "1000/second") as process:
        yield process


@pytest.fixture
def unused_port() -> int:
    """One that nobody listens at."""
    return free_port()
