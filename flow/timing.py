"""Where a run's time went, and how far it has come. Pure questions on what became of its nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from flow.definition import Join
from flow.graph import Graph
from flow.history import NodeState
from flow.states import NodeStatus

NOTHING = timedelta(0)

#: A node that takes longer than it used to is never shown as done before it is.
NEARLY_DONE = 0.95
#: What a node weighs that has no past, in seconds, where no node of the graph has one.
UNKNOWN_S = 1.0


@dataclass(frozen=True, slots=True)
class Step:
    """One node of a critical path. ``waited``: between what released it and its start; ``duration``: start to end,
    or to now while it runs. ``completed_at`` is None while it runs.
    """

    path: str
    started_at: datetime
    completed_at: datetime | None
    waited: timedelta
    duration: timedelta


def critical_path(
    graph: Graph, nodes: Mapping[str, NodeState], created_at: datetime, now: datetime
) -> tuple[Step, ...]:
    """The chain of nodes that decided how long the run took (or takes): each was released by the one before it.

    It leads to the node that ended last, or to the one of those that run that began first. To have made any of its
    nodes faster would have made the run shorter, up to the next longest chain. Loops and children count as one node.
    """
    last = _last(graph, nodes)
    steps: list[Step] = []
    while last is not None:
        state = nodes[last]
        before = _released_by(graph, nodes, last)
        start = state.first_start
        if start is not None:
            released = created_at
            if before is not None:
                released = nodes[before].completed_at or created_at
            end = state.completed_at
            steps.append(
                Step(
                    path=last,
                    started_at=start,
                    completed_at=end,
                    waited=max(NOTHING, start - released),
                    duration=max(NOTHING, (end or now) - start),
                )
            )
        last = before
    return tuple(reversed(steps))


def _last(graph: Graph, nodes: Mapping[str, NodeState]) -> str | None:
    ran = [(id, state) for id, state in nodes.items() if id in graph.nodes and state.first_start is not None]
    going = [(state.started_seq, id) for id, state in ran if not state.status.terminal]
    if going:
        return min(going)[1]
    ended = [(state.last_seq, id) for id, state in ran]
    return max(ended)[1] if ended else None


def _released_by(graph: Graph, nodes: Mapping[str, NodeState], id: str) -> str | None:
    """The source whose end let the node start: the first for joins that wait for one, else the last."""
    state = nodes[id]
    decided = state.started_seq or state.last_seq
    ended = [
        (source.last_seq, edge.source)
        for edge in graph.incoming[id]
        if (source := nodes.get(edge.source)) is not None and source.status.terminal and source.last_seq <= decided
    ]
    if not ended:
        return None
    return (min(ended) if graph.nodes[id].join in (Join.ANY, Join.ONE_FAILED) else max(ended))[1]


def progress(graph: Graph, nodes: Mapping[str, NodeState], past_s: Mapping[str, float], now: datetime) -> float:
    """How much of the run is done, 0..1, each node weighted by how long it used to take (``past_s``, in seconds).

    A node without a past weighs what the others do on average. A running node counts by its own word if it gives one
    (``NodeProgress``), or else by its time so far; a skipped one counts as done.
    """
    if not graph.nodes:
        return 1.0
    known = [max(seconds, 0.001) for id, seconds in past_s.items() if id in graph.nodes]
    usual = sum(known) / len(known) if known else UNKNOWN_S
    total = done = 0.0
    for id in graph.nodes:
        weight = max(past_s[id], 0.001) if id in past_s else usual
        total += weight
        state = nodes.get(id)
        if state is not None:
            done += weight * _share(state, weight, now)
    return min(1.0, done / total)


def _share(state: NodeState, usual_s: float, now: datetime) -> float:
    if state.status.terminal:
        return 1.0
    if state.status is NodeStatus.PENDING or state.first_start is None:
        return 0.0
    said = state.progress
    if said is not None and said.total:
        return min(NEARLY_DONE, max(0.0, said.done / said.total))
    return min(NEARLY_DONE, max(0.0, (now - state.first_start).total_seconds() / usual_s))
