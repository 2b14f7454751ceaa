"""What /metrics tells: read from engines, pool and traffic when somebody asks, so that a token costs nothing."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping

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
from locallab.version import __version__

MODEL = ("model",)

NOW: Mapping[str, tuple[str, Callable[[EngineStats], int]]] = {
    "requests_running": ("Requests being computed.", lambda stats: stats.running),
    "requests_waiting": ("Requests in the queue.", lambda stats: stats.waiting),
    "kv_used_tokens": ("Tokens in the KV pool, of running requests and of the prefix cache.", lambda stats: stats.kv_used),
    "kv_cached_tokens": ("Tokens in the KV pool that only the prefix cache holds.", lambda stats: stats.cached),
    "kv_capacity_tokens": ("Tokens the KV pool has room for.", lambda stats: stats.kv_total),
}

EVER: Mapping[str, tuple[str, Callable[[Totals], int]]] = {
    "prompt_tokens": ("Tokens of prompts, from the prefix cache or computed.", lambda totals: totals.prompt_tokens),
    "cached_tokens": ("Tokens of prompts that the prefix cache had.", lambda totals: totals.cached_tokens),
    "completion_tokens": ("Tokens of answers.", lambda totals: totals.completion_tokens),
    "preemptions": ("Requests put back into the queue because the KV pool was full.", lambda totals: totals.preemptions),
}

TIMES: Mapping[str, tuple[str, Callable[[Totals], Histogram]]] = {
    "time_to_first_token_seconds": (
        "From a request's arrival at the engine to its first token.",
        lambda totals: totals.time_to_first_token,
    ),
    "inter_token_seconds": ("From one token of an answer to the next.", lambda totals: totals.inter_token),
    "step_seconds": ("A step of the engine, for all running requests.", lambda totals: totals.step),
}


class Metrics(Collector):
    """Every metric of one server. Counters keep what engines did that have been unloaded since."""

    def __init__(self, pool: Pool, traffic: Traffic) -> None:
        self._pool = pool
        self._traffic = traffic
        self._seen: dict[int, tuple[str, weakref.ref[Engine], Totals]] = {}
        self._past: dict[str, Totals] = {}
        self._numbers = itertools.count()
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        pool.on_loaded(self.see)

    def see(self, loaded: Loaded) -> None:
        """A model has been loaded: what it does counts from now on, even when it has gone before anybody asks."""
        engine = loaded.engine
        self._seen[next(self._numbers)] = (loaded.spec.id, weakref.ref(engine), engine.totals)

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """The metrics, and their content type, in the format the client asks for."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("locallab", "The server.", value={"version": __version__})
        yield from self._requests()
        yield from self._loads()
        yield from self._models(self._pool.loaded)
        yield from self._totals()

    def _requests(self) -> Iterator[Metric]:
        ended = CounterMetricFamily(
            "locallab_http_requests", "Requests that have ended, by route and status.", labels=("route", "status")
        )
        for (route, status), count in self._traffic.ended.items():
            ended.add_metric((route, str(status)), count)
        yield ended
        yield _gauge("http_requests_in_flight", "Requests under way.", self._traffic.requests)
        yield _gauge("websockets_open", "WebSocket connections.", self._traffic.websockets)

    def _loads(self) -> Iterator[Metric]:
        stats = self._pool.stats()
        yield _gauge("models_loaded", "Models that answer.", len(self._pool.loaded))
        yield _gauge("models_loading", "Models being fetched or loaded.", stats.loading)
        yield _counter("model_loads", "Models loaded.", stats.loads)
        yield _counter("model_load_failures", "Loads that failed.", stats.failures)
        yield _counter("model_unloads", "Models unloaded.", stats.unloads)
        yield _counter("model_load_seconds", "Time spent on loading.", stats.load_seconds)

    def _models(self, loaded: Iterable[Loaded]) -> Iterator[Metric]:
        models = [(each, each.engine.stats()) for each in loaded]
        info = InfoMetricFamily("locallab_model", "A loaded model.", labels=MODEL)
        context = GaugeMetricFamily("locallab_model_context_tokens", "Tokens one request may use.", labels=MODEL)
        memory = GaugeMetricFamily("locallab_model_memory_bytes", "Memory the model takes.", labels=("model", "kind"))
        for each, _ in models:
            about = each.engine.info
            info.add_metric(
                (each.spec.id,), {"architecture": about.architecture, "type": about.description, "device": about.device}
            )
            context.add_metric((each.spec.id,), about.context)
            memory.add_metric((each.spec.id, "ram"), each.memory.ram)
            memory.add_metric((each.spec.id, "vram"), each.memory.vram)
        yield from (info, context, memory)
        for name, (text, figure) in NOW.items():
            family = GaugeMetricFamily(f"locallab_{name}", text, labels=MODEL)
            for each, stats in models:
                family.add_metric((each.spec.id,), figure(stats))
            yield family

    def _totals(self) -> Iterator[Metric]:
        totals = self._by_model()
        for name, (text, count) in EVER.items():
            counter = CounterMetricFamily(f"locallab_{name}", text, labels=MODEL)
            for model, each in totals.items():
                counter.add_metric((model,), count(each))
            yield counter
        for name, (text, histogram) in TIMES.items():
            family = HistogramMetricFamily(f"locallab_{name}", text, labels=MODEL)
            for model, each in totals.items():
                family.add_metric((model,), _buckets(histogram(each)), histogram(each).sum)
            yield family

    def _by_model(self) -> dict[str, Totals]:
        """What all engines of each model have done, those that are gone included."""
        live: list[tuple[str, Totals]] = []
        for number, (model, engine, totals) in list(self._seen.items()):  # a copy: models are loaded in other threads
            if engine() is None:
                self._past.setdefault(model, Totals()).add(totals)
                del self._seen[number]
            else:
                live.append((model, totals))
        found: dict[str, Totals] = {}
        for model, totals in (*self._past.items(), *live):
            found.setdefault(model, Totals()).add(totals)
        return found


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"locallab_{name}", text, value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"locallab_{name}", text, value)


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    bounds = (*map(str, histogram.bounds), "+Inf")
    return list(zip(bounds, itertools.accumulate(histogram.counts), strict=True))
