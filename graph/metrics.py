"""What the wire counts, in a registry that is handed in: nothing global, so that two servers (or tests) never mix."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60)


class WireMetrics:
    """GraphQL by operation (labelled by root field: a client can't invent those), sockets and subscriptions."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("kind", "field")
        self.seconds = Histogram(
            "mirrorflow_graphql_seconds", "Time to answer an operation", labels, registry=registry, buckets=SECONDS
        )
        self.errors = Counter(
            "mirrorflow_graphql_errors_total", "Errors answered, by code", ("code",), registry=registry
        )
        self.sockets = Gauge("mirrorflow_sockets", "Open GraphQL sockets", registry=registry)
        self.subscriptions = Gauge(
            "mirrorflow_subscriptions", "Running subscriptions by root field", ("field",), registry=registry
        )
        self.messages = Counter(
            "mirrorflow_subscription_messages_total", "Messages sent to subscribers", ("field",), registry=registry
        )
        self.closed = Counter(
            "mirrorflow_sockets_closed_total", "Sockets closed by the server, by code", ("code",), registry=registry
        )
