"""Time travel: an instance as it was right after one of its events."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Annotated

import strawberry
from strawberry import argument, field

from db.store import instances as store
from flow import events as e
from flow.events import PauseReason
from flow.history import NodeState, Snapshot, replay
from flow.states import InstanceStatus, NodeStatus, SkipReason
from graph.event_types import InstanceEvent
from graph.events import event, node_id
from graph.objects import Failure, OutputArtifact, derived, failure, output_artifact
from graph.permissions import Info, caller
from graph.scalars import JSON
from graph.waiting import Awaited, Debug, awaited, debug

MOST_NODES = 500


@strawberry.type(description="A node as it was at a moment of its run.")
class NodeMoment:
    """See ``flow.history.NodeState``."""

    path: str = field(description="The node's place in the run.")
    node_id: str = field(description="The node's id in the definition.")
    status: NodeStatus = field(description="Where it was in its life.")
    skip_reason: SkipReason | None = field(description="Why it was not run, if it was skipped.")
    attempt: int = field(description="The attempt that ran or was the last, from 1.")
    started_at: datetime | None = field(description="When its first attempt had begun.")
    completed_at: datetime | None = field(description="When it had ended.")
    due_at: datetime | None = field(description="When its next attempt was due, or its wait over.")
    output: JSON | None = field(description="What it had given; null if that is large: see `outputArtifact`.")
    output_artifact: OutputArtifact | None = field(description="What it had given, if that is large.")
    error: Failure | None = field(description="Why it, or its last attempt, had failed.")
    cached: bool = field(description="True if nothing was run for it.")
    waiting: Awaited | None = field(description="What it waited for.")


@strawberry.type(description="An instance as it was right after one of its events.")
class InstanceMoment:
    """See ``flow.history.Snapshot``."""

    seq: int = field(description="The event's place in the history.")
    at: datetime = field(description="When it happened.")
    event: InstanceEvent = field(description="The event.")
    status: InstanceStatus = field(description="Where the run was in its life.")
    pause_reason: PauseReason | None = field(description="Why it was PAUSED, if it was.")
    debug: Debug | None = field(description="How it was debugged, if it was.")
    output: JSON | None = field(description="What had come out; null if that is large: see `outputArtifact`.")
    output_artifact: OutputArtifact | None = field(description="What had come out, if that is large.")
    error: Failure | None = field(description="Why it had failed.")
    snapshot: strawberry.Private[Snapshot]

    @derived("The nodes that had begun by then, in the order in which they did.")
    def nodes(
        self,
        info: Info,
        first: Annotated[int, argument(description="At most this many: 1 to 500.")] = 100,
        path: Annotated[str | None, argument(description="Only the node at this path.")] = None,
    ) -> list[NodeMoment]:
        """From the replayed events."""
        states = self.snapshot.nodes.items()
        ordered = sorted(states, key=lambda item: item[1].ordinal)
        wanted = [item for item in ordered if path is None or item[0] == path]
        return [_node(info, at, state) for at, state in wanted[: max(1, min(first, MOST_NODES))]]


async def moment(info: Info, instance_id: str, seq: int) -> InstanceMoment | None:
    """The instance after that event; None if it has none of that number."""
    if seq < 1:
        return None
    history = await info.context.engine.database.read(store.events, instance_id, 0, seq)
    if len(history) < seq:
        return None
    snapshot = await asyncio.to_thread(replay, history)
    last, actor = history[-1], caller(info)
    return InstanceMoment(
        seq=seq,
        at=last.at,
        event=event(instance_id, last, actor),
        status=snapshot.status,
        pause_reason=snapshot.pause.reason if snapshot.pause is not None else None,
        debug=debugger(snapshot),
        output=snapshot.output,
        output_artifact=output_artifact(snapshot.artifact),
        error=None if snapshot.error is None else failure(snapshot.error, actor),
        snapshot=snapshot,
    )


def debugger(snapshot: Snapshot) -> Debug | None:
    """How the run is debugged, if it is."""
    if not snapshot.debugged:
        return None
    return debug(e.Debug(stepping=snapshot.stepping, breakpoints=snapshot.breakpoints))


def _node(info: Info, path: str, state: NodeState) -> NodeMoment:
    actor = caller(info)
    waits = state.awaited if state.status is NodeStatus.WAITING else None
    return NodeMoment(
        path=path,
        node_id=node_id(path),
        status=state.status,
        skip_reason=SkipReason(state.skip_reason) if state.skip_reason else None,
        attempt=state.attempt,
        started_at=state.first_start,
        completed_at=state.completed_at,
        due_at=state.due,
        output=None if state.artifact is not None else state.output,
        output_artifact=output_artifact(state.artifact),
        error=None if state.error is None else failure(state.error, actor),
        cached=state.cached,
        waiting=None if waits is None else awaited(waits, actor),
    )
