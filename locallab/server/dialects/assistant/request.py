"""The assistant's requests, over HTTP and WebSocket alike: a body to a checked question, and that to a job of the engine."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from msgspec import Meta

from locallab.chat import Message, normalize
from locallab.chat.turn import ChatRequest, ReasoningOptions, Turn
from locallab.engine.request import Constraint, SamplingParams
from locallab.errors import InvalidField
from locallab.pool import Loaded
from locallab.server.dialects.assistant.code_prefix import is_code
from locallab.server.dialects.assistant.templates import TASKS, Templates
from locallab.server.fields.messages import MESSAGES
from locallab.server.fields.sampling import Sampling
from locallab.server.inference.generation import Job
from locallab.server.inference.prompt import gap_prompt, prepare_chat

TEMPERATURE = 0.2
"""Of an answer whose request sets none: code is no place for surprises."""

FENCE = "```"
_LANGUAGE = re.compile(r"[^\s`]([^`\n\r]{0,62}[^\s`])?")


class AssistantBody(Sampling, kw_only=True):
    """What every route of the assistant takes."""

    prompt: Annotated[str, Meta(description="the code, the description of it, or the question")]
    task: Annotated[str | None, Meta(description="must agree with the route", extra_json_schema={"enum": [*TASKS, None]})] = (
        None
    )
    language: Annotated[str | None, Meta(description="the programming language, such as python")] = None
    history: Annotated[
        list[Annotated[Any, Meta(extra_json_schema=MESSAGES["items"])]] | None,
        Meta(description="earlier messages of the conversation"),
    ] = None
    suffix: Annotated[
        str | None, Meta(description="generate: the code that follows; what is between is filled in, by models that can")
    ] = None
    format: Annotated[
        str | None,
        Meta(
            description="debug and audit: json for an answer of a fixed shape",
            extra_json_schema={"enum": ["text", "json", None]},
        ),
    ] = None
    model: Annotated[str | None, Meta(description="a model of the registry; default: the one that is loaded")] = None
    model_id: Annotated[str | None, Meta(description="another name of model")] = None
    stream: Annotated[bool | None, Meta(description="send the answer as it comes, as server-sent events")] = None

    DEFAULTS: ClassVar[dict[str, float]] = {"temperature": TEMPERATURE}

    def params(self, n_vocab: int, longest: int | None, **more: Any) -> SamplingParams:
        if self.temperature is None and self.do_sample is not False:
            more["temperature"] = TEMPERATURE
        return super().params(n_vocab, longest, **more)


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """A body that has been checked as far as that needs no model. `model` None is the one that is loaded; `continues`: the
    prompt is the beginning of a program, and the answer goes on with it."""

    body: AssistantBody
    task: str
    prompt: str
    language: str
    history: Sequence[Message]
    model: str | None
    as_json: bool
    continues: bool


@dataclasses.dataclass(frozen=True, slots=True)
class PreparedQuestion:
    """A question as the engine takes it. `opening` is the program that the answer goes on with, None where it stands for
    itself; `turn` None: it is no chat."""

    question: Question
    model: str
    job: Job
    opening: str | None = None
    turn: Turn | None = None

    @property
    def urgent(self) -> bool:
        """Whether it goes ahead of others: somebody types meanwhile."""
        return bool(self.question.body.suffix)


def check(body: AssistantBody, task: str) -> Question:
    """Checks the body. Raises InvalidField."""
    prompt, language = body.prompt, body.language or ""
    if body.task not in (None, task):
        raise InvalidField("task", f"{body.task!r} does not agree with the route, which is for {task!r}")
    if not prompt.strip() and not body.suffix:
        raise InvalidField("prompt", "is empty")
    if language and not _LANGUAGE.fullmatch(language):
        raise InvalidField("language", "must be a name such as python: one line, at most 64 characters, no backticks")
    if body.suffix is not None and task != "generate":
        raise InvalidField("suffix", f"is for generate only, not for {task}")
    if body.suffix and body.history:
        raise InvalidField("history", "does not go with suffix: filling in code is no conversation")
    if body.model and body.model_id and body.model != body.model_id:
        raise InvalidField("model_id", f"{body.model_id!r} does not agree with model, which is {body.model!r}")
    continues = task == "generate" and (bool(body.suffix) or is_code(prompt))
    model = body.model_id or body.model
    return Question(body, task, prompt, language, _history(body), model, _as_json(body, task), continues)


async def prepare_question(question: Question, loaded: Loaded, templates: Templates, longest: int) -> PreparedQuestion:
    """The question for this model. `longest` is the most tokens of a continuation when the request says nothing of it.

    Raises InvalidField.
    """
    params = question.body.params(loaded.engine.info.n_vocab, longest if question.continues else None)
    if question.body.suffix:
        return await _fill_in(question, question.body.suffix, loaded, params)
    messages = templates.messages(
        question.task, question.prompt, language=question.language, history=question.history, as_json=question.as_json
    )
    answer = Constraint("json_schema", json.dumps(_schema(question)), "format") if question.as_json else None
    request = ChatRequest(messages=messages, answer=answer, reasoning=ReasoningOptions(enabled=False))
    chat = await prepare_chat(loaded, request, params)
    asked = PreparedQuestion(question, loaded.spec.id, chat.jobs[0], turn=chat.turn)
    # A model whose format marks the text too would take what we begin for no text at all.
    begins = question.continues and not (chat.turn.format and chat.turn.format.whole)
    return await _begun(asked, loaded) if begins else asked


async def _begun(asked: PreparedQuestion, loaded: Loaded) -> PreparedQuestion:
    """The answer's beginning is ours: the fence, and the program so far."""
    question, (prompt, params) = asked.question, asked.job
    opening = f"{FENCE}{question.language}\n{question.prompt}"
    tokens = await asyncio.to_thread(loaded.engine.tokenize, opening, add_special=False, parse_special=False)
    job = ([*prompt, *tokens], _until_fence(params, question.prompt))
    return dataclasses.replace(asked, job=job, opening=question.prompt)


async def _fill_in(question: Question, suffix: str, loaded: Loaded, params: SamplingParams) -> PreparedQuestion:
    """The code before and after goes to the model as it is: no template."""
    prompt = await gap_prompt(loaded, question.prompt, suffix)
    return PreparedQuestion(question, loaded.spec.id, (prompt, params), question.prompt)


def _schema(question: Question) -> dict[str, Any]:
    code = question.prompt
    return audit_schema(len(code.splitlines())) if question.task == "audit" else debug_schema(len(code))


def _until_fence(params: SamplingParams, prompt: str) -> SamplingParams:
    """The fence that closes the code ends the answer; behind a line end it may come at once."""
    closing = (f"\n{FENCE}", *((FENCE,) if prompt.endswith("\n") else ()))
    return dataclasses.replace(params, stop=(*params.stop, *closing))


def _history(body: AssistantBody) -> list[Message]:
    try:
        return normalize(body.history) if body.history else []
    except InvalidField as error:
        raise InvalidField(error.field.replace("messages", "history", 1), error.reason) from None


def _as_json(body: AssistantBody, task: str) -> bool:
    if body.format not in (None, "text", "json"):
        raise InvalidField("format", f"unknown format {body.format!r}; known: text, json")
    if body.format != "json":
        return False
    if task not in ("debug", "audit"):
        raise InvalidField("format", f"json is for debug and audit only, not for {task}")
    for field in ("stop", "stop_token_ids"):
        if getattr(body, field):
            raise InvalidField(field, "does not go with format json: it would cut the JSON short")
    return True


SEVERITIES = ("critical", "high", "medium", "low", "info")

MOST_FINDINGS = 10


def debug_schema(characters: int) -> dict[str, Any]:
    """Of code of so many characters: the corrected code may be twice as long, and a little more."""
    return _object(diagnosis=_text(600), fix=_text(300), code=_text(2 * characters + 500))


def audit_schema(lines: int) -> dict[str, Any]:
    """Of code of so many lines: no finding names another."""
    line = {"type": ["integer", "null"], "minimum": 1, "maximum": lines}
    finding = _object(title=_text(100), detail=_text(300), line=line, severity={"enum": list(SEVERITIES)}, fix=_text(300))
    return _object(findings={"type": "array", "items": finding, "maxItems": MOST_FINDINGS}, summary=_text(300))


def _text(longest: int) -> dict[str, Any]:
    return {"type": "string", "maxLength": longest}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
