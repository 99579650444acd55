"""Why a node isn't running: every reason, what holds it, and until when where that is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import assert_never

from flow import events as e
from flow import placing
from flow.errors import Failure
from flow.events import PauseReason, Phase
from flow.graph import Graph, split
from flow.history import NodeState
from flow.states import NodeStatus


@dataclass(frozen=True, slots=True)
class UpstreamNodes:
    """These sources have not ended yet; the node's join decides when they have."""

    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Timer:
    """The node waits for an instant."""

    until: datetime


@dataclass(frozen=True, slots=True)
class RetryDelay:
    """Attempt number ``attempt`` is due at ``until``; ``error`` is why the last one failed (None: its worker died)."""

    until: datetime | None
    attempt: int
    error: Failure | None


@dataclass(frozen=True, slots=True)
class Approval:
    """A person's answer is waited for."""

    awaited: e.ForApproval


@dataclass(frozen=True, slots=True)
class Signal:
    """A signal is waited for."""

    awaited: e.ForSignal


@dataclass(frozen=True, slots=True)
class ChildInstance:
    """Another instance has to end first."""

    instance_id: str


@dataclass(frozen=True, slots=True)
class Breakpoint:
    """A debugger stopped the run at this very node."""

    reason: PauseReason
    phase: Phase


@dataclass(frozen=True, slots=True)
class Paused:
    """The whole run stands still; ``path`` is the node where a debugger stopped it."""

    reason: PauseReason
    by: str | None
    path: str | None


@dataclass(frozen=True, slots=True)
class ConcurrencyKey:
    """As many runs with this key as its workflow allows have not ended yet."""

    key: str
    limit: int | None


@dataclass(frozen=True, slots=True)
class Quota:
    """As many runs as the workflow or the project allows (``of``) have not ended yet."""

    of: str


@dataclass(frozen=True, slots=True)
class Place:
    """Nothing but a free place on a worker; ``lane`` is the kind of place. Normally a matter of milliseconds."""

    lane: str


@dataclass(frozen=True, slots=True)
class WorkerLabels:
    """Offered to the workers with these labels and so many graphics cards; none has taken it yet."""

    labels: tuple[str, ...]
    gpus: int


Reason = (
    UpstreamNodes
    | Timer
    | RetryDelay
    | Approval
    | Signal
    | ChildInstance
    | Breakpoint
    | Paused
    | ConcurrencyKey
    | Quota
    | Place
    | WorkerLabels
)


def blocked_by(
    graph: Graph,
    nodes: Mapping[str, NodeState],
    path: str,
    *,
    paused: e.InstancePaused | None = None,
    gate: ConcurrencyKey | Quota | None = None,
) -> tuple[Reason, ...]:
    """Every reason why the node at ``path`` of a run that has not ended isn't running; none if it runs or has ended.

    ``graph`` is the graph that the node belongs to (in a loop: the body); ``nodes`` holds what became of its nodes,
    by their whole paths. ``paused`` and ``gate`` hold the whole run. The outer reasons come first.
    """
    state = nodes.get(path)
    status = state.status if state is not None else NodeStatus.PENDING
    if status.terminal or status is NodeStatus.RUNNING:
        return ()
    held: list[Reason] = []
    if gate is not None:
        held.append(gate)
    if paused is not None:
        held.append(_pause(paused, path))
    match status:
        case NodeStatus.PENDING | NodeStatus.RETRYING if state is not None and state.started_seq and state.due is None:
            node = graph.nodes[split(path)[1]]
            gpus = placing.gpus(node)
            held.append(WorkerLabels(node.runs_on, gpus) if node.runs_on or gpus else Place(graph.lanes[node.id]))
        case NodeStatus.RETRYING:
            assert state is not None
            held.append(RetryDelay(state.due, state.attempt + 1, state.error))
        case NodeStatus.WAITING:
            if state is not None and state.awaited is not None:
                held.append(_wait(state.awaited))
        case _:
            scope, id = split(path)
            if upstream := _open_sources(graph, nodes, scope, id):
                held.append(UpstreamNodes(upstream))
            elif not held:
                held.append(Place(graph.lanes[id]))
    return tuple(held)


def _pause(paused: e.InstancePaused, path: str) -> Breakpoint | Paused:
    if paused.path == path and paused.reason is not PauseReason.USER:
        return Breakpoint(paused.reason, paused.phase or Phase.BEFORE)
    return Paused(paused.reason, paused.by, paused.path)


def _wait(awaited: e.Awaited) -> Timer | Signal | Approval | ChildInstance:
    match awaited:
        case e.Timer(until=until):
            return Timer(until)
        case e.ForSignal():
            return Signal(awaited)
        case e.ForApproval():
            return Approval(awaited)
        case e.ForChild(instance_id=instance_id):
            return ChildInstance(instance_id)
        case _:
            assert_never(awaited)


def _open_sources(graph: Graph, nodes: Mapping[str, NodeState], scope: str, id: str) -> tuple[str, ...]:
    sources = dict.fromkeys(scope + edge.source for edge in graph.incoming[id])
    return tuple(path for path in sources if path not in nodes or not nodes[path].status.terminal)
