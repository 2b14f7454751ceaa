from __future__ import annotations

import numpy as np
import pytest

from locallab.engine.answer import Answer
from locallab.engine.device_sampling import DevicePlan
from locallab.engine.request import SamplingParams
from locallab.engine.sequence import Sequence
from locallab.engine.step_plan import FORCED, Chunk, batch_entries, device_plans
from tests.support.fake_llama import FakeModel

CHUNKS = {  # prompt, answer and computed tokens, those in the chunk: last, outputs, is_answer
    "the middle of a prompt": ((10, 0, 0, 5), (False, 0, False)),
    "the end of a prompt": ((10, 0, 5, 5), (True, 1, False)),
    "its last token alone": ((10, 0, 9, 1), (True, 1, True)),
    "a sampled token": ((10, 3, 12, 1), (True, 1, True)),
    "some of those that a grammar forced": ((10, 9, 11, 4), (False, 0, True)),
    "more than an answer's": ((10, 40, 10, FORCED + 1), (False, 0, False)),
    "computed again": ((10, 5, 0, 15), (True, 1, False)),
}


@pytest.mark.parametrize(("numbers", "expected"), CHUNKS.values(), ids=CHUNKS)
def test_chunks(numbers: tuple[int, int, int, int], expected: tuple[bool, int, bool]) -> None:
    n_prompt, n_answer, computed, count = numbers
    answer = Answer(SamplingParams(), FakeModel())  # type: ignore[arg-type]
    sequence = Sequence(0, [1] * (n_prompt + n_answer), n_prompt, 100, answer, lambda event: None, computed=computed)
    chunk = Chunk.of(sequence, count)
    assert (chunk.start, chunk.count) == (computed, count)
    assert (chunk.last, chunk.outputs, chunk.is_answer) == expected


@pytest.mark.parametrize(("computed", "count", "outputs"), [(0, 4, 4), (4, 6, 6), (9, 1, 1)])
def test_every_token_of_a_scored_prompt_has_an_output(computed: int, count: int, outputs: int) -> None:
    answer = Answer(SamplingParams(logprobs=0, prompt_logprobs=True), FakeModel())  # type: ignore[arg-type]
    for _ in range(computed):
        answer.score(np.zeros((1, FakeModel.n_vocab), np.float32), [1] * 10, 10)
    sequence = Sequence(0, [1] * 10, 10, 100, answer, lambda event: None, computed=computed)
    assert Chunk.of(sequence, count).outputs == outputs


def test_a_batch_has_an_entry_for_each_token() -> None:
    same = Answer(SamplingParams(), FakeModel())  # type: ignore[arg-type]
    prompt = Sequence(1, [*range(50, 60)], 10, 99, same, lambda event: None, slot=3, computed=2)
    answer = Sequence(2, [*range(70, 76)], 4, 99, same, lambda event: None, slot=1, computed=5)
    chunks = [Chunk.of(answer, 1), Chunk.of(prompt, 2)]
    assert batch_entries(chunks) == ([75, 52, 53], [5, 2, 3], [1, 3, 3], [1, 0, 0])
    chunks = [Chunk.of(prompt, 1), Chunk.verifying(answer, [8, 9])]
    assert batch_entries(chunks) == ([52, 75, 8, 9], [2, 5, 6, 7], [3, 1, 1, 1], [0, 1, 1, 1])


def test_what_has_several_outputs_is_drawn_on_the_host() -> None:
    plan = DevicePlan(SamplingParams(), ())
    answer = Answer(SamplingParams(), FakeModel(), device_plan=plan)  # type: ignore[arg-type]
    sequences = [Sequence(i, [1] * 6, 4, 99, answer, lambda event: None, slot=i, computed=i + 3) for i in range(3)]
    chunks = [Chunk.of(sequences[0], 1), Chunk.of(sequences[1], 2), Chunk.verifying(sequences[2], [8])]
    assert device_plans(chunks) == {1: plan, 2: None}
