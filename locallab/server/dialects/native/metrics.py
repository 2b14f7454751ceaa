"""The metrics of /metrics, read from engines, pool and traffic at each scrape, so that a token costs nothing."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from locallab.engine import Engine, EngineStats, Histogram, Totals
from locallab.pool import Loaded, Pool
from locallab.server.middleware.traffic import Traffic
from locallab.server.usage import Spent, UsageLog
from locallab.version import __version__

MODEL = ("model",)

NOW: Mapping[str, tuple[str, Callable[[EngineStats], int]]] = {
    "requests_running": ("Requests being computed.", lambda stats: stats.running),
    "requests_waiting": ("Requests in the queue.", lambda stats: stats.waiting),
    "kv_used_tokens": ("Tokens in the KV pool, of running requests and of the prefix cache.", lambda stats: stats.kv_used),
    "kv_cached_tokens": ("Tokens in the KV pool that only the prefix cache holds.", lambda stats: stats.cached),
    "kv_capacity_tokens": ("Tokens the KV pool has room for.", lambda stats: stats.kv_total),
    "prefix_cache_stored_bytes": ("Host RAM that prefixes take.", lambda stats: stats.stored_bytes),
    "prefix_cache_limit_bytes": ("Host RAM that prefixes may take.", lambda stats: stats.stored_limit),
}

EVER: Mapping[str, tuple[str, Callable[[Totals], int]]] = {
    "prompt_tokens": ("Tokens of prompts, from the prefix cache or computed.", lambda totals: totals.prompt_tokens),
    "cached_tokens": ("Tokens of prompts found in the prefix cache.", lambda totals: totals.cached_tokens),
    "completion_tokens": ("Tokens of answers.", lambda totals: totals.completion_tokens),
    "draft_accepted_tokens": ("Drafted tokens that are part of answers.", lambda totals: totals.accepted_tokens),
    "draft_rejected_tokens": ("Drafted tokens that are not.", lambda totals: totals.rejected_tokens),
    "preemptions": ("Requests put back into the queue because the KV pool was full.", lambda totals: totals.preemptions),
    "adapter_switches": ("Times that other LoRA adapters had a turn.", lambda totals: totals.adapter_switches),
}

BY_LABEL: Mapping[str, tuple[str, str, Callable[[Totals], Mapping[Any, int]]]] = {
    "prefix_cache_requests": (
        "Requests by the reason why the prefix cache had no more of their prompt.",
        "reason",
        lambda totals: totals.cache_requests,
    ),
    "prefix_cache_missed_tokens": (
        "Tokens of prompts that the prefix cache did not have, by the reason.",
        "reason",
        lambda totals: totals.missed_tokens,
    ),
    "prefix_cache_hit_tokens": (
        "Tokens of prompts that the prefix cache had, by where they were.",
        "tier",
        lambda totals: totals.hit_tokens,
    ),
    "adapter_completion_tokens": (
        "Tokens of answers by the LoRA adapters that they were computed with.",
        "adapter",
        lambda totals: totals.adapter_tokens,
    ),
}

BY_KEY: Mapping[str, tuple[str, Callable[[Spent], int]]] = {
    "requests": ("Requests by the name of their API key, if any, and the model.", lambda spent: spent.requests),
    "prompt_tokens": ("Tokens of prompts by key and model.", lambda spent: spent.prompt_tokens),
    "cached_tokens": ("Tokens of prompts found in the prefix cache by key and model.", lambda spent: spent.cached_tokens),
    "completion_tokens": ("Tokens of answers by key and model.", lambda spent: spent.completion_tokens),
}

TIMES: Mapping[str, tuple[str, Callable[[Totals], Histogram]]] = {
    "time_to_first_token_seconds": (
        "From a request's arrival at the engine to its first token.",
        lambda totals: totals.time_to_first_token,
    ),
    "inter_token_seconds": ("From one token of an answer to the next.", lambda totals: totals.inter_token),
    "step_seconds": ("A step of the engine, for all running requests.", lambda totals: totals.step),
}


class KeyUsage(Collector):
    """The usage of each key and model since the start, by the key's name; the log bounds their number."""

    def __init__(self, usage: UsageLog) -> None:
        self._usage = usage

    def collect(self) -> Iterator[Metric]:
        totals = self._usage.totals()
        for name, (text, count) in BY_KEY.items():
            counter = CounterMetricFamily(f"locallab_key_{name}", text, labels=("key", "model"))
            for labels, spent in totals.items():
                counter.add_metric(labels, count(spent))
            yield counter


class Metrics(Collector):
    """All metrics of one server. Counters include engines that have been unloaded."""

    def __init__(self, pool: Pool, traffic: Traffic, usage: UsageLog) -> None:
        self._pool = pool
        self._traffic = traffic
        self._seen: dict[int, tuple[str, weakref.ref[Engine], Totals]] = {}
        self._past: dict[str, Totals] = {}
        self._numbers = itertools.count()
        self._registry = CollectorRegistry()
        self._by_key = CollectorRegistry()  # the same with the usage of each key
        process = ProcessCollector(registry=None)
        for registry in (self._registry, self._by_key):
            registry.register(self)
            registry.register(process)
        self._by_key.register(KeyUsage(usage))
        pool.on_loaded(self.see)

    @property
    def requests(self) -> int:
        """The number of requests that have ended."""
        return self._traffic.ended.total()

    def see(self, loaded: Loaded) -> None:
        """Count a newly loaded model, also once it is unloaded."""
        engine = loaded.engine
        self._seen[next(self._numbers)] = (loaded.spec.id, weakref.ref(engine), engine.totals)

    def exposition(self, accept: str, by_key: bool) -> tuple[bytes, str]:
        """Return the metrics and their content type, in the format the client accepts; `by_key` with the usage of each key."""
        encode, content_type = choose_encoder(accept)
        return encode(self._by_key if by_key else self._registry), content_type

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("locallab", "The server.", value={"version": __version__})
        ended = CounterMetricFamily(
            "locallab_http_requests", "Requests that have ended, by route and status.", labels=("route", "status")
        )
        for (route, status), count in self._traffic.ended.items():
            ended.add_metric((route, str(status)), count)
        yield ended
        yield _gauge("http_requests_in_flight", "Requests under way.", self._traffic.requests)
        yield _gauge("websockets_open", "WebSocket connections.", self._traffic.websockets)
        stats = self._pool.stats()
        yield _gauge("models_loaded", "Models that answer.", len(self._pool.loaded))
        yield _gauge("models_loading", "Models being fetched or loaded.", stats.loading)
        yield _counter("restarts", "Times that the server died and was started again.", self._pool.supervision.restarts)
        yield _counter("model_loads", "Models loaded.", stats.loads)
        yield _counter("model_load_failures", "Loads that failed.", stats.failures)
        yield _counter("model_unloads", "Models unloaded.", stats.unloads)
        yield _counter("engine_deaths", "Engines that have ended by an error.", stats.deaths)
        yield _counter("model_load_seconds", "Time spent on loading.", stats.load_seconds)
        yield from self._models()
        yield from self._totals()

    def _models(self) -> Iterator[Metric]:
        models = [(each, each.engine.stats()) for each in self._pool.loaded]
        info = InfoMetricFamily("locallab_model", "A loaded model.", labels=MODEL)
        context = GaugeMetricFamily("locallab_model_context_tokens", "Tokens one request may use.", labels=MODEL)
        memory = GaugeMetricFamily("locallab_model_memory_bytes", "Memory the model takes.", labels=("model", "kind"))
        for each, _ in models:
            figures = each.engine.info
            labels = {"architecture": figures.architecture, "type": figures.description, "device": figures.device}
            info.add_metric((each.spec.id,), labels)
            context.add_metric((each.spec.id,), figures.context)
            memory.add_metric((each.spec.id, "ram"), each.memory.ram)
            memory.add_metric((each.spec.id, "vram"), each.memory.vram)
        yield from (info, context, memory)
        for name, (text, figure) in NOW.items():
            family = GaugeMetricFamily(f"locallab_{name}", text, labels=MODEL)
            for each, stats in models:
                family.add_metric((each.spec.id,), figure(stats))
            yield family

    def _totals(self) -> Iterator[Metric]:
        """Yield counters and histograms of all engines of each model, including those that are gone."""
        live: list[tuple[str, Totals]] = []
        for number, (model, engine, done) in list(self._seen.items()):  # a copy: models are loaded in other threads
            if engine() is None:
                self._past.setdefault(model, Totals()).add(done)
                del self._seen[number]
            else:
                live.append((model, done))
        totals: dict[str, Totals] = {}
        for model, done in (*self._past.items(), *live):
            totals.setdefault(model, Totals()).add(done)
        for name, (text, count) in EVER.items():
            counter = CounterMetricFamily(f"locallab_{name}", text, labels=MODEL)
            for model, each in totals.items():
                counter.add_metric((model,), count(each))
            yield counter
        for name, (text, label, counts) in BY_LABEL.items():
            counter = CounterMetricFamily(f"locallab_{name}", text, labels=("model", label))
            for model, each in totals.items():
                for value, number in counts(each).items():
                    counter.add_metric((model, value), number)
            yield counter
        for name, (text, histogram) in TIMES.items():
            family = HistogramMetricFamily(f"locallab_{name}", text, labels=MODEL)
            for model, each in totals.items():
                buckets = (*map(str, histogram(each).bounds), "+Inf")
                cumulated = itertools.accumulate(histogram(each).counts)
                family.add_metric((model,), list(zip(buckets, cumulated, strict=True)), histogram(each).sum)
            yield family


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"locallab_{name}", text, value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"locallab_{name}", text, value)
