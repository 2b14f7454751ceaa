"""What goes into the engine and what comes out: neutral, frozen, no HTTP."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

FinishReason = Literal["stop", "length", "cancelled", "error"]

Kind = Literal["text", "embedding", "reranker"]
"""What a model makes: text, the vector of a text, or how well a text answers a question."""


ConstraintKind = Literal["json_schema", "json_object", "regex", "lark", "gbnf", "choice"]


@dataclasses.dataclass(frozen=True, slots=True)
class Constraint:
    """What every answer must match. `source` is the schema as JSON text, the pattern, the grammar, or a JSON list of the
    choices; it is empty for "json_object". `field` is the request's field it came from, for messages."""

    kind: ConstraintKind
    source: str = ""
    field: str = "grammar"


@dataclasses.dataclass(frozen=True, slots=True)
class ReasoningBudget:
    """At most `tokens` of reasoning between the texts `begin` and `end`; `open`: the prompt has begun it already."""

    tokens: int
    begin: str
    end: str
    open: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen and when to stop. The caller checks ranges (`check` names a wrong one).

    `temperature` 0 is greedy. `top_k` 0, `top_p` 1, `min_p` 0, `typical_p` 1, `repeat_penalty` 1 and penalties of 0 are off.
    `penalty_window` is the number of last tokens the penalties look at (0: none, -1: all). `logit_bias` holds
    (token id, bias) pairs. `seed` None draws one. `stop` strings are matched in the answer's text and never part of it.
    `max_tokens` None means as far as the context goes. `constraint` restricts the answer to a language.
    `visible` are control tokens whose texts are part of the answer's; `reasoning` bounds what comes before it.
    `logprobs` tells how likely each token of the answer was, and so many of the likeliest in its place (None: not even the
    former); `prompt_logprobs` tells the same of the prompt's, which then is computed as a whole. `progress` tells how far the
    prompt is read, after each step that reads of it.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    penalty_window: int = 64
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    max_tokens: int | None = None
    constraint: Constraint | None = None
    visible: tuple[int, ...] = ()
    reasoning: ReasoningBudget | None = None
    logprobs: int | None = None
    prompt_logprobs: bool = False
    progress: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FimTokens:
    """The tokens with which a model fills in the middle of a text. `repo` begins the name of a repository, `separator` a file
    of it, `pad` is what such models may end with; `bos` is what a prompt begins with, if anything."""

    prefix: int
    suffix: int
    middle: int
    repo: int | None = None
    separator: int | None = None
    pad: int | None = None
    bos: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request. `cached_tokens` of the prompt were taken from the prefix cache, not computed."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


@dataclasses.dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How likely the model found a token: the natural logarithm, of all tokens and before sampling or a constraint changes
    anything. `piece` is what the token stands for, or its name; `hidden` tells the latter. `top` are the likeliest tokens in
    its place, the best first, each with its piece and logprob."""

    token: int
    piece: bytes
    logprob: float
    top: tuple[tuple[int, bytes, float], ...] = ()
    hidden: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Progress:
    """How far a prompt is read: of `total` tokens `processed` are, of which `cached` came from the prefix cache. `seconds` have
    passed since its first step began."""

    total: int
    cached: int
    processed: int
    seconds: float


@dataclasses.dataclass(frozen=True, slots=True)
class TokenEvent:
    """One step's news of one request: new text (perhaps empty), and at the end why it ended and the usage.

    `finish_reason` is set on the last event only. With "error", `error` holds what happened; `stop` is the stop string that
    ended the answer, if one did. `logprobs` are those of the tokens that are part of the answer: not of one that ends it.
    `prompt_logprobs` come with the first event that has tokens: those of the prompt's tokens but the first. An event with
    `progress` has nothing else, and comes before all that have.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    error: Exception | None = None
    stop: str | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    progress: Progress | None = None


Listener = Callable[[TokenEvent], None]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """A snapshot for /system/info and metrics. Tokens unless said otherwise."""

    running: int
    waiting: int
    kv_used: int
    kv_total: int
    cached: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    preemptions: int
    steps: int
