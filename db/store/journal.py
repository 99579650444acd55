"""What the journal writes: new instances, and the events of running ones with everything that follows from them.

A group holds what many instances have to say; it is one transaction. A member whose lease is lost drops out of it,
the others commit. Rows are locked in the same order everywhere (instances by id, then projects by id), so that two
processes never wait for each other in a circle.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, Table, delete, select

from db.models import Artifact, EventRow, InboxItem, Instance, NodeExecution, Workflow
from db.store import bulk, changes
from db.store.dbclock import db_now
from flow import events as e
from flow.history import NodeState, Snapshot
from flow.states import InstanceStatus, WorkflowStatus


@dataclass(frozen=True, slots=True)
class Create:
    """A new instance with its event 1. With ``worker``, it is claimed at once for that worker (its fence is 1).

    ``current``: its version is to be the workflow's current one. That, and that the workflow may be run at all, is
    checked in the same transaction.
    """

    instance_id: str
    project_id: str
    created: e.Recorded
    idempotency_key: str | None = None
    current: bool = True
    worker: str | None = None
    lease_s: float = 15.0


@dataclass(frozen=True, slots=True)
class NewArtifact:
    """A file that was put in the store for one of these events."""

    artifact: e.Artifact
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Append:
    """Events of one instance, its rows after them, and what its holder has dealt with.

    ``fence`` is the holder's; ``base_seq`` is the last sequence number before these events. ``release``: the lease
    is given back with this append, to be woken at ``due_at`` (None: only by somebody else). ``progress``: something
    ended, so that earlier deaths of workers no longer count.
    """

    instance_id: str
    project_id: str
    fence: int
    base_seq: int
    events: Sequence[e.Recorded]
    instance: tuple[Any, ...]
    nodes: Sequence[tuple[Any, ...]]
    artifacts: Sequence[NewArtifact] = ()
    consumed: Sequence[int] = ()
    release: bool = False
    due_at: datetime | None = None
    progress: bool = False


Entry = Create | Append


@dataclass(frozen=True, slots=True)
class Committed:
    """It is stored. ``change_seq`` is the project's place of the entry's last event.

    ``more``: the inbox got something new while the lease was being given back: wake the instance again.
    """

    change_seq: int
    more: bool = False


@dataclass(frozen=True, slots=True)
class Exists:
    """The idempotency key was used before, for this instance; nothing was created."""

    instance_id: str
    change_seq: int


@dataclass(frozen=True, slots=True)
class Stale:
    """The workflow is gone, may not be run (any more), or has another current version; nothing was created."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Another worker holds the instance, or it is gone; nothing was written for it."""


Outcome = Committed | Exists | Stale | Lost

_INSTANCES: Table = Instance.__table__  # type: ignore[assignment]
_WORKFLOWS: Table = Workflow.__table__  # type: ignore[assignment]
_EVENTS: Table = EventRow.__table__  # type: ignore[assignment]
_NODES: Table = NodeExecution.__table__  # type: ignore[assignment]
_ARTIFACTS: Table = Artifact.__table__  # type: ignore[assignment]

#: What an append may change of an instance, in the order of ``instance_row``.
_CHANGING = (
    "status",
    "output",
    "output_artifact",
    "error",
    "started_at",
    "completed_at",
    "cancel_requested_at",
    "last_seq",
)
_FIXED = (
    "id",
    "project_id",
    "workflow_id",
    "version_id",
    "trigger_type",
    "input",
    "labels",
    "priority",
    "created_at",
    "created_by",
)
_LEASE = ("fence", "owner", "lease_until", "due_at", "lost_claims")
_NEW_COLUMNS = (*_FIXED, *_CHANGING, "idempotency_key", "change_seq", *_LEASE)
_APPEND_COLUMNS = (*_FIXED, *_CHANGING, "change_seq", *_LEASE)
_APPEND_UPSERT = " ON CONFLICT (id) DO UPDATE SET " + ", ".join(
    f"{column} = excluded.{column}" for column in (*_CHANGING, "change_seq", *_LEASE)
)
_EVENT_COLUMNS = ("instance_id", "seq", "change_seq", "type", "path", "at", "data")
_NODE_COLUMNS = (
    "instance_id",
    "path",
    "ordinal",
    "node_id",
    "node_type",
    "status",
    "skip_reason",
    "attempt",
    "started_at",
    "completed_at",
    "due_at",
    "started_seq",
    "output",
    "output_artifact",
    "error",
    "progress",
    "usage",
    "worker",
    "last_seq",
)
_NODE_UPSERT = bulk.upsert(("instance_id", "path"), _NODE_COLUMNS)
_ARTIFACT_COLUMNS = ("id", "project_id", "instance_id", "sha256", "size", "media_type", "created_at")


class _Held(NamedTuple):
    fence: int
    last_seq: int
    change_seq: int
    owner: str | None
    lease_until: Any
    lost_claims: int


def instance_row(instance_id: str, project_id: str, snapshot: Snapshot) -> tuple[Any, ...]:
    """The instance's row as its snapshot says, without what only the database knows."""
    created = snapshot.created
    assert created is not None
    return (
        instance_id,
        project_id,
        created.workflow_id,
        created.version_id,
        created.trigger.type,
        created.input,
        created.labels or None,
        created.priority,
        snapshot.created_at,
        created.created_by,
        snapshot.status.value,
        None if snapshot.artifact is not None else snapshot.output,
        _builtins(snapshot.artifact),
        _builtins(snapshot.error),
        snapshot.started_at,
        snapshot.completed_at,
        snapshot.cancel_requested_at,
        snapshot.last_seq,
    )


def node_row(instance_id: str, path: str, node_type: str, state: NodeState) -> tuple[Any, ...]:
    """A node execution's row as its state says. An output in the artifact store is not repeated here."""
    progress = state.progress
    return (
        instance_id,
        path,
        state.ordinal,
        path,
        node_type,
        state.status.value,
        state.skip_reason,
        state.attempt,
        state.first_start,
        state.completed_at,
        state.due,
        state.started_seq,
        None if state.artifact is not None else state.output,
        _builtins(state.artifact),
        _builtins(state.error),
        {"done": progress.done, "total": progress.total, "message": progress.message} if progress else None,
        _builtins(state.usage),
        state.worker,
        state.last_seq,
    )


def commit(connection: Connection, group: Sequence[Entry]) -> list[Outcome]:
    """Write the whole group; the outcomes are in the group's order.

    Repeating a group after a commit whose reply was lost has no second effect.
    """
    creates = [entry for entry in group if isinstance(entry, Create)]
    appends = [entry for entry in group if isinstance(entry, Append)]
    outcomes: dict[int, Outcome] = {}
    held = _held(connection, appends)
    accepted: list[Append] = []
    for append in appends:
        row = held.get(append.instance_id)
        if row is None or row.fence != append.fence:
            outcomes[id(append)] = Lost()
        elif row.last_seq == append.base_seq:
            accepted.append(append)
        elif row.last_seq == append.base_seq + len(append.events):
            outcomes[id(append)] = Committed(row.change_seq)  # the reply was lost, not the commit
        else:
            outcomes[id(append)] = Lost()
    if creates:  # what is looked up for them must still be so when they are inserted
        changes.hold(connection, (entry.project_id for entry in group))
    existing = _existing(connection, creates)
    workflows = _workflows(connection, creates)
    fresh: list[Create] = []
    for create in creates:
        if (found := existing.get(_key(create))) is not None:
            outcomes[id(create)] = found
        elif not _startable(create, workflows):
            outcomes[id(create)] = Stale()
        else:
            fresh.append(create)
            if create.idempotency_key is not None:
                existing[_key(create)] = Exists(create.instance_id, 0)
    places = _places(connection, [*fresh, *accepted])
    made = {create.instance_id: places[id(create)] for create in fresh}
    for key, outcome in outcomes.items():
        if isinstance(outcome, Exists) and outcome.instance_id in made:  # the same key twice in this group
            outcomes[key] = Exists(outcome.instance_id, made[outcome.instance_id])
    _insert_new(connection, fresh, places)
    _insert_events(connection, fresh, accepted, places)
    _update_instances(connection, accepted, held, places)
    _upsert_nodes(connection, accepted)
    _insert_artifacts(connection, accepted)
    more = _settle_inbox(connection, accepted)
    written: list[Entry] = [*fresh, *accepted]
    for entry in written:
        last = places[id(entry)] + (len(entry.events) if isinstance(entry, Append) else 1) - 1
        outcomes[id(entry)] = Committed(last, more=entry.instance_id in more)
    return [outcomes[id(entry)] for entry in group]


def _held(connection: Connection, appends: Sequence[Append]) -> dict[str, _Held]:
    if not appends:
        return {}
    rows = bulk.select_in(
        connection,
        _INSTANCES,
        ("id", "fence", "last_seq", "change_seq", "owner", "lease_until", "lost_claims"),
        "id",
        sorted(append.instance_id for append in appends),
        lock=True,
    )
    return {row[0]: _Held(*row[1:]) for row in rows}


def _key(create: Create) -> tuple[str, str | None]:
    return create.project_id, create.idempotency_key or create.instance_id


def _existing(connection: Connection, creates: Sequence[Create]) -> dict[tuple[str, str | None], Exists]:
    keys = [create.idempotency_key for create in creates if create.idempotency_key is not None]
    projects = {create.project_id for create in creates}
    ids = [create.instance_id for create in creates]
    if not creates:
        return {}
    t = _INSTANCES.c
    found: dict[tuple[str, str | None], Exists] = {}
    if keys:
        # With the project, which the index begins with: else every key that was ever used is looked through.
        wanted = t.project_id.in_(projects), t.idempotency_key.in_(keys)
        query = select(t.id, t.project_id, t.idempotency_key, t.change_seq).where(*wanted)
        for row in connection.execute(query):
            found[row.project_id, row.idempotency_key] = Exists(row.id, row.change_seq)
    again = select(t.id, t.project_id, t.change_seq).where(t.id.in_(ids))
    for id, project_id, change_seq in connection.execute(again):
        found[project_id, id] = Exists(id, change_seq)
    return found


def _workflows(connection: Connection, creates: Sequence[Create]) -> dict[str, tuple[Any, ...]]:
    ids = sorted({_created(create).workflow_id for create in creates})
    columns = ("id", "project_id", "status", "current_version_id")
    return {row[0]: row for row in bulk.select_in(connection, _WORKFLOWS, columns, "id", ids)} if ids else {}


def _startable(create: Create, workflows: dict[str, tuple[Any, ...]]) -> bool:
    created = _created(create)
    row = workflows.get(created.workflow_id)
    if row is None or row[1] != create.project_id or not WorkflowStatus(row[2]).runnable:
        return False
    return not create.current or row[3] == created.version_id


def _created(create: Create) -> e.InstanceCreated:
    assert isinstance(create.created.event, e.InstanceCreated)
    return create.created.event


def _places(connection: Connection, entries: Sequence[Entry]) -> dict[int, int]:
    """The first change_seq of each entry, taken under the projects' rows in id order."""
    by_project: defaultdict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        by_project[entry.project_id].append(entry)
    places: dict[int, int] = {}
    for project_id, members in sorted(by_project.items()):
        needed = sum(len(entry.events) if isinstance(entry, Append) else 1 for entry in members)
        place = changes.take(connection, project_id, needed)
        for entry in members:
            places[id(entry)] = place
            place += len(entry.events) if isinstance(entry, Append) else 1
    return places


def _insert_new(connection: Connection, creates: Sequence[Create], places: dict[int, int]) -> None:
    rows = []
    leases = {create.lease_s for create in creates if create.worker is not None}
    until = {lease_s: connection.execute(select(db_now(lease_s))).scalar_one() for lease_s in leases}
    for create in creates:
        snapshot = Snapshot()
        snapshot.apply(create.created)
        rows.append(
            (
                *instance_row(create.instance_id, create.project_id, snapshot),
                create.idempotency_key,
                places[id(create)],
                *((1, create.worker, until[create.lease_s]) if create.worker is not None else (0, None, None)),
                *(None, 0),
            )
        )
    if rows:
        bulk.insert(connection, _INSTANCES, _NEW_COLUMNS, rows)


def _insert_events(
    connection: Connection, creates: Sequence[Create], appends: Sequence[Append], places: dict[int, int]
) -> None:
    rows = []
    entries: list[Entry] = [*creates, *appends]
    for entry in entries:
        place = places[id(entry)]
        for recorded in (entry.created,) if isinstance(entry, Create) else entry.events:
            event = recorded.event
            rows.append(
                (
                    entry.instance_id,
                    recorded.seq,
                    place,
                    recorded.type,
                    event.path if isinstance(event, e.NodeEvent) else None,
                    recorded.at,
                    e.encode(event).decode(),
                )
            )
            place += 1
    if rows:
        bulk.insert(connection, _EVENTS, _EVENT_COLUMNS, rows)


def _update_instances(
    connection: Connection, appends: Sequence[Append], held: dict[str, _Held], places: dict[int, int]
) -> None:
    rows = []
    for append in appends:
        row = held[append.instance_id]
        done = append.release or _ends(append)
        rows.append(
            (
                *append.instance,
                places[id(append)] + len(append.events) - 1 if append.events else row.change_seq,
                append.fence,
                None if done else row.owner,
                None if done else row.lease_until,
                append.due_at if append.release else None,
                0 if append.progress or append.release else row.lost_claims,
            )
        )
    if rows:
        bulk.insert(connection, _INSTANCES, _APPEND_COLUMNS, rows, conflict=_APPEND_UPSERT)


def _upsert_nodes(connection: Connection, appends: Sequence[Append]) -> None:
    rows = [row for append in appends for row in append.nodes]
    if rows:
        bulk.insert(connection, _NODES, _NODE_COLUMNS, rows, conflict=_NODE_UPSERT)


def _insert_artifacts(connection: Connection, appends: Sequence[Append]) -> None:
    rows = [
        (
            new.artifact.id,
            append.project_id,
            append.instance_id,
            new.artifact.sha256,
            new.artifact.size,
            new.artifact.media_type,
            new.created_at,
        )
        for append in appends
        for new in append.artifacts
    ]
    if rows:
        bulk.insert(connection, _ARTIFACTS, _ARTIFACT_COLUMNS, rows, conflict=" ON CONFLICT (id) DO NOTHING")


def _settle_inbox(connection: Connection, appends: Sequence[Append]) -> frozenset[str]:
    consumed = [number for append in appends for number in append.consumed]
    if consumed:
        connection.execute(delete(InboxItem).where(InboxItem.id.in_(consumed)))
    ended = [append.instance_id for append in appends if _ends(append)]
    if ended:  # what came too late is read by nobody any more
        connection.execute(delete(InboxItem).where(InboxItem.instance_id.in_(ended)))
    released = [append.instance_id for append in appends if append.release]
    if not released:
        return frozenset()
    query = select(InboxItem.instance_id).where(InboxItem.instance_id.in_(released)).distinct()
    return frozenset(connection.execute(query).scalars())


def _ends(append: Append) -> bool:
    return InstanceStatus(append.instance[len(_FIXED)]).terminal


def _builtins(value: msgspec.Struct | None) -> Any:
    return None if value is None else msgspec.to_builtins(value)
