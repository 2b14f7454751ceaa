"""One loaded model that makes text, usable from any thread: submit, cancel, stats, close."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
from collections.abc import Callable
from collections.abc import Sequence as Seq
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

from locallab import hardware
from locallab.cache_files import fingerprint
from locallab.engine import llama
from locallab.engine.adapters import BASE, AdapterFile, AdapterSet, Scales, chosen
from locallab.engine.answer import Answer
from locallab.engine.calibration import calibrate, measure_switch
from locallab.engine.caller import LOCAL, Caller
from locallab.engine.commands import Cancel, Look, Share, Submit
from locallab.engine.context import Context
from locallab.engine.costs import StepCosts
from locallab.engine.device_sampling import DeviceSamplers, device_plan
from locallab.engine.disk_cache import DiskCache, model_digest
from locallab.engine.draft_model import check_pair, open_drafter
from locallab.engine.engine import TEXT_ONLY, Engine, Works, free_memory, info_of, open_weights
from locallab.engine.engine import device as device_name
from locallab.engine.grammar.grammars import Grammars
from locallab.engine.limits import (
    GPU_WALK_SHARE,
    WALK_SECONDS,
    WALK_SHARE,
    Limits,
    context_length,
    idle_cells,
    ubatch_of,
)
from locallab.engine.limits import limits as limits_of
from locallab.engine.lora import Adapters
from locallab.engine.media.reader import Reader
from locallab.engine.media.runs import Prompt, Run, joined
from locallab.engine.placement import Placement
from locallab.engine.post import Post, call_each
from locallab.engine.request import Constraint, Listener, SamplingParams
from locallab.engine.sampling_check import check
from locallab.engine.sampling_defaults import sampling_of
from locallab.engine.scheduler import Scheduler
from locallab.engine.sequence import Sequence
from locallab.engine.token_rules import RuleBook, forbids
from locallab.engine.view import held_of
from locallab.engine.worker import Worker
from locallab.errors import ContextLengthExceeded, InvalidField, ModelLoadError
from locallab.media import marker
from locallab.media.attachment import Attachment
from locallab.settings import EngineSettings, cache_directory

UBATCH_STEP = 32
"""Tokens by which llama.cpp's batches grow where a picture does not fit into one."""

if TYPE_CHECKING:
    from locallab.engine.media.projector import Projector

logger = logging.getLogger(__name__)


class TextEngine(Engine):
    """An engine that answers prompts, many at once in one KV pool."""

    def __init__(
        self,
        path: Path,
        settings: EngineSettings,
        post: Post = call_each,
        digest: str | None = None,
        adapters: Seq[AdapterFile] = (),
    ) -> None:
        """Load the model (seconds) with its `adapters`, all of them off at first. `digest` is that of the weights, if known:
        prefixes on disk are kept under it.
        Raises ModelLoadError."""
        self._digest = digest
        self._adapter_files = tuple(adapters)
        self._active = BASE
        self._ids = itertools.count()
        self._post = post
        super().__init__(path, settings)

    def prepare(self, constraint: Constraint) -> None:
        """Compile a constraint, so that `submit` need not: milliseconds, a quarter of a second for a model's first one.

        Raises InvalidField, with the constraint's own field, for what cannot be enforced in full; EngineClosed.
        """
        self._grammars.compile(constraint)

    def prepare_texts(self, params: SamplingParams) -> None:
        """Look up the texts of parameters that are within their ranges in the vocabulary, so that `submit` need not: up to
        some 100 ms, mostly nothing. Raises InvalidField, EngineClosed."""
        check(params, self.info.n_vocab)
        with self._tokenizer.using():
            self._rules.rules(params)

    def submit(
        self, prompt: Seq[int], params: SamplingParams, listener: Listener, *, caller: Caller = LOCAL, urgent: bool = False
    ) -> int:
        """Queue a request and return its id at once; `listener` gets its events through the engine's `post`.

        It is computed for `caller`. An `urgent` one goes ahead of others, within bounds. A constraint that is not prepared is
        compiled here.
        Raises InvalidField, ContextLengthExceeded (before any work), Overloaded, EngineClosed.
        """
        tokens, runs = list(prompt), getattr(prompt, "runs", ())
        self.check(prompt, params)
        limit = self.info.context if params.max_tokens is None else min(self.info.context, len(tokens) + params.max_tokens)
        adapters = self._adapters(params)
        guide = self._grammars.guide(params.constraint, forces=not forbids(params)) if params.constraint else None
        with self._lock:
            overloaded = self._admit(caller)
            rules = self._rules.rules(params)
            greedy = self._settings.device_sampling == "on"
            plan = device_plan(params, rules, self._model.end_tokens, greedy=greedy) if self._samples_on_device else None
            answer = Answer(params, self._model, guide, rules, plan)
            sequence = Sequence(next(self._ids), tokens, len(tokens), limit, answer, listener, urgent, caller, adapters)
            sequence.runs = tuple(run.at(run.start) for run in runs)
            self._worker.commands.put(Submit(sequence, overloaded))
        return sequence.id

    def owner(self, params: SamplingParams, caller: Caller) -> str:
        """Return whose prefixes a request has, for `held`."""
        return caller.owner + self._adapters(params).mark

    def held(self, prompts: Seq[tuple[list[int], str]]) -> Future[list[int]]:
        """Ask how many tokens of each prompt the prefix cache has computed, each with its owner; at most all but the last. The
        engine's own thread answers between two steps; once it has ended, nobody does."""
        answer: Future[list[int]] = Future()
        self._worker.commands.put(Look(answer, lambda scheduler, totals: held_of(prompts, scheduler)))
        return answer

    def _adapters(self, params: SamplingParams) -> AdapterSet:
        return self._active if params.lora is None else chosen(self.info.adapters, params.lora)

    def tokenize(
        self,
        text: str,
        *,
        add_special: bool,
        parse_special: bool,
        fits: bool = False,
        stopped: Callable[[], bool] = lambda: False,
        media: Seq[Attachment] = (),
    ) -> list[int]:
        """Return the token ids of `text` as `Engine.tokenize` does, with the pictures and sounds of its markers: a Prompt.

        Raises besides UnreadableMedia and MediaTooLarge for files that turn out to be damaged, and InvalidField for what the
        model does not take.
        """
        if not media or self._reader is None:
            return super().tokenize(
                text, add_special=add_special, parse_special=parse_special, fits=fits, stopped=stopped, media=media
            )
        left, found = iter(media), list[Seq[int]]()
        if add_special and self.info.add_bos:
            found.append(self._tokenizer.tokenize("", add_special=True, parse_special=False)[:1])
        for index, part in enumerate(marker.parts(text)):
            if index % 2:
                with self._tokenizer.using():
                    found.append(self._reader.read(next(left)))
            elif part:
                found.append(super().tokenize(part, add_special=False, parse_special=parse_special, fits=fits, stopped=stopped))
        prompt = joined(found)
        if fits and len(prompt) > self.info.context:
            raise ContextLengthExceeded(len(prompt), self.info.context)
        return prompt

    def picture(self, width: int, height: int, rgb: bytes, field: str) -> Prompt:
        """Return a picture of [height, width, 3] bytes as part of a prompt; tens of milliseconds. `field` names it in errors.

        Raises InvalidField for what the model cannot see, EngineClosed.
        """
        with self._tokenizer.using():
            if self._projector is None:
                raise InvalidField(field, "this model takes no images")
            return self._projector.picture(width, height, rgb, field)

    def sound(self, samples: bytes, field: str) -> Prompt:
        """Return a sound, float32 samples of one channel at `audio_rate`, as part of a prompt; raises as `picture`."""
        with self._tokenizer.using():
            if self._projector is None:
                raise InvalidField(field, "this model takes no audio")
            return self._projector.sound(samples, field)

    @property
    def audio_rate(self) -> int:
        """Samples a second of the sounds that the model takes; 0 if it takes none."""
        return self._projector.rate if self._projector is not None and self._projector.hears else 0

    @property
    def active(self) -> AdapterSet:
        """The adapters of requests that choose none."""
        return self._active

    def activate(self, scales: Scales) -> None:
        """Let requests that choose no adapters have these from now on. Raises InvalidField."""
        self._active = chosen(self.info.adapters, scales)

    def share(self, prompts: Seq[Seq[int]]) -> None:
        """Let all callers have what begins one of these prompts, even where prefixes are kept apart by owner. Only before the
        first request."""
        self._worker.commands.put(Share(tuple(list(prompt) for prompt in prompts)))

    def check(self, tokens: Seq[int], params: SamplingParams) -> None:
        """Raise InvalidField and ContextLengthExceeded as `submit` does."""
        check(params, self.info.n_vocab)
        if not tokens:
            raise InvalidField("prompt", "must have at least one token")
        chosen(self.info.adapters, params.lora or ())
        runs: tuple[Run, ...] = getattr(tokens, "runs", ())
        self._check_tokens("prompt", [token for token in tokens if token >= 0] if runs else tokens)
        if len(tokens) >= self.info.context:
            raise ContextLengthExceeded(len(tokens), self.info.context)
        if runs and params.prompt_logprobs:
            raise InvalidField("prompt_logprobs", "are not known of a prompt with images or audio")
        for run in runs:
            if run.whole and run.count > self._most_whole:
                reason = f"takes {run.count} tokens, which must be computed at once: at most {self._most_whole} can (--ubatch)"
                raise InvalidField(run.field, reason)

    def cancel(self, request_id: int) -> None:
        """End a request within a step; one that has ended already stays as it is."""
        self._worker.commands.put(Cancel(request_id))

    def _load(self, path: Path, native: contextlib.ExitStack) -> Works:
        settings = self._settings
        model, on_gpu = self._open_model(path, native)
        if not model.has_decoder:
            raise ModelLoadError(path, "this model cannot generate text")
        lora = Adapters(model, self._adapter_files) if self._adapter_files else None
        if lora is not None:
            native.callback(lora.close)
            if settings.kv_layout == "auto":  # the streams of a set would have gaps between them
                settings = dataclasses.replace(settings, kv_layout="unified")
        self._grammars = Grammars(model)
        native.callback(self._grammars.close)
        self._projector = self._open_projector(model, native, on_gpu)
        self._reader = Reader(self._projector) if self._projector is not None else None
        longest = self._projector.longest_whole() if self._projector is not None else 0
        if longest > ubatch_of(settings):
            ubatch = -(-longest // UBATCH_STEP) * UBATCH_STEP
            settings = dataclasses.replace(settings, ubatch=ubatch, batch=max(ubatch, settings.batch))
        draft = self._open_draft(model, native)
        free = free_memory(model, settings, on_gpu)
        if draft is not None:  # each gets of it what its tokens take
            own, other = (each.kv_bytes_per_token(*settings.kv_types) for each in (model, draft))
            free = free * own // (own + other)
        limits = limits_of(model, settings, free, on_gpu)
        self._most_whole = min(limits.batch, limits.ubatch)
        threads = settings.threads or hardware.threads()
        context = Context(
            model,
            n_ctx=limits.cells,
            n_batch=limits.batch,
            n_ubatch=limits.ubatch,
            n_sequences=limits.slots + limits.shares,
            n_outputs=limits.outputs,
            threads=threads,
            kv_type=settings.kv_types[0],
            kv_type_v=settings.kv_types[1],
            unified=limits.pooled,
            settings=settings,
        )
        native.callback(context.close)
        wanted = settings.device_sampling == "on" or (settings.device_sampling == "auto" and on_gpu)
        self._samples_on_device = wanted and settings.split_mode != "tensor"  # llama.cpp refuses samplers there
        costs = StepCosts()
        limits = calibrate(context, costs, model.n_vocab, limits, context_length(model, settings), on_gpu)
        if lora is not None:
            context.adapters = lora
            costs.switch_seconds = measure_switch(context, lora, model.n_vocab)
            for id, each in enumerate(lora.infos):
                logger.info("adapter %d of %s is %s, with a scale of %g by default", id, path.name, each.name, each.scale)
        if limits.pooled and settings.cache_tokens is None:
            walk, share = WALK_SECONDS * model.n_layer * model.n_head / threads, WALK_SHARE
            if on_gpu:  # a cell's bytes at the rate at which a step reads the weights
                walk = model.kv_bytes_per_token(*settings.kv_types) * costs.decode(1) / model.size_bytes
                share = GPU_WALK_SHARE
            limits = dataclasses.replace(limits, cache_cells=idle_cells(limits, costs.per_token(), walk, share))
        self.info = info_of(
            model,
            context=context_length(model, settings),
            kv_tokens=limits.cells,
            kv_layout=limits.layout,
            memory=model.memory,
            reuse="prefix" if limits.cuts else "snapshots",
            device=device_name(model, settings, threads, on_gpu),
            fim=model.fim,
            parallel=limits.parallel,
            sampling=sampling_of(model, settings),
            modalities=TEXT_ONLY if self._projector is None else self._projector.modalities,
            adapters=lora.infos if lora else (),
        )
        self._rules = RuleBook(model, self.info.context)
        drafter, follower = None, None
        if draft is not None:
            drafter, follower = open_drafter(draft, model, limits, settings, self.info.context, native)
            logger.info("%s drafts for %s", draft.path.name, path.name)
        device = DeviceSamplers(context, model.n_vocab) if self._samples_on_device else None
        if device is not None:
            native.callback(device.close)
        disk = self._open_disk(path, context, limits)
        if disk is not None:
            native.callback(disk.close)
        scheduler = Scheduler(limits, costs, follower)
        worker = Worker(context, scheduler, model, self._post, self._ended, disk, device, drafter, self._projector)
        worker.totals.adapter_tokens.update({each.name: 0 for each in self.info.adapters})
        return worker

    def _open_projector(self, model: llama.Model, native: contextlib.ExitStack, on_gpu: bool) -> Projector | None:
        """Return what takes pictures and sounds, if there is a projector. Raises ModelLoadError."""
        settings = self._settings
        if settings.mmproj is None or settings.mmproj == "none":
            return None
        from locallab.engine.media.projector import Projector  # loads a library that few models need

        projector = Projector(Path(settings.mmproj), model, threads=settings.threads or hardware.threads(), gpu=on_gpu)
        native.callback(projector.close)
        return projector

    def _open_draft(self, target: llama.Model, native: contextlib.ExitStack) -> llama.Model | None:
        """Return the draft model, if there is one. Raises ModelLoadError if it cannot draft for `target`."""
        settings = self._settings
        if not (settings.draft_model and settings.drafts):
            return None
        draft = open_weights(Path(settings.draft_model), Placement.of(settings).of_draft(), native)
        check_pair(draft, target)
        return draft

    def _open_disk(self, path: Path, context: Context, limits: Limits) -> DiskCache | None:
        """Return the prefixes on disk that this model, llama.cpp and these settings would compute to the same bytes."""
        settings = self._settings
        if settings.cache_disk is None or not settings.cache_ram_mib:
            return None
        of_media = {"mmproj": model_digest(self._projector.path, None)} if self._projector is not None else {}
        facts = fingerprint(
            path.name,
            **of_media,
            weights=model_digest(path, self._digest),
            llama_cpp=str(llama.build_features()["llama_cpp_python"]),
            system=llama.system_info(),
            kv_type="/".join(dict.fromkeys(settings.kv_types)),
            gpu_layers=settings.gpu_layers,
            row=context.format.row,
            cuts=limits.cuts,
            streams=1 if limits.cuts or limits.pooled else limits.slots,
            **settings.unusual,
        )
        return DiskCache(cache_directory(settings.cache_disk), int(settings.cache_disk_gib * 2**30), facts)
