"""OpenAI's completions: the body, its jobs, and the shape of the answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from locallab.engine import ModelInfo
from locallab.engine.request import SamplingParams
from locallab.errors import InvalidField
from locallab.pool import Loaded
from locallab.server.dialects.answer_fields import Created, FinishReason, Logprob, ModelName, Timings, UsageFigures
from locallab.server.dialects.openai.chat import PromptLogprobs, StopReason, TokenIds, TokensBody, with_prompt
from locallab.server.dialects.openai.fields import COMPLETION
from locallab.server.dialects.openai.logprobs import Echo
from locallab.server.dialects.openai.service import Fingerprint
from locallab.server.fields.body import first
from locallab.server.fields.table import Others
from locallab.server.inference.aside import ITEM, aside
from locallab.server.inference.generation import Job
from locallab.server.inference.prompt import PROMPTS, Prompt, compile_constraint, gap_prompt, jobs_for, prompt_tokens, prompts


class CompletionBody(TokensBody, kw_only=True):
    prompt: Annotated[Any, Meta(description="a text, token ids, both in a row, or a list of those", extra_json_schema=PROMPTS)]
    echo: Annotated[bool | None, Meta(description="prepend the prompt to its answer, with its logprobs if requested")] = None
    suffix: Annotated[str | None, Meta(description="text after the answer, for models that can fill in the middle")] = None
    best_of: Annotated[int | None, Meta(description="answers to generate, of which the n likeliest are returned")] = None
    logprobs: Annotated[int | bool | None, Meta(description="number of alternatives per token; true is 0")] = None

    OTHERS: ClassVar[Others] = {**TokensBody.OTHERS, **COMPLETION}

    @property
    def alternatives(self) -> int | None:
        """The number of alternatives for each token; None: no logprobs."""
        if isinstance(self.logprobs, bool):
            return 0 if self.logprobs else None
        return first(self.logprobs, self.n_probs or None)  # type: ignore[no-any-return]

    @property
    def per_prompt(self) -> int:
        """The number of answers to generate for each prompt."""
        return self.best_of or self.count

    def params(self, info: ModelInfo, longest: int | None, **more: Any) -> SamplingParams:
        """As `Sampling.params`, with the constraint, and with the logprobs that are requested or needed to choose the best."""
        alternatives = self.alternatives
        if alternatives is not None:
            more |= {"logprobs": alternatives, "end_logprobs": True, "prompt_logprobs": bool(self.echo)}
        elif self.per_prompt > self.count:
            more["logprobs"] = 0
        if self.prompt_logprobs is not None:
            more |= with_prompt(alternatives, self.prompt_logprobs, self.stream)
        return super().params(info, longest, constraint=self.constraint(), **more)

    def check(self) -> None:
        """Raise InvalidField for unsupported combinations."""
        n = self.count
        if self.best_of is not None and self.best_of < n:
            raise InvalidField("best_of", f"must be at least n, which is {n}")
        if self.per_prompt > n and self.stream:
            raise InvalidField("best_of", "cannot be streamed: which answers are best is known at their end; set it to n")
        if self.suffix and self.echo:
            raise InvalidField("echo", "cannot be combined with suffix")
        if self.suffix and self.truncate_prompt_tokens:
            raise InvalidField("truncate_prompt_tokens", "cannot be combined with suffix")


@dataclasses.dataclass(frozen=True, slots=True)
class Completion:
    """The jobs of a request, those of a prompt next to each other, and the echo of each prompt."""

    jobs: list[Job]
    echoes: list[Echo | None]


async def complete(loaded: Loaded, body: CompletionBody, params: SamplingParams) -> Completion:
    """Tokenize, and compile the constraint. Raises InvalidField for what the model cannot do."""
    await compile_constraint(loaded, params.constraint)
    found = prompts(body.prompt)
    texts = [prompt for prompt in found if isinstance(prompt, str)]
    if body.suffix:
        if len(texts) < len(found):
            raise InvalidField("suffix", "works for prompts given as text only")
        tokens = [await gap_prompt(loaded, prompt, body.suffix) for prompt in texts]
    else:
        whole = await prompt_tokens(loaded, found)
        tokens = [body.cut(each, loaded.engine.info, params) for each in whole]
        found = [found[at] if len(kept) == len(whole[at]) else list[int | str](kept) for at, kept in enumerate(tokens)]
    echoes: list[Echo | None] = [None] * len(found)
    if body.echo:
        scored = body.alternatives is not None
        length = ITEM * sum(map(len, tokens))
        echoes = await aside(length, lambda _: [_echo(loaded, *each, scored) for each in zip(found, tokens, strict=True)])
    return Completion(jobs_for(tokens, params, body.per_prompt), echoes)


def _echo(loaded: Loaded, prompt: Prompt, tokens: Sequence[int], scored: bool) -> Echo:
    text = prompt if isinstance(prompt, str) else loaded.engine.detokenize(tokens)
    return Echo(text, loaded.engine.pieces(tokens) if scored else ())


class TextLogprobs(msgspec.Struct):
    """Log probabilities of the tokens, in columns; the first token of a prompt has none."""

    tokens: list[str]
    token_logprobs: list[Logprob | None]
    top_logprobs: list[dict[str, Logprob] | None]
    text_offset: Annotated[list[int], Meta(description="position in the text where each token begins")]


class TextChoice(msgspec.Struct):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason
    stop_reason: StopReason
    token_ids: TokenIds | None
    prompt_token_ids: TokenIds | None
    prompt_logprobs: PromptLogprobs | None


class TextCompletion(msgspec.Struct):
    """The answer of /v1/completions."""

    id: str
    object: Literal["text_completion"]
    created: Created
    model: ModelName
    system_fingerprint: Fingerprint
    choices: list[TextChoice]
    usage: UsageFigures
    timings: Timings
