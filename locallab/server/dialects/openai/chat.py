"""OpenAI's chat completions: the body, and the shape of the answer."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from locallab.chat import normalize
from locallab.chat.deltas import CallStart, WholeAnswer
from locallab.chat.messages import ToolCall
from locallab.chat.turn import ChatRequest, ReasoningOptions
from locallab.engine import ModelInfo
from locallab.engine.caller import Caller
from locallab.engine.request import SamplingParams
from locallab.errors import InvalidField
from locallab.media.intake import Intake
from locallab.server.dialects.answer_fields import Created, Logprob, ModelName, Timings, TopToken, UsageFigures
from locallab.server.dialects.openai.fields import CHAT, COMMON
from locallab.server.dialects.openai.service import Fingerprint, Tier
from locallab.server.fields.body import first
from locallab.server.fields.constraint import Structured
from locallab.server.fields.messages import MESSAGES
from locallab.server.fields.reasoning import SWITCH, of_effort, of_switch
from locallab.server.fields.table import Others, alias, left_out, unused
from locallab.server.fields.tools import CUSTOM, read_choice, read_tools
from locallab.server.inference.generation import Job

RESERVED = ("self", "messages")
"""Names that chat templates have for something else."""


class StreamOptions(msgspec.Struct):
    include_usage: Annotated[bool | None, Meta(description="end the stream with a chunk that has the usage")] = None
    continuous_usage_stats: Annotated[
        bool | None, Meta(description="with include_usage: every chunk has the usage of its answer so far")
    ] = None

    OTHERS: ClassVar[Others] = {
        "include_obfuscation": unused("chunks are as long as their text"),
    }


class OpenAIBody(Structured, kw_only=True):
    """Common fields of chat and completions."""

    model: Annotated[str | None, Meta(description="name of the model; an unknown name is the current one")] = None
    n: Annotated[int | None, Meta(description="number of answers to each prompt")] = None
    n_cmpl: Annotated[int | None, alias("n")] = None
    n_predict: Annotated[int | None, alias("max_tokens")] = None
    stream: Annotated[bool | None, Meta(description="stream the answer")] = None
    return_progress: Annotated[bool | None, Meta(description="with stream: report prompt-processing progress")] = None
    stream_options: Annotated[StreamOptions | None, Meta(description="additional content of the stream")] = None

    OTHERS: ClassVar[Others] = {**Structured.OTHERS, **COMMON}
    LIMITS: ClassVar[tuple[str, ...]] = ("max_tokens", "n_predict")

    @property
    def count(self) -> int:
        """The number of answers to each prompt."""
        return first(self.n, self.n_cmpl, 1)  # type: ignore[no-any-return]

    def params(self, info: ModelInfo, longest: int | None, **more: Any) -> SamplingParams:
        if self.stream_options is not None and not self.stream:
            raise InvalidField("stream_options", "is only for streams: leave it out, or set stream to true")
        return super().params(info, longest, progress=bool(self.stream and self.return_progress), **more)

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def lengths(self, jobs: Sequence[Job]) -> list[int] | None:
        """Return the lengths of the prompts of all answers, if every chunk is to have its usage."""
        continuous = self.include_usage and self.stream_options and self.stream_options.continuous_usage_stats
        return [len(prompt) for prompt, _ in jobs] if continuous else None


def with_prompt(logprobs: int | None, prompt_logprobs: int | None, stream: bool | None) -> dict[str, Any]:
    """Return the parameters for logprobs of the answer and of the prompt, with as many alternatives as either asks for.

    Raises InvalidField for those of the prompt in a stream.
    """
    if prompt_logprobs is None:
        return {"logprobs": logprobs}
    if stream:
        raise InvalidField("prompt_logprobs", "cannot be streamed; leave out stream")
    return {"logprobs": max(prompt_logprobs, logprobs or 0), "prompt_logprobs": True}


class TokensBody(OpenAIBody, kw_only=True):
    """What chats and completions have about the tokens of prompt and answer."""

    n_probs: Annotated[int | None, Meta(description="number of alternatives per token; 0: none")] = None
    prompt_logprobs: Annotated[
        int | None,
        Meta(description="number of alternatives per token of the prompt, whose logprobs are returned as vLLM does; no stream"),
    ] = None
    return_token_ids: Annotated[
        bool | None, Meta(description="return the ids of the prompt's and the answer's tokens, as vLLM does")
    ] = None
    truncate_prompt_tokens: Annotated[
        int | None, Meta(description="tokens of the prompt to keep; -1: as many as leave room for the answer; 0: all")
    ] = None
    cache_salt: Annotated[
        Annotated[str, Meta(max_length=1024)] | None,
        Meta(description="a secret: only requests with the same one share prefixes in the cache with this one"),
    ] = None
    truncation_side: Annotated[
        Literal["left", "right"] | None, Meta(description="the side on which such a prompt is cut; default: left")
    ] = None

    def cut(self, tokens: list[int], info: ModelInfo, params: SamplingParams) -> list[int]:
        """Return the prompt as truncate_prompt_tokens has it."""
        most = self.truncate_prompt_tokens or len(tokens)
        if most < 0:
            most = max(1, info.context - (params.max_tokens or 1))
        return tokens[:most] if self.truncation_side == "right" else tokens[-most:]

    def salted(self, caller: Caller) -> Caller:
        """Return the caller, with prefixes of its own for this salt."""
        if not self.cache_salt:
            return caller
        return dataclasses.replace(caller, owner=f"{caller.owner}/{hashlib.sha256(self.cache_salt.encode()).hexdigest()}")

    def cut_job(self, job: Job, info: ModelInfo) -> Job:
        """Return the job with its prompt so cut; places in the whole prompt mean nothing then."""
        prompt, params = job
        return self.cut(list(prompt), info, params), dataclasses.replace(params, boundaries=())


class ReasoningWish(msgspec.Struct):
    """The reasoning field of some services."""

    effort: Annotated[str | None, alias("reasoning_effort")] = None
    enabled: Annotated[bool | None, alias("enable_thinking")] = None
    max_tokens: Annotated[int | None, alias("reasoning_budget")] = None

    OTHERS: ClassVar[Others] = {
        "exclude": left_out("reasoning is returned in reasoning_content; effort none turns it off"),
        "summary": unused("reasoning is returned as it is"),
    }


class PredictedText(msgspec.Struct):
    type: Literal["text"]
    text: str


class Prediction(msgspec.Struct):
    """What much of the answer is like, such as a file that is to be changed: it makes the answer faster, no more."""

    type: Literal["content"]
    content: str | list[PredictedText]

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatBody(TokensBody, kw_only=True):
    messages: Annotated[Any, Meta(description="the conversation, oldest first", extra_json_schema=MESSAGES)]
    max_completion_tokens: Annotated[int | None, Meta(description="the same as max_tokens, with precedence over it")] = None
    tools: Annotated[Any, Meta(description="functions and custom tools that the model may call")] = None
    tool_choice: Annotated[Any, Meta(description="auto, none, required, or an object that names a function")] = None
    parallel_tool_calls: Annotated[bool | None, Meta(description="false: at most one call")] = None
    reasoning_effort: Annotated[str | None, Meta(description="reasoning effort, for models that reason; none: off")] = None
    reasoning: Annotated[ReasoningWish | None, Meta(description="effort, enabled, and max_tokens of the reasoning")] = None
    reasoning_budget: Annotated[int | None, Meta(description="maximum tokens of reasoning; 0: none")] = None
    thinking_token_budget: Annotated[int | None, alias("reasoning_budget", "; -1: any number")] = None
    thinking_budget_tokens: Annotated[int | None, alias("reasoning_budget", "; -1: any number")] = None
    reasoning_budget_tokens: Annotated[int | None, alias("reasoning_budget", "; -1: any number")] = None
    enable_thinking: Annotated[bool | None, Meta(description="turns reasoning on or off, for models that can")] = None
    thinking: Annotated[
        Any,
        Meta(
            description="the same, or an object: type enabled, adaptive or disabled, perhaps with budget_tokens",
            extra_json_schema=SWITCH,
        ),
    ] = None
    continue_final_message: Annotated[
        bool | None, Meta(description="treat a last message of the assistant as the beginning of the answer, and continue it")
    ] = None
    add_generation_prompt: Annotated[
        bool | None, Meta(description="false: the prompt ends with the last message, and the model begins the next by itself")
    ] = None
    chat_template_kwargs: Annotated[dict[str, Any] | None, Meta(description="variables for the model's chat template")] = None
    logprobs: Annotated[bool | None, Meta(description="return the log probability of each token")] = None
    top_logprobs: Annotated[int | None, Meta(description="with logprobs: number of alternatives per token")] = None
    modalities: Annotated[list[str] | None, Meta(description="only text")] = None
    prediction: Annotated[
        Prediction | None, Meta(description="text that much of the answer will be like, which makes it faster")
    ] = None

    OTHERS: ClassVar[Others] = {**Structured.OTHERS, **CHAT}
    LIMITS: ClassVar[tuple[str, ...]] = ("max_completion_tokens", "max_tokens", "n_predict")

    @property
    def alternatives(self) -> int | None:
        """The number of alternatives for each token; None: no logprobs."""
        if self.logprobs is None and self.n_probs:
            return self.n_probs
        return self.top_logprobs or 0 if self.logprobs else None

    def request(self, notes: list[str], media: Intake | None = None) -> ChatRequest:
        """Return the neutral request with its files in `media`, and note repairs and omissions. Raises InvalidField for
        unsupported fields."""
        if self.top_logprobs and not self.logprobs:
            raise InvalidField("top_logprobs", "needs logprobs: true")
        if any(kind != "text" for kind in self.modalities or ()):
            raise InvalidField("modalities", "only text is supported")
        tools = read_tools(self.tools, notes, also=(CUSTOM,))
        return ChatRequest(
            messages=normalize(self.messages, notes, media=media),
            tools=tools,
            choice=read_choice(self.tool_choice, self.parallel_tool_calls, tools),
            answer=self.constraint(),
            reasoning=self._thinking(),
            variables=self._variables(),
            continues=bool(self.continue_final_message),
            generation_prompt=self.add_generation_prompt is not False,
            prediction=self.prediction.text if self.prediction else "",
        )

    def params(self, info: ModelInfo, longest: int | None, **more: Any) -> SamplingParams:
        return super().params(info, longest, **with_prompt(self.alternatives, self.prompt_logprobs, self.stream), **more)

    def _variables(self) -> dict[str, Any]:
        """Return the variables for the template. Raises InvalidField for names that it knows already."""
        variables = self.chat_template_kwargs or {}
        for name in RESERVED:
            if name in variables:
                raise InvalidField(f"chat_template_kwargs.{name}", "is no variable of requests; choose another name")
        return variables

    def _thinking(self) -> ReasoningOptions:
        reasoning, thinking = self.reasoning or ReasoningWish(), of_switch(self.thinking)
        names = ("reasoning_budget", "thinking_token_budget", "thinking_budget_tokens", "reasoning_budget_tokens")
        budget = first(*(getattr(self, name) for name in names), reasoning.max_tokens, thinking.budget)
        options = of_effort(first(self.reasoning_effort, reasoning.effort), budget if budget and budget > 0 else None)
        of_template = (self.chat_template_kwargs or {}).get("enable_thinking")
        switch = first(self.enable_thinking, reasoning.enabled, thinking.enabled, of_template)
        return dataclasses.replace(options, enabled=False if budget == 0 else first(switch, options.enabled))


def message_body(whole: WholeAnswer) -> dict[str, Any]:
    """Return the assistant's message."""
    message: dict[str, Any] = {"role": "assistant", "content": whole.text if whole.text or not whole.calls else None}
    if whole.reasoning:
        message["reasoning_content"] = whole.reasoning
    if whole.calls:
        message["tool_calls"] = [call_body(call, call.arguments) for call in whole.calls]
    return message


def call_body(call: ToolCall | CallStart, arguments: str) -> dict[str, Any]:
    """Return a call of a function, or of a custom tool with its input."""
    if call.custom:
        return {"id": call.id, "type": "custom", "custom": {"name": call.name, "input": arguments}}
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


class ChatToken(TopToken):
    top_logprobs: Annotated[list[TopToken], Meta(description="the likeliest tokens at its position")]


class ChatLogprobs(msgspec.Struct):
    """Log probabilities of the answer's tokens, including those of reasoning and tool calls."""

    content: list[ChatToken]
    refusal: None


class PromptToken(msgspec.Struct):
    logprob: Logprob
    rank: Annotated[int, Meta(ge=1, description="1 for the likeliest")]
    decoded_token: str


PromptLogprobs = Annotated[
    list[dict[str, PromptToken] | None],
    Meta(description="each token of the prompt and the likeliest in its place, by their ids; the first has none"),
]
TokenIds = list[int]
StopReason = Annotated[str | None, Meta(description="the stop string that ended the answer")]
ChatFinish = Annotated[
    Literal["stop", "length", "tool_calls"],
    Meta(description="stop: the answer is complete; length: it reached a limit; tool_calls: it calls tools"),
]


class CalledFunction(msgspec.Struct):
    name: str
    arguments: Annotated[str, Meta(description="JSON")]


class ChatCall(msgspec.Struct):
    id: str
    type: Literal["function"]
    function: CalledFunction


class ChatMessage(msgspec.Struct):
    """The answer; it is never a refusal, and cites nothing."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    annotations: Annotated[list[str], Meta(max_length=0)]
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[ChatCall] | msgspec.UnsetType = msgspec.UNSET


class ChatChoice(msgspec.Struct):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinish
    stop_reason: StopReason
    token_ids: TokenIds | None


class ChatCompletion(msgspec.Struct):
    """The answer of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: Created
    model: ModelName
    service_tier: Tier
    system_fingerprint: Fingerprint
    choices: list[ChatChoice]
    usage: UsageFigures
    timings: Timings
    prompt_token_ids: TokenIds | None
    prompt_logprobs: PromptLogprobs | None
