"""What is measured when a model is loaded, before anything is asked of it."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence

from locallab.engine.adapters import BASE, chosen
from locallab.engine.batch import Batch
from locallab.engine.context import Context
from locallab.engine.costs import StepCosts
from locallab.engine.limits import LEAST_SPACING, Limits, snapshot_spacing
from locallab.engine.lora import Adapters
from locallab.engine.state_format import UnknownFormat
from locallab.errors import EngineFailure
from locallab.memory_model import STEP

TOKENS = 64
ANSWERS = (8, 32)
"""Numbers of answers whose step is measured on a GPU, besides one."""
SECONDS = 1.0
"""Time beyond which no larger chunk of a prompt is measured."""
SWITCHES = 2
"""Times that a change of the adapters is measured, in both directions."""

logger = logging.getLogger(__name__)


def calibrate(context: Context, costs: StepCosts, n_vocab: int, limits: Limits, n_ctx: int, on_gpu: bool) -> Limits:
    """Measure a decode step, a prompt chunk and a move, to cut the first chunks for this machine; this also warms up. Return
    the limits with what the state of a sequence takes."""
    count = min(TOKENS, limits.batch)
    if on_gpu:
        _measure_shapes(context, costs, n_vocab, limits)
    for n in (1, 1, count):
        seconds = _decode(context, n_vocab, [n])
        costs.observe(int(n == 1), n if n > 1 else 0, seconds)
    try:
        context.learn_format(count, limits.cuts)
    except UnknownFormat as error:
        logger.info("%s: prefixes of this model are kept whole", error)
        limits = dataclasses.replace(limits, cuts=False)
    began = time.perf_counter()
    rows, fixed = context.save(0, 0, count)
    costs.observe_move(count, time.perf_counter() - began)
    context.clear()
    spacing = snapshot_spacing(fixed.nbytes, limits.cache_bytes, n_ctx, LEAST_SPACING * costs.move_seconds, costs.per_token())
    return dataclasses.replace(limits, row_bytes=rows.shape[1], fixed_bytes=fixed.nbytes, snapshot_every=spacing)


def _measure_shapes(context: Context, costs: StepCosts, n_vocab: int, limits: Limits) -> None:
    """Measure steps with several answers and larger chunks of a prompt: on a GPU they take hardly longer than small ones. Each
    is computed twice, since the first time includes building its graph and loading its kernels."""
    for answers in ANSWERS:
        if answers <= min(limits.parallel, limits.slots, limits.outputs, limits.batch):
            costs.observe(answers, 0, [_decode(context, n_vocab, [1] * answers) for _ in range(2)][-1])
    least = min(TOKENS, limits.batch)
    most = min(limits.ubatch, limits.batch, limits.cells // (limits.slots if limits.even else 1))
    seconds, known = _decode(context, n_vocab, [least]), least
    for tokens in sorted({min(STEP, most), most} - {least}):
        if tokens < least or seconds * tokens / known > SECONDS:
            break
        seconds, known = [_decode(context, n_vocab, [tokens]) for _ in range(2)][-1], tokens
        costs.observe(0, tokens, seconds)


def measure_switch(context: Context, lora: Adapters, n_vocab: int) -> float:
    """Return the seconds that a batch takes longer when the one before was computed with other adapters: by the least of some
    figures, those of the model alone, since adapters take their time too."""
    every = chosen(lora.infos, tuple((id, 1.0) for id in range(len(lora.infos))))
    switched, same = [], []
    for _ in range(SWITCHES):
        for adapters in (every, BASE):
            context.use(adapters)
            seconds = [_decode(context, n_vocab, [1]) for _ in range(2)]
            switched.append(seconds[0])
            same.append(seconds[1])
    context.clear()
    return max(0.0, min(switched) - min(same))


def _decode(context: Context, n_vocab: int, counts: Sequence[int]) -> float:
    """Compute so many tokens of the first sequences, after forgetting all; return the seconds."""
    total = sum(counts)
    positions = [position for count in counts for position in range(count)]
    sequences = [sequence for sequence, count in enumerate(counts) for _ in range(count)]
    outputs = [int(position == count - 1) for count in counts for position in range(count)]
    batch = Batch(total)
    batch.fill([i % n_vocab for i in range(total)], positions, sequences, outputs)
    context.clear()
    began = time.perf_counter()
    if context.decode(batch):
        raise EngineFailure("the KV cache has no room for the first tokens")
    return time.perf_counter() - began
