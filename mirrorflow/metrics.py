"""What Prometheus is told about the engine; the GraphQL and HTTP layers register their own figures."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 5_000)


class EngineMetrics:
    """Figures of one engine: hand it ``committed`` and ``attempted``, tell ``gauge`` what to ask when scraped."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._commits = Histogram(
            "mirrorflow_commit_seconds", "Duration of the journal's commits", buckets=SECONDS, registry=registry
        )
        self._entries = Histogram(
            "mirrorflow_commit_entries", "Appends that shared one commit", buckets=SIZES, registry=registry
        )
        self._nodes = Histogram(
            "mirrorflow_node_seconds", "Duration of node attempts", ("type",), buckets=SECONDS, registry=registry
        )
        self._attempts = Counter("mirrorflow_node_attempts_total", "Node attempts", ("type",), registry=registry)

    def committed(self, entries: int, seconds: float) -> None:
        """The journal committed that many appends together."""
        self._commits.observe(seconds)
        self._entries.observe(entries)

    def attempted(self, node_type: str, seconds: float) -> None:
        """An attempt of a node ended."""
        self._nodes.labels(node_type).observe(seconds)
        self._attempts.labels(node_type).inc()

    def gauge(self, name: str, meaning: str, value: Callable[[], float]) -> None:
        """A figure that is read when somebody asks."""
        Gauge(f"mirrorflow_{name}", meaning, registry=self._registry).set_function(value)
