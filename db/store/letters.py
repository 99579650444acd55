"""Letters: what anybody but its holder has to say to an instance. Its holder makes events of them, in their order.

A letter is checked against what is known when it is posted, under the instance's row, so that a caller is told at
once; what lies in the inbox already counts as if it had happened.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, assert_never

import msgspec
from sqlalchemy import Connection, insert, select

from db.models import InboxItem, Instance, NodeExecution
from db.store.instances import Status
from db.store.journal import ungate
from db.store.leases import rouse
from flow import events as e
from flow.errors import Conflict, NotFound, WorkflowError
from flow.states import InstanceStatus, NodeStatus

Letterable = (
    e.CancelRequested
    | e.InstancePaused
    | e.InstanceResumed
    | e.SignalReceived
    | e.ApprovalAnswered
    | e.DebugSet
    | e.ValueSet
)


def deliver(connection: Connection, project_id: str, instance_id: str, event: Letterable, at: datetime) -> Status:
    """Put the event into the instance's inbox, and give where the instance stood.

    A cancellation that was asked for before, or a pause, is not asked for again. Raises NotFound if the project has
    no such instance, Conflict if it has ended or is not in a state in which the event means anything.
    """
    status = _locked(connection, project_id, instance_id)
    if status.completed_at is not None:
        raise Conflict(f"The instance has ended already: {status.status}.", status=status.status)
    waiting = _inbox(connection, instance_id)
    match event:
        case e.CancelRequested():
            if status.cancel_requested_at is not None or any(isinstance(o, e.CancelRequested) for o in waiting):
                return status
        case e.InstancePaused():
            if _paused(status, waiting):
                return status
        case e.InstanceResumed():
            if not _paused(status, waiting):
                message = f"The instance is not paused but {status.status}: there is nothing to resume."
                raise Conflict(message, status=status.status)
        case e.ApprovalAnswered(path=path):
            _check_waiting(connection, instance_id, path)
            if any(isinstance(other, e.ApprovalAnswered) and other.path == path for other in waiting):
                raise Conflict(f"The approval {path!r} has been answered already.", status=NodeStatus.WAITING.value)
        case e.ValueSet(path=path, what=what):
            if not _paused(status, waiting):
                message = f"Values are set while the instance is paused; it is {status.status}."
                raise Conflict(message, status=status.status)
            _check_settable(connection, instance_id, path, what)
        case e.SignalReceived() | e.DebugSet():
            pass
        case _:
            assert_never(event)
    put(connection, instance_id, event, at)
    if isinstance(event, e.CancelRequested):
        ungate(connection, [instance_id])
    return status


def put(connection: Connection, instance_id: str, event: e.Event, at: datetime) -> None:
    """Put the event into the inbox, unchecked, and see that somebody will read it."""
    values = {"instance_id": instance_id, "data": msgspec.to_builtins(event), "created_at": at}
    connection.execute(insert(InboxItem).values(values))
    rouse(connection, [instance_id])


def awaited(connection: Connection, project_id: str, instance_id: str, path: str) -> e.Awaited | None:
    """What the node waits for; None if it doesn't. Raises NotFound if there is no such instance, or node in it yet."""
    query = (
        select(NodeExecution.status, NodeExecution.awaited)
        .join(Instance, Instance.id == NodeExecution.instance_id)
        .where(Instance.id == instance_id, Instance.project_id == project_id, NodeExecution.path == path)
    )
    row = connection.execute(query).one_or_none()
    if row is None:
        found = connection.execute(
            select(Instance.id).where(Instance.id == instance_id, Instance.project_id == project_id)
        )
        raise NotFound("instance", instance_id) if found.first() is None else NotFound("node execution", path)
    if row.status != NodeStatus.WAITING or row.awaited is None:
        return None
    waited: e.Awaited = msgspec.convert(row.awaited, e.Awaited)
    return waited


def deliver_all(
    connection: Connection, project_id: str, instance_ids: Sequence[str], event: Letterable, at: datetime
) -> dict[str, Status | WorkflowError]:
    """Put the event into many inboxes; by instance, where it stood or why it was refused."""
    found: dict[str, Status | WorkflowError] = {}
    for instance_id in sorted(instance_ids):
        try:
            found[instance_id] = deliver(connection, project_id, instance_id, event, at)
        except (NotFound, Conflict) as refusal:
            found[instance_id] = refusal
    return found


def waits_for_signal(
    connection: Connection, project_id: str, instance_id: str, name: str
) -> list[dict[str, Any] | None]:
    """The schemas of the nodes that wait for a signal of this name, None where anything goes."""
    query = (
        select(NodeExecution.awaited)
        .join(Instance, Instance.id == NodeExecution.instance_id)
        .where(
            Instance.id == instance_id,
            Instance.project_id == project_id,
            NodeExecution.status == NodeStatus.WAITING.value,
        )
        .order_by(NodeExecution.last_seq)
    )
    found = connection.execute(query).scalars()
    return [one.get("schema") for one in found if one and one["kind"] == "signal" and one["name"] == name]


def _locked(connection: Connection, project_id: str, instance_id: str) -> Status:
    query = select(
        Instance.project_id,
        Instance.status,
        Instance.last_seq,
        Instance.change_seq,
        Instance.completed_at,
        Instance.cancel_requested_at,
        Instance.owner,
        Instance.fence,
        Instance.priority,
    ).where(Instance.id == instance_id, Instance.project_id == project_id)
    row = connection.execute(query.with_for_update(key_share=True)).one_or_none()
    if row is None:
        raise NotFound("instance", instance_id)
    return Status(*row)


def _inbox(connection: Connection, instance_id: str) -> list[e.AnyEvent]:
    query = select(InboxItem.data).where(InboxItem.instance_id == instance_id).order_by(InboxItem.id)
    return [msgspec.convert(data, e.AnyEvent) for data in connection.execute(query).scalars()]


def _paused(status: Status, waiting: list[e.AnyEvent]) -> bool:
    """Whether the instance will be paused when its holder has read its letters."""
    paused = status.status == InstanceStatus.PAUSED
    for event in waiting:
        match event:
            case e.InstancePaused():
                paused = True
            case e.InstanceResumed():
                paused = False
    return paused


def _check_waiting(connection: Connection, instance_id: str, path: str) -> None:
    node = _node(connection, instance_id, path)
    if node is None:
        raise NotFound("node execution", path)
    if node.status != NodeStatus.WAITING or (node.awaited or {}).get("kind") != "approval":
        raise Conflict(f"The node {path!r} does not wait for an approval: it is {node.status}.", status=node.status)


def _check_settable(connection: Connection, instance_id: str, path: str, what: str) -> None:
    node = _node(connection, instance_id, path)
    if node is None:
        return
    refused = {NodeStatus.RUNNING, NodeStatus.CANCELED, NodeStatus.SKIPPED}
    if what == "input":
        refused |= {NodeStatus.COMPLETED, NodeStatus.FAILED, NodeStatus.WAITING}
    if node.status in refused:
        raise Conflict(f"The {what} of {path!r} can't be set: the node is {node.status}.", status=node.status)


def _node(connection: Connection, instance_id: str, path: str) -> Any:
    query = select(NodeExecution.status, NodeExecution.awaited).where(
        NodeExecution.instance_id == instance_id, NodeExecution.path == path
    )
    return connection.execute(query).one_or_none()
