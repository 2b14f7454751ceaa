"""OpenAI's transcriptions, by models that hear: /v1/audio/transcriptions."""

from __future__ import annotations

import asyncio
import base64
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from locallab.chat import Message
from locallab.chat.turn import ChatRequest, ReasoningOptions, Turn
from locallab.engine import ModelInfo
from locallab.engine.request import SamplingParams
from locallab.errors import InvalidField, RequestError
from locallab.media.intake import Intake
from locallab.pool import Pool
from locallab.server.dialects.openai.fields import TRANSCRIPTION
from locallab.server.endpoint import Generating
from locallab.server.fields.body import parse, read
from locallab.server.fields.sampling import Sampling
from locallab.server.fields.table import Others
from locallab.server.inference.answer import whole_answer
from locallab.server.inference.generation import Collector, Item
from locallab.server.inference.lease import lease
from locallab.server.inference.media import REFUSALS, read_chat
from locallab.server.inference.prompt import prepare_chat
from locallab.server.inference.reader import read_whole
from locallab.server.reply import noted
from locallab.settings import ServerSettings

MULTIPART = "multipart/form-data"
NUMBERS = ("temperature", "max_tokens", "seed")
"""Fields that forms have as texts."""
MOST_FIELDS = 64


class TranscriptionBody(msgspec.Struct, kw_only=True):
    """A form, or the same as JSON with the file in base64."""

    file: Annotated[str, Meta(description="the sound: WAV, MP3 or FLAC")]
    model: Annotated[str | None, Meta(description="name of the model; an unknown name is the current one")] = None
    prompt: Annotated[str | None, Meta(description="what the model is told to do; default: Transcribe audio to text")] = None
    language: Annotated[str | None, Meta(description="language of the sound, which the model is told")] = None
    response_format: Annotated[Literal["json", "text"] | None, Meta(description="json, or the text alone")] = None
    temperature: Annotated[float | None, Meta(description="sampling temperature; default: 0, greedy")] = None
    max_tokens: Annotated[int | None, Meta(description="maximum tokens of the text")] = None
    seed: Annotated[int | None, Meta(description="seed of the sampling, for repeatable answers; -1: random")] = None

    OTHERS: ClassVar[Others] = TRANSCRIPTION
    FORM: ClassVar[bool] = True
    DEFAULTS: ClassVar[dict[str, float]] = {"temperature": 0}

    def request(self, notes: list[str], media: Intake | None) -> ChatRequest:
        """Return the request as a chat. Raises InvalidField."""
        told = self.prompt or "Transcribe audio to text"
        told += f" (language: {self.language})" if self.language else ""
        if media is None or "audio" not in media.kinds:
            raise InvalidField("file", REFUSALS["audio"])
        mark = media.take("audio", self.file, "file")
        return ChatRequest(messages=[Message("user", told + mark)], reasoning=ReasoningOptions(enabled=False))

    def params(self, info: ModelInfo) -> SamplingParams:
        sampling = Sampling(temperature=self.temperature or 0, max_tokens=self.max_tokens, seed=self.seed)
        return sampling.params(info, None)


class TranscriptionUsage(msgspec.Struct):
    type: Literal["tokens"]
    input_tokens: int
    output_tokens: int
    total_tokens: int


class Transcription(msgspec.Struct):
    text: str
    usage: TranscriptionUsage


class _Formatter:
    """Takes the answer to a turn; `whole` is the transcription."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._collector = Collector()

    def take(self, items: list[Item]) -> None:
        self._collector.take(items)

    def whole(self) -> Transcription:
        answer, end = read_whole(self._turn, self._collector.finished()[0])
        read, written = end.usage.prompt_tokens, end.usage.completion_tokens
        return Transcription(answer.text.strip(), TranscriptionUsage("tokens", read, written, read + written))


class Transcriptions:
    """The route."""

    def __init__(self, pool: Pool, settings: ServerSettings) -> None:
        self._pool = pool
        self._settings = settings

    def routes(self) -> list[BaseRoute]:
        path = "/v1/audio/transcriptions"
        options: dict[str, Any] = {"tag": "openai", "body": TranscriptionBody, "answer": Transcription, "streams": False}
        return [Generating(path, self.transcribe, **options)]

    async def transcribe(self, request: Request) -> ASGIApp:
        """Write down what is said in a sound, by a model that hears.

        The body is a form with a file, or JSON with the file in base64. With `response_format` text, the answer is the text.
        """
        body = await _read(request)
        loaded = await lease(request, self._pool, body.model, strict=self._settings.strict_models)
        params, notes = body.params(loaded.engine.info), list[str]()
        chat = await read_chat(request, loaded, self._settings, notes, body.request, length=len(body.file))
        prepared = await prepare_chat(loaded, chat, params)
        formatter = _Formatter(prepared.turn)
        response = await whole_answer(request, loaded, prepared.jobs, formatter, notes=notes)
        return noted(PlainTextResponse(formatter.whole().text), notes) if body.response_format == "text" else response


async def _read(request: Request) -> TranscriptionBody:
    """Return the body, whatever its form. Raises RequestError, InvalidField."""
    if not request.headers.get("content-type", "").lower().startswith(MULTIPART):
        return await read(request, TranscriptionBody)
    fields: dict[str, Any] = {}
    async with request.form(max_files=1, max_fields=MOST_FIELDS) as form:
        for key, value in form.multi_items():
            name = key.removesuffix("[]")  # how forms write lists
            if isinstance(value, str):
                fields[name] = _number(value) if name in NUMBERS else value
            elif name == "file":
                fields["file"] = await asyncio.to_thread(_encoded, await value.read())
            else:
                raise InvalidField(name, "is a file; send the sound as the file `file`")
    if "file" not in fields:
        raise RequestError("file: is missing: send the sound as the file `file`")
    request.state.notes = notes = list[str]()
    return parse(msgspec.json.encode(fields), TranscriptionBody, notes)


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _number(text: str) -> Any:
    """Return the number in a text; the text if it has none, which is refused by its field's name."""
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text
