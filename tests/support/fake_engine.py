"""Stand-ins at the real seams: an engine that plays a script, a registry and a pool around it."""

from __future__ import annotations

import dataclasses
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from locallab.chat.known_templates import CHATML
from locallab.engine import LOCAL, Caller, EngineStats, ModelInfo, Totals
from locallab.engine.adapters import BASE, AdapterInfo, Scales, chosen
from locallab.engine.kv_map import KvMap
from locallab.engine.post import Post, call_each
from locallab.engine.request import (
    CacheUse,
    Constraint,
    FimTokens,
    FinishReason,
    Listener,
    Progress,
    SamplingParams,
    Tier,
    TokenEvent,
    TokenLogprob,
    Usage,
)
from locallab.engine.text_stream import TextStream
from locallab.engine.view import EngineView, RequestView
from locallab.errors import ContextLengthExceeded, EngineClosed, EngineDied, InvalidField, ModelLoadError, Overloaded
from locallab.media import marker
from locallab.media.attachment import Attachment
from locallab.models.gguf import Header
from locallab.models.registry import Registry
from locallab.models.spec import ModelSpec
from locallab.pool.memory import NO_MEMORY, Layers, Memory, MemoryUse, Need, Reading, Suited, settings_of
from locallab.settings import EngineSettings

BOS, EOS, N_VOCAB = 256, 257, 258
FIM = FimTokens(prefix=253, suffix=254, middle=255)  # bytes that no UTF-8 has
MARKUP = {BOS: b"<s>", 253: b"<PRE>", 254: b"<SUF>", 255: b"<MID>"}
TEXT = "Hello, wörld! 😀 done."

Step = bytes | threading.Event | Exception | Progress
"""Tokens to emit, an event to wait for, a failure, or prompt progress."""

Script = Callable[[list[int], SamplingParams], Sequence[Step]]


def detokenize(tokens: Sequence[int]) -> str:
    """Return the text of byte tokens, and of others as in MARKUP."""
    return b"".join(MARKUP.get(token) or bytes([token]) for token in tokens).decode()


def say(text: str, size: int = 3) -> list[Step]:
    """Split the text into steps of `size` bytes, which are tokens: characters come in pieces."""
    data = text.encode()
    return [data[i : i + size] for i in range(0, len(data), size)]


def weighed(token: int, count: int) -> TokenLogprob:
    """Return a logprob: smaller bytes are likelier; the alternatives are the first letters."""
    top = tuple((each, bytes([each]), (97 - each) / 100) for each in range(97, 97 + count))
    return TokenLogprob(token, MARKUP.get(token) or bytes([token]), -token / 100, top)


@dataclasses.dataclass(eq=False)
class Running:
    id: int
    prompt: list[int]
    params: SamplingParams
    listener: Listener
    steps: list[Step]
    text: TextStream
    caller: Caller = LOCAL
    submitted: float = dataclasses.field(default_factory=time.perf_counter)
    use: CacheUse | None = None
    said: int = 0
    scored: bool = False

    def fields(self, tokens: bytes) -> dict[str, Any]:
        """Return the tokens' fields of an event, with logprobs if requested, and once those of the prompt."""
        count, of_prompt = self.params.logprobs, self.params.prompt_logprobs and not self.scored
        self.scored = True
        if count is None:
            return {"token_ids": tuple(tokens)}
        prompt = tuple(dataclasses.replace(weighed(token, count), rank=9) for token in self.prompt[1:]) if of_prompt else ()
        return {
            "token_ids": tuple(tokens),
            "logprobs": tuple(weighed(token, count) for token in tokens),
            "prompt_logprobs": prompt,
        }


class FakeEngine:
    """Has Engine's interface; a token is a byte, and a picture or a sound a negative one, which in `submitted` is its kind and
    the beginning of its digest. Plays `script(prompt, params)` for each request, one step of all at a time.

    `submitted`, `urgent`, `callers`, `prepared`, `cancelled` and `shared` record what was asked; `full` makes it refuse;
    `cached` is what its usage says, and `tier` where that was; no prompt gets more because it diverged, or because it is the
    first.
    """

    def __init__(
        self,
        path: Path = Path("fake.gguf"),
        settings: EngineSettings | None = None,
        post: Post = call_each,
        *,
        script: Script = lambda prompt, params: say(TEXT),
        template: str | None = CHATML,
        named_templates: Mapping[str, str] | None = None,
        context: int = 512,
        fim: FimTokens | None = None,
        control_tokens: Mapping[str, int] | None = None,
        modalities: Iterable[str] = ("text",),
        adapters: Sequence[str] = (),
    ) -> None:
        if "broken" in path.name:
            raise ModelLoadError(path, "not a GGUF file")
        self.info = ModelInfo(
            path=path,
            description="fake 0B",
            architecture="fake",
            size_bytes=98_000_000,
            n_params=135,
            n_ctx_train=2 * context,
            context=context,
            kv_tokens=4 * context,
            n_vocab=N_VOCAB,
            chat_template=template,
            named_templates=named_templates or {},
            bos="<s>",
            eos="</s>",
            add_bos=True,
            reuse="prefix",
            device="CPU (no thread)",
            fim=fim,
            control_tokens=control_tokens or {},
            modalities=frozenset(modalities),
            adapters=tuple(AdapterInfo(name, 1.0, "", "", name) for name in adapters),
        )
        self.settings = settings
        self._script = script
        self.shared: list[str] = []
        self.reset()
        self.totals = Totals()
        self.closed_with: float | None = None
        self._post = post
        self._ids = itertools.count()
        self._lock = threading.Condition()
        self._running: dict[int, Running] = {}
        self._seen: dict[int, str] = {}
        self._death: Future[EngineDied] = Future()
        self.active = BASE
        self._thread = threading.Thread(target=self._work, name="fake engine", daemon=True)
        self._thread.start()

    def reset(self) -> None:
        """Restore the first script, and forget all records."""
        self.script = self._script
        self.full = False
        self.cached = 0
        self.tier: Tier = "resident"
        self.submitted: list[tuple[str, SamplingParams]] = []
        self.urgent: list[bool] = []
        self.callers: list[Caller] = []
        self.prepared: list[Constraint] = []
        self.cancelled: list[int] = []
        self.looks = 0
        self.evicted = 0

    def tokenize(
        self,
        text: str,
        *,
        add_special: bool,
        parse_special: bool,
        fits: bool = False,
        stopped: Callable[[], bool] = lambda: False,
        media: Sequence[Attachment] = (),
    ) -> list[int]:
        if media:
            first, *others = marker.split(text)
            assert len(others) == len(media), "each of the media has a marker"
            tokens = self.tokenize(first, add_special=add_special, parse_special=parse_special)
            for each, after in zip(media, others, strict=True):
                seen = -1 - int(each.digest[:7], 16)
                self._seen[seen] = f"<{each.kind} {each.digest[:8]}>"
                tokens += [seen, *after.encode()]
            return tokens
        opened = parse_special and text.startswith("<s>")
        body = list(text.removeprefix("<s>").encode() if opened else text.encode())
        tokens = [BOS] * (opened + add_special) + body
        if fits and len(tokens) > self.info.context:
            raise ContextLengthExceeded(len(tokens), self.info.context)
        return tokens

    def pieces(self, tokens: Sequence[int]) -> list[bytes]:
        if tokens and (min(tokens) < 0 or max(tokens) >= N_VOCAB):
            raise InvalidField("tokens", f"token ids must be from 0 to {N_VOCAB - 1}")
        return [MARKUP.get(token) or (bytes([token]) if token < 256 else b"") for token in tokens]

    def detokenize(self, tokens: Sequence[int]) -> str:
        return b"".join(self.pieces(tokens)).decode("utf-8", "replace")

    def _text(self, tokens: Sequence[int]) -> str:
        """Return the text of a prompt, with what is seen and heard in it."""
        return b"".join(
            self._seen[each].encode() if each < 0 else MARKUP.get(each) or bytes([each]) for each in tokens
        ).decode()

    def prepare(self, constraint: Constraint) -> None:
        self.prepared.append(constraint)

    def prepare_texts(self, params: SamplingParams) -> None:
        pass

    def check(self, tokens: Sequence[int], params: SamplingParams) -> None:
        if not tokens:
            raise InvalidField("prompt", "must have at least one token")
        if any(token < 0 and token not in self._seen for token in tokens) or max(tokens) >= N_VOCAB:
            raise InvalidField("prompt", f"token ids must be from 0 to {N_VOCAB - 1}")
        chosen(self.info.adapters, params.lora or ())
        if len(tokens) >= self.info.context:
            raise ContextLengthExceeded(len(tokens), self.info.context)

    def submit(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        listener: Listener,
        *,
        caller: Caller = LOCAL,
        urgent: bool = False,
    ) -> int:
        tokens = list(prompt)
        self.check(tokens, params)
        with self._lock:
            if self.closed_with is not None:
                raise EngineClosed()
            if self.full:
                raise Overloaded(3, retry_after=7)
            steps = list(self.script(tokens, params))
            request = Running(
                next(self._ids),
                tokens,
                params,
                listener,
                steps,
                TextStream(params.stop, include_stop=params.include_stop),
                caller,
            )
            self.submitted.append((self._text(tokens), params))
            self.urgent.append(urgent)
            self.callers.append(caller)
            self._running[request.id] = request
            self._lock.notify()
        return request.id

    def activate(self, scales: Scales) -> None:
        self.active = chosen(self.info.adapters, scales)

    def share(self, prompts: Sequence[Sequence[int]]) -> None:
        self.shared = [detokenize(prompt) for prompt in prompts]

    def cancel(self, request_id: int) -> None:
        with self._lock:
            self.cancelled.append(request_id)
            if request_id in self._running:
                self._running[request_id].steps = [InterruptedError()]
            self._lock.notify()

    def stats(self) -> EngineStats:
        counts = {field.name: getattr(self.totals, field.name, 0) for field in dataclasses.fields(EngineStats)}
        return EngineStats(**{**counts, "running": len(self._running)})

    def view(self) -> Future[EngineView]:
        """Answer at once; `looks` counts these."""
        self.looks += 1
        answer: Future[EngineView] = Future()
        with self._lock:
            answer.set_result(self._view())
        return answer

    def owner(self, params: SamplingParams, caller: Caller) -> str:
        return caller.owner

    def held(self, prompts: Sequence[tuple[list[int], str]]) -> Future[list[int]]:
        """Answer that all is there, but for `evicted` tokens of each."""
        answer: Future[list[int]] = Future()
        answer.set_result([max(0, len(tokens) - 1 - self.evicted) for tokens, _ in prompts])
        return answer

    def _view(self) -> EngineView:
        now, totals, cells = time.perf_counter(), self.totals, self.info.kv_tokens
        live = min(cells, sum(len(each.prompt) + each.said for each in self._running.values()))
        return EngineView(
            at=now,
            running=len(self._running),
            waiting=0,
            requests=tuple(
                RequestView(
                    id=each.id,
                    caller=each.caller,
                    state="decode" if each.said else "prefill",
                    prompt_tokens=len(each.prompt),
                    cached_tokens=each.use.hit if each.use else 0,
                    computed_tokens=len(each.prompt) + each.said,
                    answer_tokens=each.said,
                    age_seconds=now - each.submitted,
                    ttft_seconds=0.25 if each.said else None,
                )
                for each in self._running.values()
            ),
            prompt_tokens=totals.prompt_tokens,
            answer_tokens=totals.completion_tokens,
            steps=totals.steps,
            step_seconds=totals.step.sum,
            stored_bytes=1 << 20,
            stored_limit=4 << 20,
            kv=KvMap(
                layout="unified",
                cells=cells,
                live=live,
                shared=0,
                idle=0,
                free=cells - live,
                streams=1,
                bucket_cells=cells,
                buckets=((live, 0, 0),),
            ),
        )

    def on_death(self, callback: Callable[[EngineDied], None]) -> None:
        self._death.add_done_callback(lambda death: callback(death.result()))

    def die(self, reason: str = "broken") -> None:
        """End as a real engine does by an error of its own."""
        death = EngineDied(reason)
        with self._lock:
            self.closed_with = 0.0
            for request in self._running.values():
                request.steps = [death]
            self._lock.notify()
        self._thread.join()
        self._death.set_result(death)

    def close(self, grace: float = 0.0) -> None:
        with self._lock:
            self.closed_with = grace if self.closed_with is None else self.closed_with
            for request in self._running.values():
                request.steps = [InterruptedError()] if grace == 0 else request.steps
            self._lock.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._lock:
                events = [(r.listener, event) for r in list(self._running.values()) for event in self._step(r)]
                if not events:
                    if self.closed_with is not None and not self._running:
                        return
                    self._lock.wait(0.005)
            if events:
                self._post(events)

    def _step(self, request: Running) -> Iterator[TokenEvent]:
        if request.use is None:
            request.use = self._use(request)
            yield TokenEvent("", cache=request.use)
        step = request.steps[0] if request.steps else b""
        if isinstance(step, threading.Event):
            if not step.is_set():
                return
            request.steps.pop(0)
            return
        if isinstance(step, Progress):
            request.steps.pop(0)
            if request.params.progress:
                yield TokenEvent("", progress=step)
        elif isinstance(step, InterruptedError):
            yield self._end(request, "", "cancelled")
        elif isinstance(step, Exception):
            yield self._end(request, "", "error", step)
        else:
            yield self._say(request, step)
            del request.steps[:1]

    def _use(self, request: Running) -> CacheUse:
        if not self.cached:
            return CacheUse(0, len(request.prompt), "none", "first time", 0)
        return CacheUse(self.cached, len(request.prompt), self.tier, "diverged", self.cached)

    def _say(self, request: Running, step: bytes) -> TokenEvent:
        limit = request.params.max_tokens
        left = len(step) if limit is None else limit - request.said
        text = request.text.feed(step[:left])
        request.said += len(step[:left])
        self.totals.completion_tokens += len(step[:left])
        fields = request.fields(step[:left])
        if request.text.stopped:
            return self._end(request, text, "stop", **fields)
        if left < len(step) or (limit is not None and request.said == limit):
            return self._end(request, text + request.text.finish(), "length", **fields)
        if len(request.steps) <= 1:
            return self._end(request, text + request.text.finish(), "stop", **fields)
        return TokenEvent(text, **fields)

    def _end(
        self, request: Running, text: str, reason: FinishReason, error: Exception | None = None, **fields: Any
    ) -> TokenEvent:
        del self._running[request.id]
        self.totals.prompt(len(request.prompt), request.use)
        usage = Usage(len(request.prompt), request.said, self.cached)
        return TokenEvent(text, finish_reason=reason, usage=usage, error=error, stop=request.text.stop, **fields)


class FakeMemory(Memory):
    """Memory of `total` bytes, of which each open engine of `engines` takes `size`."""

    def __init__(self, total: int, size: int, engines: Callable[[], Iterable[FakeEngine]]) -> None:
        super().__init__()
        self._total = total
        self._size = size
        self._engines = engines

    def room(self) -> MemoryUse:
        return MemoryUse(ram=self._total - self.reading().ram)

    def reading(self) -> Reading:
        return Reading(sum(self._size for engine in self._engines() if engine.closed_with is None))

    def suit(
        self,
        spec: ModelSpec,
        path: Path,
        layers: Layers,
        held: MemoryUse = NO_MEMORY,
        header: Header | None = None,
        draft: Path | None = None,
        mmproj: Path | None = None,
    ) -> Suited:
        """Return the same need for every model, fitting or not, with the layers that are fixed."""
        need = Need(path, MemoryUse(ram=self._size), MemoryUse(ram=self._size))
        files = {"draft_model": draft and str(draft), "mmproj": mmproj and str(mmproj)}
        settings = dataclasses.replace(settings_of(spec, layers), **files)  # type: ignore[arg-type]
        return Suited(settings, need, "a fake")


def registry(folder: Path, *names: str) -> Registry:
    """Write a registry of models in `folder`; the first has the alias "first"."""
    lines = ["models:"]
    for index, name in enumerate(names or ("tiny:1b", "other:2b", "broken:3b")):
        file = folder / f"{name.replace(':', '-')}.gguf"
        file.write_bytes(b"GGUF")
        os.truncate(file, 98_000_000)
        aliases = ", aliases: [first]" if index == 0 else ""
        source = f"{{kind: file, path: '{file}'}}"
        lines.append(f"- {{id: '{name}', source: {source}, size: 98 MB, context: 512, description: a fake{aliases}}}")
    path = folder / "models.yaml"
    path.write_text("\n".join(lines))
    return Registry.load(path)
