"""llama.cpp's own routes: what a body asks, the prompt it makes, and the answer's shape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from locallab.engine.request import Constraint, SamplingParams, TokenLogprob
from locallab.errors import InvalidField
from locallab.pool import Loaded
from locallab.server.dialects.answer_fields import progress_body
from locallab.server.dialects.openai.errors import openai_body
from locallab.server.dialects.openai.logprobs import LEAST
from locallab.server.fields.constraint import grammar_of, schema_of
from locallab.server.fields.sampling import Sampling
from locallab.server.inference.generation import Collector, FinishedAnswer, Item
from locallab.server.inference.prompt import File, gap_prompt, prompts, text_prompt
from locallab.server.streaming import event

OFF = {"mirostat": 0, "dry_multiplier": 0, "xtc_probability": 0, "dynatemp_range": 0, "n_cmpl": 1}
"""What we have not, and the value that means it is not wanted."""

STOPPED = {"length": "limit", "stop": "eos"}
IDS = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}
ONE = {"type": "array", "minItems": 1, "maxItems": 1, "items": {"anyOf": [{"type": "string"}, IDS]}}
PROMPT = {"anyOf": [{"type": "string"}, IDS, ONE]}
ANY_SCHEMA = {"type": ["object", "boolean", "null"]}

SILENT = {"index": 0, "content": "", "tokens": [], "stop": False}
"""An event without text."""


class LlamaBody(Sampling, kw_only=True):
    """What both routes have in common. `None` stands for a sampler that is off; one that we have not is refused if it is on."""

    model: Annotated[str | None, Meta(description="the model to ask; an unknown name is the current one")] = None
    stream: Annotated[bool | None, Meta(description="send the answer while it is written")] = None
    return_progress: Annotated[bool | None, Meta(description="with stream: tell how far the prompt is read")] = None
    n_predict: Annotated[int | None, Meta(description="most tokens of the answer; -1: as far as the context goes")] = None
    n_probs: Annotated[int | None, Meta(description="likeliest tokens to tell in place of each; 0: tell nothing")] = None
    grammar: Annotated[str | None, Meta(description="a grammar in GBNF that the answer matches")] = None
    json_schema: Annotated[Any, Meta(description="a JSON schema that the answer matches", extra_json_schema=ANY_SCHEMA)] = None
    mirostat: Annotated[int | None, Meta(description="only 0, which is off")] = None
    dry_multiplier: Annotated[float | None, Meta(description="only 0, which is off")] = None
    xtc_probability: Annotated[float | None, Meta(description="only 0, which is off")] = None
    dynatemp_range: Annotated[float | None, Meta(description="only 0, which is off")] = None
    n_cmpl: Annotated[int | None, Meta(description="only 1: one answer")] = None
    post_sampling_probs: Annotated[bool | None, Meta(description="only false")] = None
    samplers: Annotated[Any, Meta(description="not heeded: their order is fixed; told in a header")] = None
    n_indent: Annotated[int | None, Meta(description="not heeded; told in a header")] = None
    t_max_predict_ms: Annotated[int | None, Meta(description="not heeded; told in a header")] = None

    LIMITS: ClassVar[tuple[str, ...]] = ("n_predict", "max_tokens")

    def sampling(self, n_vocab: int, longest: int, notes: list[str]) -> SamplingParams:
        """Checked and neutral; `notes` gets what is not heeded. Raises InvalidField for what cannot be served."""
        for field, off in OFF.items():
            if getattr(self, field) not in (None, off):
                raise InvalidField(field, f"is not supported; leave it out or set it to {off}")
        if self.post_sampling_probs:
            raise InvalidField("post_sampling_probs", "is not supported: probabilities are those before sampling")
        notes += [f"{field} is not heeded" for field in ("samplers", "n_indent", "t_max_predict_ms") if getattr(self, field)]
        progress = bool(self.stream and self.return_progress)
        constraint = self.constraint()
        return self.params(n_vocab, longest, constraint=constraint, logprobs=self.n_probs or None, progress=progress)

    def constraint(self) -> Constraint | None:
        """What the answer must match. Raises InvalidField."""
        if self.json_schema is None:
            return grammar_of(self.grammar)
        if self.grammar:
            raise InvalidField("json_schema", "cannot be combined with grammar")
        return schema_of(self.json_schema, "json_schema")


class LlamaCompletionBody(LlamaBody, kw_only=True):
    prompt: Annotated[Any, Meta(description="a text or token ids", extra_json_schema=PROMPT)]

    async def tokens(self, loaded: Loaded, notes: list[str]) -> Sequence[int]:
        """Raises InvalidField."""
        given = prompts(self.prompt)
        if len(given) > 1:
            raise InvalidField("prompt", "takes one prompt here; /v1/completions takes several")
        return await text_prompt(loaded, given[0]) if isinstance(given[0], str) else given[0]


class ExtraFile(msgspec.Struct):
    text: str
    filename: str | None = None


class InfillBody(LlamaBody, kw_only=True):
    input_prefix: Annotated[str | None, Meta(description="what stands before the gap")] = None
    input_suffix: Annotated[str | None, Meta(description="what stands behind it")] = None
    input_extra: Annotated[
        list[ExtraFile] | None, Meta(description="other files, the most important last; the first go if they do not all fit")
    ] = None
    prompt: Annotated[str | None, Meta(description="how the filling begins")] = None

    async def tokens(self, loaded: Loaded, notes: list[str]) -> Sequence[int]:
        """Raises InvalidField for a model that cannot fill in, and where there is nothing to go by."""
        if self.input_prefix is None and self.input_suffix is None:
            raise InvalidField("input_prefix", "is missing, and so is input_suffix")
        files = [(each.filename or "", each.text) for each in self.input_extra or ()]
        room = loaded.engine.info.context - self._reserved(loaded)
        left_out, most, tokens = 0, len(files), await self._around(loaded, files)
        if len(tokens) > room:
            while left_out < most:
                middle = (left_out + most) // 2
                fits = len(await self._around(loaded, files[middle:])) <= room
                left_out, most = (left_out, middle) if fits else (middle + 1, most)
            tokens = await self._around(loaded, files[left_out:])
        if left_out:
            notes.append(f"input_extra: {left_out} of {len(files)} files do not fit the context and were left out")
        return tokens

    async def _around(self, loaded: Loaded, files: Sequence[File]) -> list[int]:
        return await gap_prompt(
            loaded, self.input_prefix or "", self.input_suffix or "", files, self.prompt or "", field="input_suffix"
        )

    def _reserved(self, loaded: Loaded) -> int:
        """Tokens of the context that the answer may need: what it may take, at most a quarter."""
        quarter = loaded.engine.info.context // 4
        return quarter if self.n_predict is None or self.n_predict < 0 else min(quarter, max(1, self.n_predict))


class Probability(msgspec.Struct):
    id: int
    token: str
    bytes: list[int]
    logprob: Annotated[float, Meta(le=0)]


class TokenProbability(Probability):
    top_logprobs: list[Probability]


class LlamaAnswer(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The answer of /completion and /infill."""

    index: int
    content: str
    tokens: Annotated[list[int], Meta(description="the answer's tokens, what ended it included")]
    stop: Annotated[bool, Meta(description="whether it has ended: in a stream the last event has true")]
    model: str
    tokens_predicted: int
    tokens_evaluated: Annotated[int, Meta(description="tokens of the prompt")]
    tokens_cached: Annotated[int, Meta(description="tokens of the prompt that the prefix cache had")]
    truncated: bool
    stop_type: Annotated[str, Meta(description="eos, limit, or word: the stop string in stopping_word")]
    stopping_word: str
    completion_probabilities: list[TokenProbability] | msgspec.UnsetType = msgspec.UNSET


def probability(told: TokenLogprob) -> dict[str, Any]:
    top = [_likely(*each) for each in told.top]
    return {**_likely(told.token, told.piece, told.logprob), "top_logprobs": top}


def _likely(token: int, piece: bytes, logprob: float) -> dict[str, Any]:
    text = piece.decode("utf-8", "replace")
    return {"id": token, "token": text, "bytes": list(piece), "logprob": max(logprob, LEAST)}


class LlamaFormatter(Collector):
    """An event for each piece of text; the last one has none but says how it ended. `scored`: with logprobs."""

    def __init__(self, model: str, *, scored: bool) -> None:
        super().__init__()
        self._model = model
        self._scored = scored
        self._last = b""

    def whole(self) -> dict[str, Any]:
        [answer] = self.finished()
        return {**self._body(answer), **self._probabilities(answer.logprobs)}

    def encode(self, items: list[Item]) -> bytes:
        return b"".join(self._events(items))

    def end(self) -> bytes:
        return self._last

    def fail(self, error: Exception) -> bytes:
        return event(openai_body(error))

    def ping(self) -> bytes:
        return event(SILENT)

    def _events(self, items: list[Item]) -> Iterator[bytes]:
        for _, news in items:
            if news.progress is not None:
                yield event({**SILENT, "prompt_progress": progress_body(news.progress)})
            if news.text or news.logprobs:
                piece = {"index": 0, "content": news.text, "tokens": list(news.token_ids), "stop": False}
                yield event({**piece, **self._probabilities(news.logprobs)})
            if news.finish_reason is not None and news.usage is not None:
                self._last = event(self._body(FinishedAnswer("", news.finish_reason, news.usage, news.stop)))

    def _body(self, answer: FinishedAnswer) -> dict[str, Any]:
        """Return a LlamaAnswer without its probabilities."""
        return {
            "index": 0,
            "content": answer.text,
            "tokens": list(answer.tokens),
            "stop": True,
            "model": self._model,
            "tokens_predicted": answer.usage.completion_tokens,
            "tokens_evaluated": answer.usage.prompt_tokens,
            "tokens_cached": answer.usage.cached_tokens,
            "truncated": False,
            "stop_type": "word" if answer.stop else STOPPED[answer.finish_reason],
            "stopping_word": answer.stop or "",
        }

    def _probabilities(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        return {"completion_probabilities": [probability(each) for each in logprobs]} if self._scored else {}
