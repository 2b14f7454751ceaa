"""Prompts: text, messages or a gap in a text as token ids, and a chat request as jobs."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import itertools
import re
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, Protocol, TypeVar

from locallab.chat.budget import NORMAL, QUICK, allotted
from locallab.chat.control_tokens import guarded, pieces
from locallab.chat.fim import infill
from locallab.chat.messages import with_system
from locallab.chat.templates import ChatTemplate
from locallab.chat.turn import ChatRequest, Turn, plan, upcoming
from locallab.engine import Engine
from locallab.engine.media.runs import joined
from locallab.engine.prefix_tree import NEGLIGIBLE, common_length
from locallab.engine.request import Constraint, ReasoningBudget, SamplingParams
from locallab.errors import ContextLengthExceeded, InvalidField, TemplateExceeded
from locallab.media.attachment import Attachment
from locallab.media.marker import count
from locallab.pool import Loaded
from locallab.server.fields.body import whole
from locallab.server.inference.aside import INLINE, ITEM, LONG, Stopped, aside
from locallab.server.inference.generation import Job

_TEXT = {"type": "string"}
_MIXED = {"type": "array", "minItems": 1, "items": {"anyOf": [_TEXT, {"type": "integer", "minimum": 0}]}}
_WRAPPED = {"type": "object", "properties": {"prompt_string": {"anyOf": [_TEXT, _MIXED]}}, "required": ["prompt_string"]}
PROMPTS = {"anyOf": [_TEXT, _MIXED, _WRAPPED, {"type": "array", "minItems": 1, "items": {"anyOf": [_TEXT, _MIXED, _WRAPPED]}}]}
"""The JSON schema of what `prompts` reads."""

Prompt = str | list[int | str]
"""A text, or token ids and texts in a row, among them at least one id."""

COUNTED = 1 << 17
"""Characters up to which a prompt that does not fit is tokenized whole, so that the error has its length: clients cut by it."""

SHORT = 512
"""Characters of stop strings that are looked up in no time."""

MANY = 200
"""Messages that are not rendered in the event loop, however short they are."""

_renderers = weakref.WeakKeyDictionary[ChatTemplate, ThreadPoolExecutor]()
"""A thread for each template: one that takes its time makes no other wait."""

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class TokenFacts(Protocol):
    @property
    def bos(self) -> str: ...
    @property
    def control_tokens(self) -> Mapping[str, int]: ...


class Tokenizer(Protocol):
    """The part of an engine that prompts are made with; a vocabulary without weights has it too."""

    @property
    def info(self) -> TokenFacts: ...
    def tokenize(self, text: str, *, add_special: bool, parse_special: bool, media: Sequence[Attachment] = ()) -> list[int]: ...


class PromptModel(Protocol):
    """The part of a loaded model that prompts are made with."""

    @property
    def engine(self) -> Tokenizer: ...
    @property
    def template(self) -> ChatTemplate: ...
    @property
    def markup(self) -> re.Pattern[str] | None: ...
    @property
    def system(self) -> str | None: ...


def prompts(raw: Any, field: str = "prompt") -> list[Prompt]:
    """Read a request's `field`: a text, token ids, both in a row, or a list of those. A list with an id in it is one prompt.
    Each may be wrapped as {"prompt_string": ...}, as llama.cpp's server has it. Raises InvalidField."""
    if raw is None:
        raise InvalidField(field, "is missing")
    raw = whole(raw)
    several = isinstance(raw, list) and not any(type(part) is int for part in raw)
    found = [_prompt(each) for each in (raw if several else [raw])]
    if not found or None in found:
        reason = "expected a string, a list of token ids and strings, or a list of such prompts, none empty"
        raise InvalidField(field, reason)
    return found  # type: ignore[return-value]


def _prompt(raw: Any) -> Prompt | None:
    """Return one prompt, or None for what is none."""
    if isinstance(raw, Mapping):
        raw = None if raw.get("multimodal_data") else raw.get("prompt_string")
    if isinstance(raw, list):
        kinds = {type(part) for part in raw}
        return raw if int in kinds and kinds <= {int, str} else None
    return raw if isinstance(raw, str) else None


class _Counting:
    """An engine that refuses the texts of one request that together do not fit the context, and stops when nobody waits."""

    def __init__(self, engine: Engine, stopped: Stopped, *, fits: bool) -> None:
        self._engine = engine
        self._stopped = stopped
        self._fits = fits
        self._count = 0

    @property
    def info(self) -> TokenFacts:
        return self._engine.info

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool, media: Sequence[Attachment] = ()) -> list[int]:
        tokens = self._engine.tokenize(
            text, add_special=add_special, parse_special=parse_special, fits=self._fits, stopped=self._stopped, media=media
        )
        self._count += len(tokens)
        if self._fits and self._count > self._engine.info.context:
            raise ContextLengthExceeded(self._count, self._engine.info.context, at_least=True)
        return tokens


async def text_prompt(loaded: Loaded, text: str, media: Sequence[Attachment] = ()) -> list[int]:
    """Tokenize a text with its markup, behind the model's opening token unless the text begins with it; `media` are those of
    its markers, in their order. Raises ContextLengthExceeded, UnreadableMedia, MediaTooLarge."""
    return await tokenized(loaded, [text], media=media)


async def prompt_tokens(loaded: Loaded, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Tokenize each prompt as `text_prompt` does. A text behind others, or behind token ids, is no beginning."""
    rows: list[list[int | str]] = [[prompt] if isinstance(prompt, str) else prompt for prompt in prompts]
    texts = [part for parts in rows for part in parts if isinstance(part, str)]

    def tokens(stopped: Stopped) -> list[list[int]]:
        return [row(_Counting(loaded.engine, stopped, fits=length > COUNTED), parts) for parts in rows]

    length = sum(map(len, texts)) + ITEM * len(texts)
    return await aside(length, tokens)


def row(engine: Tokenizer, parts: Sequence[int | str]) -> list[int]:
    """Return the token ids among the parts with those of the texts between them; blocks."""
    tokens: list[int] = []
    for index, part in enumerate(parts):
        tokens += tokenize(engine, [part], begins=index == 0) if isinstance(part, str) else [part]
    return tokens


async def text_of(loaded: Loaded, tokens: Sequence[int]) -> str:
    """Return the text of a prompt, markup included. Raises InvalidField for tokens that the model does not have."""
    return await aside(ITEM * len(tokens), lambda _: loaded.engine.detokenize(tokens))


async def tokenized(loaded: Loaded, pieces: Sequence[str], *, fits: bool = True, media: Sequence[Attachment] = ()) -> list[int]:
    """Tokenize a text in pieces as `text_prompt` does; no token spans two pieces. Unless `fits`, it may exceed the context."""
    length = sum(map(len, pieces)) + ITEM * len(pieces)
    counted = fits and length > COUNTED
    work = LONG * len(media) + length  # pictures are decoded
    return await aside(work, lambda stopped: tokenize(_Counting(loaded.engine, stopped, fits=counted), pieces, media=media))


def tokenize(engine: Tokenizer, pieces: Sequence[str], *, begins: bool = True, media: Sequence[Attachment] = ()) -> list[int]:
    """Tokenize as `tokenized`; blocks. `begins` is False for a part of a text that does not begin it."""
    head, *rest = pieces or [""]
    bare = not begins or (bool(engine.info.bos) and head.startswith(engine.info.bos))
    left = iter(media)

    def own(piece: str) -> tuple[Attachment, ...]:
        return tuple(itertools.islice(left, count(piece))) if media else ()

    parts = [engine.tokenize(head, add_special=not bare, parse_special=True, media=own(head))]
    parts += [engine.tokenize(piece, add_special=False, parse_special=True, media=own(piece)) for piece in rest]
    return joined(parts)


@dataclasses.dataclass(frozen=True, slots=True)
class PreparedChat:
    """A turn and its jobs, one for each requested answer. Urgent jobs go ahead of others."""

    turn: Turn
    jobs: list[Job]
    urgent: bool = False


async def rendered(
    template: ChatTemplate,
    request: ChatRequest,
    function: Callable[_Arguments, _Result],
    *arguments: _Arguments.args,
    **named: _Arguments.kwargs,
) -> _Result:
    """Call a function that renders the request, all its renderings within one budget: at once if that takes milliseconds, else
    off the event loop."""
    n_messages, length = len(request.messages) + len(request.tools), sum(len(message.content) for message in request.messages)
    if length <= INLINE and n_messages < MANY:
        with allotted(QUICK) as budget:
            try:
                return function(*arguments, **named)
            except TemplateExceeded:
                if not budget.spent:  # a template that is known to be endless
                    raise

    def within_budget() -> _Result:
        with allotted(NORMAL.grown(n_messages, length)):
            return function(*arguments, **named)

    renderer = _renderers.setdefault(template, ThreadPoolExecutor(1, "template"))
    return await asyncio.get_running_loop().run_in_executor(renderer, within_budget)


def plan_chat(model: PromptModel, request: ChatRequest) -> Turn:
    """Render the chat, behind the model's system prompt if it has none; control tokens written in its messages stay text.

    Raises InvalidField for what the model cannot do.
    """
    return plan(_guarded(model, request), model.template, model.engine.info.control_tokens)


def _guarded(model: PromptModel, request: ChatRequest) -> ChatRequest:
    return dataclasses.replace(request, messages=guarded(with_system(request.messages, model.system), model.markup))


def boundaries(
    model: PromptModel, request: ChatRequest, text: str, tokens: Sequence[int], media: Sequence[Attachment] = ()
) -> tuple[int, ...]:
    """Return the lengths in tokens at which prompts of later requests are likely to part from a chat's prompt.

    `text` is the prompt as it was rendered, `tokens` are those of all of it, and `media` those of its markers. The last token
    before such a place may depend on what follows, so it belongs to what parts.
    """
    marks, found = _marks(model, text, tokens), [0]
    parts = {common_length(text, other) for other in upcoming(_guarded(model, request), model.template)}
    for at in sorted(parts - {len(text)}):
        start, first = next((mark for mark in reversed(marks) if mark[0] < at), (0, 0))
        shown = media[count(text[:start]) :] if media else ()
        before = tokenize(model.engine, pieces(text[start:at]), begins=(start, first) == (0, 0), media=shown)
        length = first + common_length(tokens, before[:-1], first)
        if length - found[-1] >= NEGLIGIBLE:
            found.append(length)
    return tuple(found[1:])


def _marks(model: PromptModel, text: str, tokens: Sequence[int]) -> list[tuple[int, int]]:
    """Return where the control tokens of a prompt are, in its text and among its tokens: no token spans them, so that a part
    of the text can be tokenized from there. None of them if the two disagree."""
    ids = model.engine.info.control_tokens
    spelled = list(model.markup.finditer(text)) if model.markup else []
    known = frozenset(ids.values())
    places = [index for index, token in enumerate(tokens) if token in known]
    places = places[max(0, len(places) - len(spelled)) :]  # the opening token is not spelled in every prompt
    if [tokens[index] for index in places] != [ids[match[0]] for match in spelled]:
        return []
    return [(match.start(), index) for match, index in zip(spelled, places, strict=True)]


async def prepare_chat(
    loaded: Loaded, request: ChatRequest, params: SamplingParams, n: int = 1, *, fits: bool = True
) -> PreparedChat:
    """Render and tokenize the chat, and compile its constraint. Raises InvalidField for what the model cannot do, and
    ContextLengthExceeded for a prompt that `fits` not."""
    info = loaded.engine.info
    turn = await rendered(loaded.template, request, plan_chat, loaded, request)
    prompt = await tokenized(loaded, pieces(turn.prompt), fits=fits, media=turn.media)
    if info.reuse == "snapshots":
        found = await rendered(loaded.template, request, boundaries, loaded, request, turn.prompt, prompt, turn.media)
        params = dataclasses.replace(params, boundaries=found)
    await compile_constraint(loaded, turn.constraint)
    predicted = await _predicted(loaded, request.prediction) if request.prediction else []
    budget = None
    if request.reasoning.budget is not None and turn.tags is not None:
        budget = ReasoningBudget(request.reasoning.budget, turn.tags.opening, turn.tags.end, turn.open)
    params = dataclasses.replace(
        params,
        constraint=turn.constraint,
        visible=tuple(info.control_tokens[text] for text in turn.visible),
        reasoning=budget,
        prediction=tuple(predicted),
    )
    return PreparedChat(turn, jobs_for([prompt], params, n))


async def _predicted(loaded: Loaded, text: str) -> list[int]:
    """Tokenize what an answer may be like, as far as one may get."""
    tokenize = functools.partial(loaded.engine.tokenize, text, add_special=False, parse_special=False)
    tokens = await aside(len(text), lambda stopped: tokenize(stopped=stopped))
    return tokens[: loaded.engine.info.context]


async def compile_constraint(loaded: Loaded, constraint: Constraint | None) -> None:
    """Compile the constraint, if any. Raises InvalidField for one that cannot be enforced."""
    if constraint is not None:
        await asyncio.to_thread(loaded.text_engine.prepare, constraint)


async def prepare_texts(loaded: Loaded, jobs: Sequence[Job]) -> None:
    """Look up the texts that sampling works with, in a thread, so that submitting the jobs does not. Raises InvalidField."""
    params = jobs[0][1]  # those of a request have the same texts
    many = sum(map(len, params.stop)) > SHORT or any(isinstance(of, str) for of, _ in params.logit_bias)
    if many or params.bad_words or params.dry_multiplier:
        await asyncio.to_thread(loaded.text_engine.prepare_texts, params)


def jobs_for(prompts: Sequence[Sequence[int]], params: SamplingParams, n: int) -> list[Job]:
    """Return `n` jobs for each prompt, next to each other. A seed goes up by one from answer to answer."""
    if n == 1:
        return [(prompt, params) for prompt in prompts]
    seeds = [None if params.seed is None else (params.seed + i) & 0xFFFFFFFF for i in range(n)]
    return [(prompt, dataclasses.replace(params, seed=seed)) for prompt in prompts for seed in seeds]


File = tuple[str, str]
"""A name and a text."""


async def gap_prompt(
    loaded: Loaded, prefix: str, suffix: str, files: Sequence[File] = (), beginning: str = "", field: str = "suffix"
) -> list[int]:
    """Tokenize the text around a gap, behind other `files`, and the beginning of its filling. Markup in them stays text.

    Raises InvalidField, naming `field`, for a model that cannot fill in, and ContextLengthExceeded without files.
    """
    engine, fim = loaded.engine, loaded.engine.info.fim
    if fim is None:
        raise InvalidField(field, f"model {loaded.spec.id!r} has no tokens to fill in text with; ask one made for code")

    def tokens(stopped: Stopped) -> list[int]:
        fits = not files and length > COUNTED  # of the files, some may be left out later
        counting = _Counting(engine, stopped, fits=fits)
        tokenize = functools.partial(counting.tokenize, add_special=False, parse_special=False)
        return infill(fim, tokenize, prefix, suffix, files) + (tokenize(beginning) if beginning else [])

    texts = [prefix, suffix, beginning, *(text for _, text in files)]
    length = sum(map(len, texts)) + ITEM * len(texts)
    return await aside(length, tokens)
