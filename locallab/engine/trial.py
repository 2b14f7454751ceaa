"""A first load of a model's file in a process of its own, which may end it: `python -m locallab.engine.trial`.

llama.cpp ends the process for many kinds of damage in a file, and never returns for some. So does this program, instead of
the server that started it (`locallab/pool/trial.py`).
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import queue
import resource
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from locallab.engine.adapters import AdapterFile
from locallab.engine.embedding.embedder import EmbeddingEngine
from locallab.engine.engine import Engine
from locallab.engine.media.runs import Prompt, joined
from locallab.engine.request import Constraint, SamplingParams, TokenEvent
from locallab.engine.text_engine import TextEngine
from locallab.errors import ModelLoadError
from locallab.settings import EngineSettings, resolve

CONTEXT = 256
"""Tokens of context: the least that llama.cpp allocates."""

_PR_SET_PDEATHSIG = 1

MEDIA_CONTEXT = 4096
"""The same with a picture and a sound."""
SIDE = 64
"""Pixels of the side of the picture."""

ADAPTER = "adapter"
"""What names an adapter to try with the model, beside the names of settings."""

ANSWER = 4
"""Tokens of an answer."""

REFUSED = 3
"""Exit status for a file that llama.cpp refuses without harm; the reason is on stdout."""

TEXT = "Aa 1é\n\t" + "".join(
    map(chr, [*range(256), *range(0x800, 0x10000, 0x1000), 0x1F600, 0x40000, 0x80000, 0xC0000, 0x100000])
)
"""Text with each byte that UTF-8 has: bytes are looked up in the vocabulary."""


def smallest(settings: EngineSettings) -> dict[str, Any]:
    """Return the settings of a trial: the real ones with the least memory and the model alone, as keyword arguments."""
    usual = CONTEXT if settings.mmproj is None else MEDIA_CONTEXT
    context = min(usual, settings.context or usual)
    least = {"context": context, "kv_tokens": 2 * context, "parallel": 2, "cache_ram_mib": 1}
    return {**dataclasses.asdict(settings), **least, "cache_disk": None, "draft_model": None}


def attempt(path: Path, settings: Mapping[str, Any], embeds: bool, adapter: Path | None = None) -> None:
    """Do with a file what a server does: load it, read its whole vocabulary, tokenize, compute, compile a grammar; all of it
    with an adapter, if there is one.

    Raises what makes the file useless: ModelLoadError, or what the first request gets. May end the process.
    """
    chosen = resolve(EngineSettings, ("trial", settings))
    if embeds:
        model = EmbeddingEngine(path, chosen)
        with contextlib.closing(model):
            tokens = _read(model)
            model.embed([tokens[: model.info.context]]).result()
        return
    adapters = [AdapterFile("tried", adapter)] if adapter else []
    text = TextEngine(path, chosen, adapters=adapters)
    with contextlib.closing(text):
        tokens = _read(text)
        choice = Constraint("choice", '["a", "b"]')
        constraint: Constraint | None = choice
        try:
            text.prepare(choice)
        except Exception:  # a model can answer though it follows no grammar
            constraint = None
        prompt = joined([*_media(text), tokens[: text.info.context // 2]])
        last: queue.SimpleQueue[TokenEvent] = queue.SimpleQueue()
        text.activate([(each.name, each.scale) for each in adapters])
        text.submit(prompt, SamplingParams(max_tokens=ANSWER, ignore_eos=True, constraint=constraint, logprobs=1), last.put)
        while (event := last.get()).finish_reason is None:
            pass
        if event.error is not None:
            raise event.error


def _media(engine: TextEngine) -> Iterator[Prompt]:
    """Yield a small picture and a short sound, as far as the model takes them."""
    if "image" in engine.info.modalities:
        yield engine.picture(SIDE, SIDE, bytes(3 * SIDE * SIDE), "a picture")
    if "audio" in engine.info.modalities:
        yield engine.sound(bytes(4 * engine.audio_rate), "a sound")


def _read(engine: Engine) -> list[int]:
    """Look up every token of the vocabulary, and return the tokens of TEXT."""
    engine.pieces(range(engine.info.n_vocab))
    for special in (False, True):
        tokens = engine.tokenize(TEXT, add_special=special, parse_special=special)
    return tokens or [0]


def main(arguments: list[str]) -> int:
    """Try the file. `arguments`: its path, "text" or "embeddings", seconds, settings as NAME=VALUE, perhaps `adapter=PATH`.
    Return the exit status."""
    path, kind, seconds, *settings = arguments
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends what is inside llama.cpp too, whether or not anyone waits for it
    signal.alarm(int(seconds))
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):  # where memory runs out, this process ends first
        Path("/proc/self/oom_score_adj").write_text("1000")
    try:
        given = dict(each.split("=", 1) for each in settings)
        adapter = given.pop(ADAPTER, None)
        attempt(Path(path), given, kind == "embeddings", Path(adapter) if adapter else None)
    except Exception as error:  # whatever is raised in this process would be in the other: it is no harm
        print(error.reason if isinstance(error, ModelLoadError) else str(error) or type(error).__name__)
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
