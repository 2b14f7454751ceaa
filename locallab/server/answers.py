"""The answers of the generating routes, and of every route that fails: the API's description is made from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

FinishReason = Annotated[
    Literal["stop", "length"], Meta(description="stop: the answer came to its end; length: it reached a limit")
]
ModelName = Annotated[str, Meta(description="the model that answered")]
Logprob = Annotated[float, Meta(le=0, description="the natural logarithm of a probability")]
Created = Annotated[int, Meta(description="seconds since the epoch")]


class CachedTokens(msgspec.Struct):
    cached_tokens: Annotated[int, Meta(ge=0, description="tokens of the prompt that the prefix cache had")]


class UsageFigures(msgspec.Struct):
    """Tokens that the request took."""

    prompt_tokens: Annotated[int, Meta(ge=0)]
    completion_tokens: Annotated[int, Meta(ge=0)]
    total_tokens: Annotated[int, Meta(ge=0)]
    prompt_tokens_details: CachedTokens


class Generated(msgspec.Struct):
    """The answer of /generate."""

    response: Annotated[str, Meta(description="the text that follows the prompt")]
    model: ModelName
    finish_reason: FinishReason
    usage: UsageFigures


class AnswerMessage(msgspec.Struct):
    role: Literal["assistant"]
    content: str


class NativeChoice(msgspec.Struct):
    index: int
    message: AnswerMessage
    finish_reason: FinishReason


class NativeChatAnswer(msgspec.Struct):
    """The answer of /chat: of OpenAI's shape, with one choice."""

    id: str
    object: Literal["chat.completion"]
    created: Created
    model: ModelName
    choices: list[NativeChoice]
    finish_reason: FinishReason
    usage: UsageFigures


class TopToken(msgspec.Struct):
    token: str
    logprob: Logprob
    bytes: list[int]


class ChatToken(TopToken):
    top_logprobs: Annotated[list[TopToken], Meta(description="the likeliest tokens in its place")]


class ChatLogprobs(msgspec.Struct):
    """How likely the answer's tokens were; those of reasoning and of tool calls are among them."""

    content: list[ChatToken]
    refusal: None


class TextLogprobs(msgspec.Struct):
    """How likely the tokens were, a list for each thing to tell; of the first token of all there is nothing to tell."""

    tokens: list[str]
    token_logprobs: list[Logprob | None]
    top_logprobs: list[dict[str, Logprob] | None]
    text_offset: Annotated[list[int], Meta(description="where in the text each begins")]


class ChatChoice(NativeChoice):
    logprobs: ChatLogprobs | None


class ChatCompletion(msgspec.Struct):
    """The answer of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: Created
    model: ModelName
    choices: list[ChatChoice]
    usage: UsageFigures


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


class CardMeta(msgspec.Struct):
    """Figures of a model, under llama.cpp's names."""

    n_ctx: int
    n_ctx_train: int
    n_vocab: int
    n_params: int
    size: int


class ModelCard(msgspec.Struct, kw_only=True):
    """A model that can be asked, its context under every name that clients look for, as far as that is known."""

    id: str
    name: str
    object: Literal["model"]
    created: Created
    owned_by: str
    status: Annotated[str, Meta(description="ready, or else unloaded, loading, error: asking for it loads it")]
    context_length: int | msgspec.UnsetType = msgspec.UNSET
    max_model_len: int | msgspec.UnsetType = msgspec.UNSET
    meta: CardMeta | msgspec.UnsetType = msgspec.UNSET


class ModelList(msgspec.Struct):
    """The models that can be asked, the loaded ones first."""

    object: Literal["list"]
    data: list[ModelCard]
    models: Annotated[list[ModelCard], Meta(description="the same, where some clients look for them")]


class Problem(msgspec.Struct):
    """Why a request failed."""

    detail: Annotated[str, Meta(description="what went wrong, and the field it is about")]


class OpenAIError(msgspec.Struct, omit_defaults=True):
    """OpenAI's error object; a prompt that is too long brings its length and the context's."""

    message: str
    type: str
    param: str | None
    code: str | None
    n_prompt_tokens: int | msgspec.UnsetType = msgspec.UNSET
    n_ctx: int | msgspec.UnsetType = msgspec.UNSET


class OpenAIProblem(msgspec.Struct):
    """Why a request failed, in OpenAI's shape."""

    error: OpenAIError


class AnthropicError(msgspec.Struct):
    type: str
    message: str


class AnthropicProblem(msgspec.Struct):
    """Why a request failed, in Anthropic's shape."""

    type: Literal["error"]
    error: AnthropicError


class OllamaProblem(msgspec.Struct):
    """Why a request failed, in Ollama's shape."""

    error: str


PROBLEMS: Mapping[str, type] = {
    "native": Problem,
    "openai": OpenAIProblem,
    "anthropic": AnthropicProblem,
    "ollama": OllamaProblem,
}
"""By the name of a dialect."""
