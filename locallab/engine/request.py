"""Requests and events of the engine: neutral, frozen, no HTTP."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

FinishReason = Literal["stop", "length", "cancelled", "error"]

Kind = Literal["text", "embedding", "reranker"]
"""The output of a model: text, the vector of a text, or the relevance of a text to a question."""


ConstraintKind = Literal["json_schema", "json_object", "regex", "lark", "gbnf", "choice"]


@dataclasses.dataclass(frozen=True, slots=True)
class Constraint:
    """A language that the answer must be in. `source` is the schema as JSON text, the pattern, the grammar, or a JSON list of
    the choices; it is empty for "json_object". `field` names the request's field in error messages."""

    kind: ConstraintKind
    source: str = ""
    field: str = "grammar"


@dataclasses.dataclass(frozen=True, slots=True)
class ReasoningBudget:
    """At most `tokens` of reasoning between the texts `begin` and `end`; `open`: the prompt already begins it."""

    tokens: int
    begin: str
    end: str
    open: bool


SAMPLERS = ("penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature")
"""The samplers in the order in which they are applied unless a request has its own; "adaptive_p" may be added."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling and stopping of one answer. `sampling_check.check` refuses values out of range.

    `temperature` 0 is greedy. `top_k` 0, `top_p` 1, `min_p` 0, `typical_p` 1, `top_n_sigma` 0, `repeat_penalty` 1, penalties,
    `xtc_probability`, `dry_multiplier`, `dynatemp_range` and `mirostat` of 0 and a negative `adaptive_target` are off; all of
    them mean what they mean in llama.cpp, and `samplers` is their order. Samplers leave at least `min_keep` tokens.
    `penalty_window` and `dry_penalty_last_n` are the numbers of last tokens that penalties look at (0: none, -1: all).
    `logit_bias` holds pairs of a token id, or a text for each of its tokens, and a bias; -inf forbids the token. The answer
    has only `allowed_token_ids`, if there are any, none of the texts `bad_words` and, before `min_tokens`, no end.
    `seed` None is a random one. `stop` strings are matched in the answer's text, also where they spell control tokens; they
    are part of it only with `include_stop`. `max_tokens` None means up to the context length. At the first line that ends
    more than `line_after_ms` after the first token the answer ends (0: never). `constraint` restricts the answer to a language.
    `visible` are control tokens whose text is part of the answer; `reasoning` bounds what comes before the answer.
    `logprobs` asks for the log probability of each answer token and of that many likeliest ones in its place (None: neither),
    with `end_logprobs` also for the token that ends it without being part of its text, with `drawn_logprobs`
    of what the samplers left to draw from; `prompt_logprobs` for the same of the
    prompt, which is then computed as a whole. `progress` asks for an event before the first and after each
    step of the prompt. `boundaries` are lengths at which prompts are likely to part from this one, such as the end of the
    system prompt: a model whose memory cannot be cut keeps its state there. `prediction` is what the answer may be like: drafts
    are taken from it, and the answer is the same without. `lora` names the adapters that are on, by id or by name, with their
    scales; None: as the engine has it.
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
    top_n_sigma: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 64
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    adaptive_target: float = -1.0
    adaptive_decay: float = 0.9
    min_keep: int = 0
    samplers: tuple[str, ...] = SAMPLERS
    logit_bias: tuple[tuple[int | str, float], ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    bad_words: tuple[str, ...] = ()
    seed: int | None = None
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool = False
    min_tokens: int = 0
    max_tokens: int | None = None
    line_after_ms: int = 0
    constraint: Constraint | None = None
    visible: tuple[int, ...] = ()
    reasoning: ReasoningBudget | None = None
    logprobs: int | None = None
    end_logprobs: bool = False
    drawn_logprobs: bool = False
    prompt_logprobs: bool = False
    progress: bool = False
    boundaries: tuple[int, ...] = ()
    prediction: tuple[int, ...] = ()
    lora: tuple[tuple[int | str, float], ...] | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FimTokens:
    """Tokens of fill-in-the-middle prompts. `repo` begins a repository's name and `separator` one of its files; such models may
    end with `pad`; `bos` begins a prompt, if anything does."""

    prefix: int
    suffix: int
    middle: int
    repo: int | None = None
    separator: int | None = None
    pad: int | None = None
    bos: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request. `cached_tokens` of the prompt came from the prefix cache. `prompt_seconds` run from its
    first step to the first token of the answer, `answer_seconds` from there to the last; what was not computed takes none.
    Of the answer, `accepted_tokens` were drafted; `rejected_tokens` were drafted in vain and are no part of it."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    prompt_seconds: float = 0.0
    answer_seconds: float = 0.0
    accepted_tokens: int = 0
    rejected_tokens: int = 0


Tier = Literal["none", "resident", "host", "disk"]
"""Where the cached part of a prompt was: nowhere, in the KV pool, in host RAM, on disk."""

MissReason = Literal["end", "first time", "diverged", "evicted", "no snapshot"]
"""Why the cached part of a prompt ends where it does; see CacheUse."""


@dataclasses.dataclass(frozen=True, slots=True)
class CacheUse:
    """The share that a prompt of `total` tokens got from the prefix cache: its first `hit` tokens, from `tier`.

    `reason` says why not more: "end", all but the last token, which is always computed, or what is known of the prompt ends
    there, as with the next turn of a conversation; "first time", no prompt began like
    this one; "diverged", the token at index `at` differs from that of every known prompt; "evicted", what followed from `at`
    on has been dropped; "no snapshot", the prompt is known up to `at`, but the model's state can be restored at snapshots
    only, and the last one before is at `hit`.
    """

    hit: int
    total: int
    tier: Tier
    reason: MissReason
    at: int


@dataclasses.dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The natural logarithm of a token's probability among all tokens, before sampling or a constraint changes anything.
    `piece` is the token's text or, if `hidden`, its name. `top` are the likeliest tokens in its place, best first, each with
    its piece and logprob. A prompt's token has its `rank`, 1 for the likeliest; others have 0."""

    token: int
    piece: bytes
    logprob: float
    top: tuple[tuple[int, bytes, float], ...] = ()
    hidden: bool = False
    rank: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Progress:
    """Prompt-processing progress: `processed` of `total` tokens, of which `cached` came from the prefix cache, `seconds` after
    the first step began. The first one comes as that step begins, with `processed` equal to `cached`."""

    total: int
    cached: int
    processed: int
    seconds: float


@dataclasses.dataclass(frozen=True, slots=True)
class TokenEvent:
    """The outcome of one step for one request: new text (perhaps empty), and at the end the finish reason and the usage.

    Only the last event has a `finish_reason`. With "error", `error` is the cause; `stop` is the stop string that ended the
    answer, if one did. `logprobs` belong to the tokens of the answer, and to one that ends it if asked for.
    `prompt_logprobs`, of all prompt tokens but the first, come with the first event that has tokens. An event with `cache` or
    `progress` has nothing else: as the first step of the prompt begins, one tells what the cache had of it, and those with
    progress follow. A prompt that is computed as a whole for its log probabilities has none with `cache`.
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
    cache: CacheUse | None = None


Listener = Callable[[TokenEvent], None]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """A snapshot for /system/info and metrics. Tokens unless said otherwise; prefixes take `stored_bytes` of host RAM, at most
    `stored_limit`."""

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
    stored_bytes: int
    stored_limit: int
