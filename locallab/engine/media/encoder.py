"""The thread in which pictures and sounds become embeddings, and those that were made last."""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Protocol

from locallab.engine.media.runs import Embeddings, Run
from locallab.engine.sequence import Sequence
from locallab.errors import EngineFailure


class Encodes(Protocol):
    """A projector."""

    def encode(self, run: Run) -> Embeddings: ...


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """The embeddings of a run, or why there are none."""

    run: Run
    embeddings: Embeddings | None
    error: EngineFailure | None = None


class Encoder:
    """Encodes one run after the other, in a thread of its own; nobody who reads an answer waits for it.

    Used by the engine's thread, which gets what is encoded through `report`, for `take`. Embeddings are kept, the last used
    ones longest, up to `capacity` bytes.
    """

    def __init__(self, projector: Encodes, capacity: int, report: Callable[[Encoded], None]) -> None:
        self._projector = projector
        self._capacity = capacity
        self._report = report
        self._made: OrderedDict[bytes, Embeddings] = OrderedDict()
        self._size = 0
        self._busy = False
        self._wanted: queue.SimpleQueue[Run | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="encoder", daemon=True)
        self._thread.start()

    def serve(self, sequences: Iterable[Sequence]) -> None:
        """Give the sequences, which are in their turn, the embeddings that are there, and encode what the first one lacks."""
        for run in (run for sequence in sequences for run in sequence.unencoded):
            made = self._made.get(run.key)
            if made is not None:
                self._made.move_to_end(run.key)
                run.embeddings, run.source = made, None
            elif not self._busy:
                self._busy = True
                self._wanted.put(run)

    def take(self, encoded: Encoded, sequences: Iterable[Sequence]) -> list[Sequence]:
        """Keep what is encoded. Return those of the sequences that must end, since there is an error instead."""
        self._busy = False
        run, embeddings = encoded.run, encoded.embeddings
        if embeddings is None:
            return [sequence for sequence in sequences if sequence.needs(run)]
        run.embeddings, run.source = embeddings, None
        if run.key not in self._made:
            self._made[run.key] = embeddings
            self._size += embeddings.nbytes
        while self._size > self._capacity:
            _, dropped = self._made.popitem(last=False)
            self._size -= dropped.nbytes
        return []

    def close(self) -> None:
        """End the thread, after the run that it has begun."""
        self._wanted.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (run := self._wanted.get()) is not None:
            try:
                encoded = Encoded(run, self._projector.encode(run))
            except EngineFailure as error:
                encoded = Encoded(run, None, error)
            except Exception as error:
                encoded = Encoded(run, None, EngineFailure(f"{run.field} cannot be encoded: {error}"))
            self._report(encoded)
