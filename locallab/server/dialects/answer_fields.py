"""Shapes of answers that several dialects share; the API's description is made from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from locallab.engine.request import Progress, Usage
from locallab.models.spec import Modality

FinishReason = Annotated[
    Literal["stop", "length"], Meta(description="stop: the answer is complete; length: it reached a limit")
]
ModelName = Annotated[str, Meta(description="the model that answered")]
Logprob = Annotated[float, Meta(le=0, description="the natural logarithm of a probability")]
Created = Annotated[int, Meta(description="seconds since the epoch")]
Modalities = Annotated[list[Modality], Meta(description="what its prompts may have in them")]


class CachedTokens(msgspec.Struct):
    cached_tokens: Annotated[int, Meta(ge=0, description="tokens of the prompt that were in the prefix cache")]


class DraftedTokens(msgspec.Struct):
    """Tokens that were drafted: guessed from what the request has, and then verified, several in a step."""

    accepted_prediction_tokens: Annotated[int, Meta(ge=0, description="those that are part of the answer")]
    rejected_prediction_tokens: Annotated[int, Meta(ge=0, description="the others; they do not count as tokens of the answer")]


class UsageFigures(msgspec.Struct):
    """Token counts of the request."""

    prompt_tokens: Annotated[int, Meta(ge=0)]
    completion_tokens: Annotated[int, Meta(ge=0)]
    total_tokens: Annotated[int, Meta(ge=0)]
    prompt_tokens_details: CachedTokens
    completion_tokens_details: Annotated[
        DraftedTokens | msgspec.UnsetType, Meta(description="of requests for which anything was drafted")
    ] = msgspec.UNSET


class Timings(msgspec.Struct):
    """Durations and rates of the request, as llama.cpp's server tells them; 0 for what was not computed."""

    cache_n: Annotated[int, Meta(ge=0, description="tokens of the prompt that were in the prefix cache")]
    prompt_n: Annotated[int, Meta(ge=0, description="tokens of the prompt that were computed")]
    prompt_ms: Annotated[float, Meta(ge=0, description="from the first step of the prompt to the first token of the answer")]
    prompt_per_token_ms: Annotated[float, Meta(ge=0)]
    prompt_per_second: Annotated[float, Meta(ge=0)]
    predicted_n: Annotated[int, Meta(ge=0, description="tokens of the answer")]
    predicted_ms: Annotated[float, Meta(ge=0, description="from the first token of the answer to its last")]
    predicted_per_token_ms: Annotated[float, Meta(ge=0, description="of those after the first")]
    predicted_per_second: Annotated[float, Meta(ge=0)]
    draft_n: Annotated[int | msgspec.UnsetType, Meta(description="tokens that were drafted, if any")] = msgspec.UNSET
    draft_n_accepted: Annotated[int | msgspec.UnsetType, Meta(description="those of them that are part of the answer")] = (
        msgspec.UNSET
    )


class AnswerMessage(msgspec.Struct):
    role: Literal["assistant"]
    content: str


class NativeChoice(msgspec.Struct):
    index: int
    message: AnswerMessage
    finish_reason: FinishReason


class TopToken(msgspec.Struct):
    token: str
    logprob: Logprob
    bytes: list[int]


def usage_body(usages: Sequence[Usage], n: int = 1) -> dict[str, Any]:
    """Return OpenAI's usage object for `n` answers to each prompt: a prompt counts once, every answer counts."""
    prompt = sum(usage.prompt_tokens for usage in usages[::n])
    answers = sum(usage.completion_tokens for usage in usages)
    cached = sum(usage.cached_tokens for usage in usages[::n])
    accepted = sum(usage.accepted_tokens for usage in usages)
    rejected = sum(usage.rejected_tokens for usage in usages)
    drafted = {"accepted_prediction_tokens": accepted, "rejected_prediction_tokens": rejected}
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answers,
        "total_tokens": prompt + answers,
        "prompt_tokens_details": {"cached_tokens": cached},
        **({"completion_tokens_details": drafted} if accepted or rejected else {}),
    }


def timings_body(usages: Sequence[Usage], n: int = 1) -> dict[str, Any]:
    """Return llama.cpp's Timings for `n` answers to each prompt: sums of tokens, and the longest durations, since all are
    computed at once. The first token of an answer comes with its prompt, so the rate is that of the others."""
    cached = sum(usage.cached_tokens for usage in usages[::n])
    computed = sum(usage.prompt_tokens for usage in usages[::n]) - cached
    accepted = sum(usage.accepted_tokens for usage in usages)
    drafted = accepted + sum(usage.rejected_tokens for usage in usages)
    return {
        "cache_n": cached,
        **_rates("prompt", computed, computed, max(usage.prompt_seconds for usage in usages)),
        **_rates(
            "predicted",
            sum(usage.completion_tokens for usage in usages),
            sum(max(0, usage.completion_tokens - 1) for usage in usages),
            max(usage.answer_seconds for usage in usages),
        ),
        **({"draft_n": drafted, "draft_n_accepted": accepted} if drafted else {}),
    }


def _rates(name: str, count: int, steps: int, seconds: float) -> dict[str, Any]:
    return {
        f"{name}_n": count,
        f"{name}_ms": seconds * 1000,
        f"{name}_per_token_ms": seconds * 1000 / steps if steps else 0.0,
        f"{name}_per_second": steps / seconds if seconds else 0.0,
    }


def progress_body(progress: Progress) -> dict[str, int]:
    """Return the progress of reading a prompt in the shape of llama.cpp's server; milliseconds."""
    figures = {"total": progress.total, "cache": progress.cached, "processed": progress.processed}
    return {**figures, "time_ms": round(progress.seconds * 1000)}


class PromptTokenCount(msgspec.Struct):
    """The number of tokens that a request's prompt has."""

    object: Literal["response.input_tokens"]
    input_tokens: Annotated[int, Meta(ge=0)]


class Problem(msgspec.Struct):
    """An error, in LocalLab's own shape."""

    detail: Annotated[str, Meta(description="the error, and the field it is about")]
