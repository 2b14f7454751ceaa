"""The assistant's requests over HTTP and WebSocket: the body, the checked question, and its job."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from msgspec import Meta

from locallab.chat import Message, normalize
from locallab.chat.turn import ChatRequest, ReasoningOptions, Turn
from locallab.engine import ModelInfo
from locallab.engine.media.runs import joined
from locallab.engine.request import Constraint, SamplingParams
from locallab.errors import InvalidField
from locallab.media.intake import Intake
from locallab.pool import Loaded
from locallab.server.dialects.assistant.code_prefix import is_code
from locallab.server.dialects.assistant.templates import TASKS, Templates
from locallab.server.fields.constraint import constraints_refused
from locallab.server.fields.messages import EARLIER
from locallab.server.fields.sampling import Sampling
from locallab.server.fields.table import Others, alias
from locallab.server.inference.aside import LONG, aside
from locallab.server.inference.generation import Job
from locallab.server.inference.media import Images, markers, shown, taken_in
from locallab.server.inference.prompt import gap_prompt, prepare_chat
from locallab.settings import ServerSettings

TEMPERATURE = 0.2
"""The default temperature: code is no place for surprises."""

FENCE = "```"
_LANGUAGE = re.compile(r"[^\s`]([^`\n\r]{0,62}[^\s`])?")


class AssistantBody(Sampling, kw_only=True):
    """Common fields of all routes."""

    prompt: Annotated[str, Meta(description="the code, a description of it, or a question")]
    task: Annotated[str | None, Meta(description="must agree with the route", extra_json_schema={"enum": [*TASKS, None]})] = (
        None
    )
    language: Annotated[str | None, Meta(description="the programming language, such as python")] = None
    history: Annotated[
        list[Annotated[Any, Meta(extra_json_schema=EARLIER)]] | None,
        Meta(description="earlier messages of the conversation"),
    ] = None
    suffix: Annotated[str | None, Meta(description="generate: code after a gap that the answer fills, by models that can")] = (
        None
    )
    format: Annotated[
        str | None,
        Meta(
            description="debug and audit: json for an answer of a fixed shape",
            extra_json_schema={"enum": ["text", "json", None]},
        ),
    ] = None
    model: Annotated[str | None, Meta(description="name of a registered model; default: the loaded one")] = None
    model_id: Annotated[str | None, alias("model")] = None
    stream: Annotated[bool | None, Meta(description="stream the answer as server-sent events")] = None
    images: Images = None

    OTHERS: ClassVar[Others] = {
        **Sampling.OTHERS,
        **constraints_refused("debug and audit have format json; the native routes have constraints"),
    }
    DEFAULTS: ClassVar[dict[str, float]] = {"temperature": TEMPERATURE}

    def params(self, info: ModelInfo, longest: int | None, **more: Any) -> SamplingParams:
        if self.temperature is None and self.do_sample is not False:
            more["temperature"] = TEMPERATURE
        return super().params(info, longest, **more)


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """A body that was checked without a model. `model` None is the loaded one; `continues`: the prompt is the beginning of a
    program, which the answer continues."""

    body: AssistantBody
    task: str
    prompt: str
    language: str
    model: str | None
    as_json: bool
    continues: bool


@dataclasses.dataclass(frozen=True, slots=True)
class PreparedQuestion:
    """A question with its job. `opening` is the program that the answer continues, if any; `turn` None: it is not a chat.
    `notes` are repairs of the history. The stop strings `closing` end the answer and are no part of it, even if the request's
    own are."""

    question: Question
    model: str
    job: Job
    opening: str | None = None
    turn: Turn | None = None
    notes: Sequence[str] = ()
    closing: Sequence[str] = ()

    @property
    def urgent(self) -> bool:
        """True for a job that goes ahead of others, since somebody is typing."""
        return bool(self.question.body.suffix)


def check(body: AssistantBody, task: str) -> Question:
    """Check a body without a model. Raises InvalidField."""
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
        raise InvalidField("history", "cannot be combined with suffix: filling in code is not a conversation")
    if body.suffix and body.images:
        raise InvalidField("images", "cannot be combined with suffix: filling in code has no place for pictures")
    if body.model and body.model_id and body.model != body.model_id:
        raise InvalidField("model_id", f"{body.model_id!r} does not agree with model, which is {body.model!r}")
    continues = task == "generate" and (bool(body.suffix) or is_code(prompt))
    model = body.model_id or body.model
    return Question(body, task, prompt, language, model, _as_json(body, task), continues)


async def prepare_question(
    question: Question, loaded: Loaded, templates: Templates, settings: ServerSettings
) -> PreparedQuestion:
    """Prepare the question for this model. Raises InvalidField."""
    longest = settings.completion_tokens if question.continues else None  # of an answer whose request sets no limit
    params = question.body.params(loaded.engine.info, longest)
    if question.body.suffix:  # the code around the gap is the prompt, without a template
        prompt = await gap_prompt(loaded, question.prompt, question.body.suffix)
        return PreparedQuestion(question, loaded.spec.id, (prompt, params), question.prompt)
    notes: list[str] = []
    read = functools.partial(_history, question.body)
    length = (LONG if question.body.history else 0) + sum(map(len, question.body.images or ()))
    (history, marks), media = await taken_in(loaded, settings, length, notes, read)
    messages = templates.messages(
        question.task, question.prompt, language=question.language, history=history, as_json=question.as_json
    )
    messages = shown(messages, marks) if marks else messages
    answer = None
    if question.as_json:
        code, audit = question.prompt, question.task == "audit"
        schema = audit_schema(len(code.splitlines())) if audit else debug_schema(len(code))
        answer = Constraint("json_schema", json.dumps(schema), "format")
    request = ChatRequest(messages=messages, answer=answer, reasoning=ReasoningOptions(enabled=False), media=media)
    chat = await prepare_chat(loaded, request, params)
    [job] = chat.jobs
    # A format that marks the text of an answer too does not allow us to begin it.
    if not question.continues or (chat.turn.format and chat.turn.format.whole):
        return PreparedQuestion(question, loaded.spec.id, job, turn=chat.turn, notes=notes)
    # The answer begins with the fence and the program so far. The closing fence ends it; behind a line end it may come at once.
    beginning = f"{FENCE}{question.language}\n{question.prompt}"
    options: dict[str, Any] = {"add_special": False, "parse_special": False, "fits": True}
    tokens = await aside(len(beginning), lambda stopped: loaded.engine.tokenize(beginning, **options, stopped=stopped))
    closing = (f"\n{FENCE}", FENCE) if question.prompt.endswith("\n") else (f"\n{FENCE}",)
    job = (joined([job[0], tokens]), dataclasses.replace(job[1], stop=(*params.stop, *closing)))
    return PreparedQuestion(question, loaded.spec.id, job, question.prompt, chat.turn, notes, closing)


def _history(body: AssistantBody, notes: list[str], media: Intake | None) -> tuple[list[Message], str]:
    """Return the earlier messages, noting what was repaired in them, and the markers of the pictures. Raises InvalidField."""
    repairs: list[str] = []
    history = normalize(body.history, repairs, past=True, media=media) if body.history else []
    notes += [note.replace("messages", "history", 1) for note in repairs]
    return history, markers(media, body.images) if body.images else ""


def _as_json(body: AssistantBody, task: str) -> bool:
    if body.format not in (None, "text", "json"):
        raise InvalidField("format", f"unknown format {body.format!r}; known: text, json")
    if body.format != "json":
        return False
    if task not in ("debug", "audit"):
        raise InvalidField("format", f"json is for debug and audit only, not for {task}")
    for field in ("stop", "stop_token_ids"):
        if getattr(body, field):
            raise InvalidField(field, "cannot be combined with format json: it would cut the JSON short")
    return True


SEVERITIES = ("critical", "high", "medium", "low", "info")

MOST_FINDINGS = 10


def debug_schema(characters: int) -> dict[str, Any]:
    """Return the schema for code of this length: the corrected code may be a little more than twice as long."""
    return _object(diagnosis=_text(600), fix=_text(300), code=_text(2 * characters + 500))


def audit_schema(lines: int) -> dict[str, Any]:
    """Return the schema for code of this many lines: a finding can name no other."""
    line = {"type": ["integer", "null"], "minimum": 1, "maximum": lines}
    finding = _object(title=_text(100), detail=_text(300), line=line, severity={"enum": list(SEVERITIES)}, fix=_text(300))
    return _object(findings={"type": "array", "items": finding, "maxItems": MOST_FINDINGS}, summary=_text(300))


def _text(longest: int) -> dict[str, Any]:
    return {"type": "string", "maxLength": longest}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
