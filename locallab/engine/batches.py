"""From the chunks of a plan to what llama_decode takes."""

from __future__ import annotations

from locallab.engine.batch import AnyBatch, Batch, EmbeddingBatch
from locallab.engine.step_plan import Chunk, batch_entries


class Batches:
    """Makes batches of chunks, one at a time."""

    def __init__(self, capacity: int, places: int = 1) -> None:
        self._tokens = Batch(capacity)
        self._embeddings = EmbeddingBatch(capacity, places)

    def of(self, chunks: list[Chunk]) -> tuple[AnyBatch, list[int]]:
        """Return the batch of chunks, which are text or one part of a picture, and which of its entries have logits."""
        tokens, positions, slots, wanted = batch_entries(chunks)
        outputs = [i for i, want in enumerate(wanted) if want]
        run = chunks[0].run
        if run is None:
            self._tokens.fill(tokens, positions, slots, wanted)
            return self._tokens, outputs
        self._embeddings.fill(run, chunks[0].start - run.start, positions[0], slots[0], wanted)
        return self._embeddings, outputs
