"""OpenAI's completions: the body, its jobs, and the shape of the answer."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from locallab.engine.request import SamplingParams
from locallab.errors import InvalidField
from locallab.pool import Loaded
from locallab.server.dialects.answer_fields import Created, FinishReason, Logprob, ModelName, UsageFigures
from locallab.server.dialects.openai.chat import OpenAIBody
from locallab.server.dialects.openai.logprobs import Echo
from locallab.server.inference.generation import Job
from locallab.server.inference.prompt import PROMPTS, compile_constraint, gap_prompt, jobs_for, prompts, text_prompt


class CompletionBody(OpenAIBody, kw_only=True):
    prompt: Annotated[Any, Meta(description="a text, texts, token ids, or lists of them", extra_json_schema=PROMPTS)]
    echo: Annotated[bool | None, Meta(description="put the prompt before its answer; with logprobs, its own too")] = None
    suffix: Annotated[str | None, Meta(description="what follows the answer, for models that can fill in the middle")] = None
    best_of: Annotated[int | None, Meta(description="answers to write, of which the n likeliest are given")] = None
    logprobs: Annotated[int | bool | None, Meta(description="likeliest tokens to tell in place of each; true is 0")] = None
    n_predict: Annotated[int | None, Meta(description="llama.cpp's name of max_tokens")] = None

    LIMITS: ClassVar[tuple[str, ...]] = ("max_tokens", "n_predict")

    @property
    def alternatives(self) -> int | None:
        """How many to tell for each token; None: no logprobs at all."""
        if isinstance(self.logprobs, bool):
            return 0 if self.logprobs else None
        return self.logprobs

    @property
    def written(self) -> int:
        """Answers to write to each prompt."""
        return self.best_of or self.n or 1

    def params(self, n_vocab: int, longest: int | None, **more: Any) -> SamplingParams:
        """As `Sampling.params`, with the constraint, and with the logprobs that are requested or needed to choose the best."""
        alternatives = self.alternatives
        if alternatives is not None:
            more |= {"logprobs": alternatives, "prompt_logprobs": bool(self.echo)}
        elif self.written > (self.n or 1):
            more["logprobs"] = 0
        return super().params(n_vocab, longest, constraint=self.constraint(), **more)

    def check(self) -> None:
        """Raises InvalidField for what cannot be served."""
        n = self.n or 1
        if self.best_of is not None and self.best_of < n:
            raise InvalidField("best_of", f"must be at least n, which is {n}")
        if self.written > n and self.stream:
            raise InvalidField("best_of", "cannot be streamed: which answers are best is known at their end; set it to n")
        if self.suffix and self.echo:
            raise InvalidField("echo", "does not go with suffix")


@dataclasses.dataclass(frozen=True, slots=True)
class Completion:
    """The jobs of a request, next to each other those of a prompt; what is put ahead of each prompt's answers."""

    jobs: list[Job]
    echoes: list[Echo | None]


async def complete(loaded: Loaded, body: CompletionBody, params: SamplingParams) -> Completion:
    """Tokenize, and compile the constraint. Raises InvalidField for what the model cannot do."""
    await compile_constraint(loaded, params.constraint)
    given = prompts(body.prompt)
    if body.suffix:
        return Completion(
            jobs_for([await _gap(loaded, each, body.suffix) for each in given], params, body.written), [None] * len(given)
        )
    tokens = [await text_prompt(loaded, each) if isinstance(each, str) else each for each in given]
    echoes = [_echo(loaded, *each, body) if body.echo else None for each in zip(given, tokens, strict=True)]
    return Completion(jobs_for(tokens, params, body.written), echoes)


async def _gap(loaded: Loaded, prompt: str | list[int], suffix: str) -> list[int]:
    if not isinstance(prompt, str):
        raise InvalidField("suffix", "works for prompts given as text only")
    return await gap_prompt(loaded, prompt, suffix)


def _echo(loaded: Loaded, given: str | list[int], tokens: list[int], body: CompletionBody) -> Echo:
    text = given if isinstance(given, str) else loaded.engine.detokenize(given)
    return Echo(text, loaded.engine.pieces(tokens) if body.alternatives is not None else ())


class TextLogprobs(msgspec.Struct):
    """How likely the tokens were, a list for each thing to tell; of the first token of all there is nothing to tell."""

    tokens: list[str]
    token_logprobs: list[Logprob | None]
    top_logprobs: list[dict[str, Logprob] | None]
    text_offset: Annotated[list[int], Meta(description="where in the text each begins")]


class TextChoice(msgspec.Struct):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason


class TextCompletion(msgspec.Struct):
    """The answer of /v1/completions."""

    id: str
    object: Literal["text_completion"]
    created: Created
    model: ModelName
    choices: list[TextChoice]
    usage: UsageFigures
