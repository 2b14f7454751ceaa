"""llama.cpp's completion and infill: the bodies and their prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from locallab.engine import ModelInfo
from locallab.engine.request import SamplingParams
from locallab.errors import InvalidField
from locallab.pool import Loaded
from locallab.server.dialects.llamacpp.fields import LLAMA
from locallab.server.fields.biases import read_biases
from locallab.server.fields.constraint import Structured
from locallab.server.fields.sampler_order import ANY_NAMES, read_samplers
from locallab.server.fields.table import Others
from locallab.server.inference.prompt import PROMPTS, File, gap_prompt, prompt_tokens, prompts


class LlamaBody(Structured, kw_only=True):
    """Common fields of both routes."""

    model: Annotated[str | None, Meta(description="name of the model; an unknown name is the current one")] = None
    stream: Annotated[bool | None, Meta(description="stream the answer")] = None
    return_progress: Annotated[bool | None, Meta(description="with stream: report prompt-processing progress")] = None
    n_predict: Annotated[int | None, Meta(description="maximum tokens of the answer; -1: up to the context's end")] = None
    n_probs: Annotated[int | None, Meta(description="number of alternatives per token; 0: no probabilities")] = None
    samplers: Annotated[
        Any,
        Meta(
            description="the samplers in their order, as names or letters; unknown ones are left out and noted in a header",
            extra_json_schema=ANY_NAMES,
        ),
    ] = None
    n_cmpl: Annotated[int | None, Meta(description="number of answers to each prompt")] = None
    return_tokens: Annotated[bool | None, Meta(description="return the token ids of the answer, as streams always do")] = None
    post_sampling_probs: Annotated[
        bool | None, Meta(description="true: probabilities are those after the samplers, as prob and top_probs")
    ] = None
    response_fields: Annotated[
        list[str] | None, Meta(description="fields of the answer to return, those in objects by their path: timings/prompt_n")
    ] = None

    OTHERS: ClassVar[Others] = LLAMA
    LIMITS: ClassVar[tuple[str, ...]] = ("n_predict", "max_tokens")

    def __post_init__(self) -> None:
        read_biases(self.logit_bias)

    def sampling(self, info: ModelInfo, longest: int, notes: list[str]) -> SamplingParams:
        """Return the parameters, and note unknown samplers. Raises InvalidField."""
        order = None if self.samplers is None else read_samplers(self.samplers, notes)
        progress = bool(self.stream and self.return_progress)
        constraint = self.constraint()
        body = msgspec.structs.replace(self, samplers=order)
        scored = {"logprobs": self.n_probs or None, "drawn_logprobs": bool(self.n_probs and self.post_sampling_probs)}
        return body.params(info, longest, constraint=constraint, progress=progress, **scored)


class LlamaCompletionBody(LlamaBody, kw_only=True):
    prompt: Annotated[Any, Meta(description="a text, token ids, both in a row, or a list of those", extra_json_schema=PROMPTS)]

    async def tokens(self, loaded: Loaded, notes: list[str]) -> list[list[int]]:
        """Tokenize the prompts. Raises InvalidField."""
        return await prompt_tokens(loaded, prompts(self.prompt))


class ExtraFile(msgspec.Struct):
    text: str
    filename: str | None = None


class InfillBody(LlamaBody, kw_only=True):
    input_prefix: Annotated[str | None, Meta(description="text before the gap")] = None
    input_suffix: Annotated[str | None, Meta(description="text after the gap")] = None
    input_extra: Annotated[
        list[ExtraFile] | None, Meta(description="other files, the most important last; the first are left out if not all fit")
    ] = None
    prompt: Annotated[str | None, Meta(description="beginning of the text that fills the gap")] = None

    async def tokens(self, loaded: Loaded, notes: list[str]) -> list[list[int]]:
        """Tokenize the text around the gap, with as many of the last files as fit; note how many do not.

        Raises InvalidField for a model that cannot fill in, and without prefix and suffix.
        """
        if self.input_prefix is None and self.input_suffix is None:
            raise InvalidField("input_prefix", "is missing, and so is input_suffix")
        files = [(each.filename or "", each.text) for each in self.input_extra or ()]
        reserved = loaded.engine.info.context // 4  # for the answer, which may be limited to less
        if self.n_predict is not None and self.n_predict >= 0:
            reserved = min(reserved, max(1, self.n_predict))
        room = loaded.engine.info.context - reserved
        left_out, most, tokens = 0, len(files), await self._around(loaded, files)
        if len(tokens) > room:
            while left_out < most:
                middle = (left_out + most) // 2
                fits = len(await self._around(loaded, files[middle:])) <= room
                left_out, most = (left_out, middle) if fits else (middle + 1, most)
            tokens = await self._around(loaded, files[left_out:])
        if left_out:
            notes.append(f"input_extra: {left_out} of {len(files)} files do not fit the context and were left out")
        return [tokens]

    async def _around(self, loaded: Loaded, files: Sequence[File]) -> list[int]:
        return await gap_prompt(
            loaded, self.input_prefix or "", self.input_suffix or "", files, self.prompt or "", field="input_suffix"
        )
