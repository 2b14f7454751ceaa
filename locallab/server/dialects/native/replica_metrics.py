"""The metrics of a cluster: its front's, and those of each replica with its name as a label."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from locallab.server.cluster import Told

REPLICA = "replica"
"""The label of figures of one replica."""

FIGURES = {
    "running": "Requests that a replica computes.",
    "waiting": "Requests in the queue of a replica.",
    "work_tokens": "Tokens of the work that a replica has, as the router reckons them.",
    "prompt_tokens": "Tokens of prompts since a replica was started.",
    "cached_tokens": "Those of them that came from its prefix cache.",
    "prefixes": "Digests of prefixes that a replica tells the router of.",
}


class Merged(Collector):
    """The metrics of the front, and those of each replica with its name as a label."""

    def __init__(self, front: str, told: Sequence[Told]) -> None:
        self._front = front
        self._told = told

    def collect(self) -> Iterable[Metric]:
        families = {each.name: each for each in text_string_to_metric_families(self._front)}
        for each in self._told:
            for family in text_string_to_metric_families(each.metrics):
                kept = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                kept.samples += [
                    sample._replace(labels={**sample.labels, REPLICA: each.replica.id}) for sample in family.samples
                ]
        yield from families.values()
        yield GaugeMetricFamily("locallab_cluster_replicas", "Replicas that answer.", value=len(self._told))
        for name, text in FIGURES.items():
            figure = GaugeMetricFamily(f"locallab_replica_{name}", text, labels=(REPLICA, "model"))
            for each in self._told:
                figure.add_metric((each.replica.id, each.replica.model), getattr(each.replica, name))
            yield figure


def exposition(front: bytes, told: Sequence[Told], accept: str) -> tuple[bytes, str]:
    """Return the metrics of front and replicas and their content type, in the format the client accepts."""
    registry = CollectorRegistry()
    registry.register(Merged(front.decode(), told))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type
