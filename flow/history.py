"""What an instance is, from its events: ``replay`` folds them into a ``Snapshot``.

Replaying the same events gives the same snapshot, in any process, at any time. Time travel is a replay that
stops early; recovery is a replay that goes on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from flow import events as e
from flow.errors import Failure
from flow.states import INSTANCE_TRANSITIONS, NODE_TRANSITIONS, InstanceStatus, NodeStatus, after

_NODE_ENDS = (e.NodeCompleted, e.NodeFailed, e.NodeSkipped, e.NodeCanceled)


@dataclass(slots=True)
class NodeState:
    """One node's attempts so far.

    ``ordinal`` counts nodes in the order of their first event. ``lost`` counts attempts that died with their
    worker. ``started_seq`` and ``first_start`` are the sequence number and the instant of the *first* start.
    """

    ordinal: int
    status: NodeStatus = NodeStatus.PENDING
    attempt: int = 0
    lost: int = 0
    output: Any = None
    artifact: e.Artifact | None = None
    error: Failure | None = None
    skip_reason: str | None = None
    due: datetime | None = None
    first_start: datetime | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    started_seq: int = 0
    last_seq: int = 0
    progress: e.NodeProgress | None = None
    usage: e.Usage | None = None
    worker: str | None = None


@dataclass(slots=True)
class Snapshot:
    """An instance as its events say it is. ``apply`` is the only thing that changes it."""

    status: InstanceStatus = InstanceStatus.PENDING
    last_seq: int = 0
    created: e.InstanceCreated | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    cancel: e.CancelRequested | None = None
    cancel_requested_at: datetime | None = None
    output: Any = None
    artifact: e.Artifact | None = None
    error: Failure | None = None
    nodes: dict[str, NodeState] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)
    retrying: set[str] = field(default_factory=set)

    def apply(self, recorded: e.Recorded) -> None:
        """Take one more event in.

        Raises ValueError if it isn't the next one, IllegalTransition if the tables don't allow it.
        """
        if recorded.seq != self.last_seq + 1:
            raise ValueError(f"event {recorded.seq} can't follow event {self.last_seq}")
        event, at = recorded.event, recorded.at
        if isinstance(event, e.NodeEvent):
            self._apply_node(event, recorded)
        else:
            self._apply_instance(event, at)
        self.last_seq = recorded.seq

    def _apply_instance(self, event: e.Event, at: datetime) -> None:
        match event:
            case e.InstanceCreated():
                self.created, self.created_at = event, at
                return
            case e.CancelRequested():
                if self.cancel is None:
                    self.cancel, self.cancel_requested_at = event, at
                return
        self.status = after(INSTANCE_TRANSITIONS, self.status, type(event))
        match event:
            case e.InstanceStarted():
                self.started_at = at
            case e.InstanceCompleted(output=output, artifact=artifact):
                self.output, self.artifact = output, artifact
            case e.InstanceFailed(error=error) | e.InstanceTimedOut(error=error):
                self.error = error
        if self.status.terminal:
            self.completed_at = at

    def _apply_node(self, event: e.NodeEvent, recorded: e.Recorded) -> None:
        path, at = event.path, recorded.at
        node = self.nodes.get(path)
        if node is None:
            node = self.nodes[path] = NodeState(ordinal=len(self.nodes) + 1)
        node.last_seq = recorded.seq
        match event:
            case e.NodeLog():
                return
            case e.NodeProgress():
                node.progress = event
                return
        node.status = after(NODE_TRANSITIONS, node.status, type(event))
        self.running.discard(path)
        self.retrying.discard(path)
        match event:
            case e.NodeStarted(attempt=attempt, worker=worker):
                node.attempt, node.worker, node.started_at = attempt, worker, at
                if node.first_start is None:
                    node.first_start, node.started_seq = at, recorded.seq
                node.due = node.error = node.progress = None
                self.running.add(path)
            case e.NodeRetrying(error=error, due=due):
                node.error, node.due = error, due
                self.retrying.add(path)
            case e.NodeLost():
                node.lost += 1
                node.due = at
                self.retrying.add(path)
            case e.NodeCompleted(output=output, artifact=artifact, usage=usage):
                node.output, node.artifact, node.usage, node.error = output, artifact, usage, None
            case e.NodeFailed(error=error, usage=usage):
                node.error, node.usage, node.due = error, usage, None
            case e.NodeSkipped(reason=reason):
                node.skip_reason = reason
            case e.NodeCanceled():
                node.due = None
        if isinstance(event, _NODE_ENDS):
            node.completed_at = at


def replay(events: Iterable[e.Recorded], *, upto: int | None = None) -> Snapshot:
    """The snapshot after these events, or after those with ``seq <= upto``."""
    snapshot = Snapshot()
    for recorded in events:
        if upto is not None and recorded.seq > upto:
            break
        snapshot.apply(recorded)
    return snapshot
