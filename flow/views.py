"""What nodes and expressions see of a run: inputs, ``trigger``, ``nodes``, the instance's output."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from flow import expressions, mapping
from flow.graph import Graph
from flow.history import NodeState, Snapshot
from flow.joins import Settled, outcome, settle
from flow.scopes import Scope
from flow.states import NodeStatus


def node_input(graph: Graph, nodes: Mapping[str, NodeState], entry: Any, id: str, prefix: str = "") -> Any:
    """What a node gets: an entry node ``entry``, another the outputs of its live sources in edge order.

    It is derived and never stored, so a large output costs nothing more however many nodes it fans out to.
    A node that starts because something failed gets ``{error: …}`` of what failed. ``graph`` is the one that the
    node is in, ``prefix`` the iteration that it runs in.
    Raises ExpressionError if a condition or a mapping can't be evaluated.
    """
    edges = graph.incoming[id]
    if not edges:
        return entry
    parts: list[tuple[Mapping[str, Any], Any]] = []
    failed: list[tuple[Mapping[str, Any], Any]] = []
    # What a join didn't wait for is no input of its node, and every attempt gets the same.
    own = nodes.get(prefix + id)
    started = own.started_seq or sys.maxsize if own is not None else sys.maxsize
    for edge in edges:
        source = nodes.get(prefix + edge.source)
        if source is None or not source.status.terminal or source.last_seq > started:
            continue
        match settle(edge, source):
            case Settled.LIVE:
                parts.append((edge.mapping, outcome(source)))
            case Settled.FAILED:
                failed.append((edge.mapping, outcome(source)))
            case Settled.DEAD:
                pass
    return mapping.merged(parts or failed)


def trigger_view(snapshot: Snapshot) -> dict[str, Any]:
    """What ``trigger`` holds: ``date`` (of the start, UTC, ``2026-11-21``), the payload's keys over it, and over all
    of them ``type``, ``id`` and the whole ``payload``.
    """
    if snapshot.created is None or snapshot.created_at is None:
        return {}
    trigger = snapshot.created.trigger
    view: dict[str, Any] = {"date": snapshot.created_at.date().isoformat()}
    if isinstance(trigger.payload, dict):
        view |= trigger.payload
    return view | {"type": trigger.type, "id": trigger.id, "payload": trigger.payload}


def parameters_view(graph: Graph, snapshot: Snapshot) -> Mapping[str, Any]:
    """The definition's parameters, those given at the start over them."""
    given = snapshot.created.parameters if snapshot.created is not None else {}
    return {**graph.definition.parameters, **given} if given else graph.definition.parameters


def node_views(snapshot: Snapshot, scope: Scope) -> expressions.Nodes:
    """``nodes`` as the scope sees it: its own, and those around it; each looked up when an expression asks for it."""

    def view(id: str) -> dict[str, Any] | None:
        for around in _outwards(scope):
            if id in around.graph.nodes:
                state = snapshot.nodes.get(around.prefix + id)
                return None if state is None else _view(state)
        return None

    ids = [id for around in _outwards(scope) for id in around.graph.nodes if around.prefix + id in snapshot.nodes]
    return expressions.Nodes(ids, view)


def _outwards(scope: Scope) -> Iterator[Scope]:
    current: Scope | None = scope
    while current is not None:
        yield current
        current = current.loop.scope if current.loop is not None else None


def _view(state: NodeState) -> dict[str, Any]:
    found = expressions.node_view(state.output, state.status.value, state.status is NodeStatus.SKIPPED)
    if state.error is not None:
        found["error"] = msgspec.to_builtins(state.error)
    return found


def last_outputs(graph: Graph, snapshot: Snapshot, prefix: str = "") -> dict[str, Any]:
    """The outputs of the terminal nodes that were completed, by node id."""
    return {
        id: state.output
        for id, edges in graph.outgoing.items()
        if not edges and (state := snapshot.nodes.get(prefix + id)) is not None
        if state.status is NodeStatus.COMPLETED
    }
