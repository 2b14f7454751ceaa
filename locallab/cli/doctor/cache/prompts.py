"""The prompt of a request body, read as its route reads it, without a server and without the model's weights."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from locallab.chat.control_tokens import markup, pieces
from locallab.chat.templates import ChatTemplate
from locallab.chat.turn import ChatRequest
from locallab.engine.vocabulary import Vocabulary
from locallab.errors import InvalidField, RequestError
from locallab.server.dialects.anthropic.request import MessagesBody
from locallab.server.dialects.anthropic.request import chat_request as anthropic_request
from locallab.server.dialects.native.generate import GenerateBody, NativeChatBody
from locallab.server.dialects.ollama.request import OllamaChatBody, OllamaGenerateBody, conversation, prompted
from locallab.server.dialects.openai.chat import ChatBody
from locallab.server.dialects.openai.completions import CompletionBody
from locallab.server.dialects.responses.request import ResponsesBody
from locallab.server.dialects.responses.request import chat_request as responses_request
from locallab.server.fields.body import parse
from locallab.server.inference.prompt import Prompt, plan_chat, prompts, row, tokenize

Body = Mapping[str, Any]
Text = Prompt
"""A prompt as text with markup, or as token ids and texts, as its client may have sent it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Route:
    """The shape of a route's bodies, the field that holds the prompt, and the prompt in it: a chat to be rendered, or text."""

    shape: type[msgspec.Struct]
    field: str
    prompt: Callable[[Any], ChatRequest | Text]


def _responses(body: ResponsesBody) -> ChatRequest:
    if body.previous_response_id:
        raise InvalidField("previous_response_id", "is known to the server alone: put the earlier items into the input")
    return responses_request(body, [], body.items(), [])


def _single(body: CompletionBody) -> Text:
    found, *more = prompts(body.prompt)
    if more:
        raise InvalidField("prompt", f"holds {len(more) + 1} prompts: leave one of them")
    if body.suffix:
        raise InvalidField("suffix", "prompts around a gap are not compared: leave it out")
    return found


def _ollama_text(body: OllamaGenerateBody) -> ChatRequest | Text:
    body.check()
    if body.images:
        raise InvalidField("images", "prompts with pictures are not compared: leave it out")
    if body.suffix:
        raise InvalidField("suffix", "prompts around a gap are not compared: leave it out")
    return body.prompt or "" if body.raw else prompted(body)


PATHS: Mapping[str, Route] = {
    "/v1/chat/completions": Route(ChatBody, "messages", lambda body: body.request([])),
    "/v1/messages": Route(MessagesBody, "messages", lambda body: anthropic_request(body, [])),
    "/api/chat": Route(OllamaChatBody, "messages", lambda body: conversation(body, [])),
    "/chat": Route(NativeChatBody, "messages", lambda body: body.request([])),
    "/v1/responses": Route(ResponsesBody, "input", _responses),
    "/v1/completions": Route(CompletionBody, "prompt", _single),
    "/generate": Route(GenerateBody, "prompt", lambda body: body.request(body.prompt) if body.chat_template else body.prompt),
    "/api/generate": Route(OllamaGenerateBody, "prompt", _ollama_text),
}
"""The routes whose bodies can be compared. Where a body fits several equally well, it is one of the first."""


def path_of(*bodies: Body) -> str | None:
    """Return the path whose shape has most of the bodies' fields, and which reads them all; None if there is none."""
    return next((path for path in _likeliest(bodies) if _reads(path, bodies)), None)


def refusal(body: Body) -> RequestError:
    """Return what the likeliest path has against a body that none reads."""
    try:
        read(_likeliest([body])[0], body)
    except IndexError:
        return RequestError("no field holds a prompt: expected messages, input or prompt")
    except RequestError as error:
        return error
    raise AssertionError("a body that no path reads is read")


def _likeliest(bodies: Sequence[Body]) -> list[str]:
    """Return the paths that know most of the bodies' fields, among them the prompt's in each."""
    known = {
        path: sum(len(body.keys() & set(route.shape.__struct_fields__)) for body in bodies)
        for path, route in PATHS.items()
        if all(route.field in body for body in bodies)
    }
    return [path for path, n_known in known.items() if n_known == max(known.values())]


def _reads(path: str, bodies: Sequence[Body]) -> bool:
    with contextlib.suppress(RequestError):
        return all(read(path, body) is not None for body in bodies)
    return False


def read(path: str, body: Body) -> ChatRequest | Text:
    """Return the prompt in the body as the route of `path` reads it. Raises RequestError."""
    route = PATHS[path]
    return route.prompt(parse(json.dumps(body).encode(), route.shape))


@dataclasses.dataclass(frozen=True, slots=True)
class VocabularyModel:
    """A model as far as its prompts need it: vocabulary and template, without weights."""

    engine: Vocabulary
    template: ChatTemplate
    markup: re.Pattern[str] | None
    system: str | None = None

    @classmethod
    @contextlib.contextmanager
    def opened(cls, path: Path) -> Iterator[VocabularyModel]:
        """Yield the model of a .gguf file. Raises ModelError."""
        with contextlib.closing(Vocabulary(path)) as engine:
            info = engine.info
            template = ChatTemplate(info.chat_template, info.bos, info.eos, named=info.named_templates)
            yield cls(engine, template, markup(info.control_tokens))

    def text(self, path: str, body: Body) -> Text:
        """Return the prompt of a body: rendered, with a seam where a message's text is kept from being markup.

        Raises RequestError for a body that its route refuses.
        """
        prompt = read(path, body)
        if isinstance(prompt, ChatRequest):
            return plan_chat(self, prompt).prompt
        ids = [part for part in prompt if isinstance(part, int)]
        if ids and not 0 <= min(ids) <= max(ids) < self.engine.n_vocab:
            raise InvalidField("prompt", f"token ids must be from 0 to {self.engine.n_vocab - 1}")
        return prompt

    def tokens(self, text: Text) -> Sequence[int]:
        """Return the tokens of a prompt that `text` returned, as the server computes them."""
        return tokenize(self.engine, pieces(text)) if isinstance(text, str) else row(self.engine, text)
