"""What the journal writes: new instances, and the events of running ones with everything that follows from them.

A group holds what many instances have to say; it is one transaction. A member whose lease is lost drops out of it,
the others commit. Rows are locked in the same order everywhere (instances by id, then projects by id), so that two
processes never wait for each other in a circle.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, Table, delete, or_, select, update

from db.models import Artifact, EventRow, InboxItem, Instance, NodeExecution, Project, Workflow
from db.store import admission, bulk, changes, offers
from db.store.dbclock import db_now
from db.store.entries import (
    APPEND_COLUMNS,
    APPEND_UPSERT,
    ARTIFACT_COLUMNS,
    EVENT_COLUMNS,
    FIXED,
    NEW_COLUMNS,
    NODE_COLUMNS,
    NODE_UPSERT,
    Append,
    Committed,
    Create,
    Entry,
    Exists,
    Lost,
    NewArtifact,
    Offer,
    Outcome,
    Skipped,
    Stale,
    Wake,
    instance_row,
    node_row,
)
from db.store.leases import rouse
from flow import events as e
from flow.history import Snapshot
from flow.states import InstanceStatus, WorkflowStatus

__all__ = [
    "Append",
    "Committed",
    "Create",
    "Entry",
    "Exists",
    "Lost",
    "NewArtifact",
    "Offer",
    "Outcome",
    "Skipped",
    "Stale",
    "Wake",
    "commit",
    "instance_row",
    "node_row",
    "ungate",
]

_PROJECTS: Table = Project.__table__  # type: ignore[assignment]
_INBOX: Table = InboxItem.__table__  # type: ignore[assignment]
_INSTANCES: Table = Instance.__table__  # type: ignore[assignment]
_WORKFLOWS: Table = Workflow.__table__  # type: ignore[assignment]
_EVENTS: Table = EventRow.__table__  # type: ignore[assignment]
_NODES: Table = NodeExecution.__table__  # type: ignore[assignment]
_ARTIFACTS: Table = Artifact.__table__  # type: ignore[assignment]


class _Held(NamedTuple):
    fence: int
    last_seq: int
    change_seq: int
    owner: str | None
    lease_until: Any
    lost_claims: int
    completed_at: Any
    priority: int


def commit(connection: Connection, group: Sequence[Entry]) -> list[Outcome]:
    """Write the whole group; the outcomes are in the group's order.

    Repeating a group after a commit whose reply was lost has no second effect.
    """
    creates = [entry for entry in group if isinstance(entry, Create)]
    appends = [entry for entry in group if isinstance(entry, Append)]
    outcomes: dict[int, Outcome] = {}
    followers = _followers(connection, appends)
    held = _held(connection, appends, followers)
    accepted: list[Append] = []
    for append in appends:
        row = held.get(append.instance_id)
        if row is None or row.fence != append.fence:
            outcomes[id(append)] = Lost()
        elif row.last_seq == append.base_seq and row.owner == append.worker:
            accepted.append(append)
        elif row.last_seq == append.base_seq and row.owner is None and append.release and not append.events:
            outcomes[id(append)] = Committed(row.change_seq)  # it has been given back
        elif row.last_seq == append.base_seq + len(append.events):
            outcomes[id(append)] = Committed(row.change_seq)  # the reply was lost, not the commit
        else:
            outcomes[id(append)] = Lost()
    woken: dict[int, list[Wake]] = {
        id(append): [Wake(child.instance_id, _created(child).priority) for child in append.children]
        for append in accepted
    }
    letters: list[tuple[Entry, str, e.Event]] = [
        (append, to, event) for append in accepted for to, event in append.letters
    ]
    letters += [(append, to, _PARENT_ENDED) for append in accepted for to in followers.get(append.instance_id, ())]
    children = [child for append in accepted for child in append.children]
    if creates or children:  # what is looked up for them must still be so when they are inserted
        changes.hold(connection, (entry.project_id for entry in group))
    fresh = [*_admissible(connection, creates, outcomes), *children]
    gates = _gates(connection, fresh)
    for create in fresh:
        if create.on_conflict == "cancel_running" and create.limit is not None:
            overrun = _overrun(connection, create)
            letters += [(create, to, _OVERRUN) for to in overrun]
    places = _places(connection, [*fresh, *accepted])
    made = {create.instance_id: places[id(create)] for create in fresh}
    for key, outcome in outcomes.items():
        if isinstance(outcome, Exists) and outcome.instance_id in made:  # the same key twice in this group
            outcomes[key] = Exists(outcome.instance_id, made[outcome.instance_id])
    _insert_new(connection, fresh, places, gates)
    _insert_events(connection, fresh, accepted, places)
    _update_instances(connection, accepted, held, places)
    _upsert_nodes(connection, accepted)
    _insert_artifacts(connection, accepted)
    _offer(connection, accepted, woken)
    _post(connection, letters, held, woken)
    more = _settle_inbox(connection, accepted)
    written: list[Entry] = [*fresh, *accepted]
    admitted = _let_in(connection, written, gates)
    for entry in written:
        last = places[id(entry)] + (len(entry.events) if isinstance(entry, Append) else 1) - 1
        outcomes[id(entry)] = Committed(
            last,
            more=entry.instance_id in more,
            gated=id(entry) in gates,
            woken=(*woken.get(id(entry), ()), *(Wake(id) for id in admitted.pop(entry.project_id, ()))),
        )
    return [outcomes[id(entry)] for entry in group]


#: So many workers are called at most when attempts are offered: who takes some goes on to look for more.
MAX_CALLED = 16

_PARENT_ENDED = e.CancelRequested(reason="The instance that started this one has ended.")
_OVERRUN = e.CancelRequested(reason="A newer instance of the same concurrency key takes its place.")


def _ends(append: Append) -> bool:
    return InstanceStatus(append.instance[len(FIXED)]).terminal


def _followers(connection: Connection, appends: Sequence[Append]) -> dict[str, list[str]]:
    """The open children that end with their parents, of those instances that end early now or leave them."""
    early = [append for append in appends if _ends(append) and append.instance[len(FIXED)] != InstanceStatus.COMPLETED]
    found: defaultdict[str, list[str]] = defaultdict(list)
    left = [child_id for append in appends for child_id in append.left]
    if early or left:
        query = select(Instance.parent_id, Instance.id).where(
            or_(Instance.parent_id.in_([append.instance_id for append in early]), Instance.id.in_(left)),
            Instance.ends_with_parent.is_(True),
            Instance.completed_at.is_(None),
        )
        for parent_id, child_id in connection.execute(query):
            found[str(parent_id)].append(child_id)
    return found


def _held(
    connection: Connection, appends: Sequence[Append], followers: Mapping[str, Sequence[str]]
) -> dict[str, _Held]:
    """The rows of the instances that are written to, be it only a letter; nobody else changes them meanwhile."""
    wanted = {append.instance_id for append in appends}
    wanted.update(to for append in appends for to, _ in append.letters)
    wanted.update(id for ids in followers.values() for id in ids)
    if not wanted:
        return {}
    rows = bulk.select_in(
        connection,
        _INSTANCES,
        ("id", "fence", "last_seq", "change_seq", "owner", "lease_until", "lost_claims", "completed_at", "priority"),
        "id",
        sorted(wanted),
        lock=True,
    )
    return {row[0]: _Held(*row[1:]) for row in rows}


def _admissible(connection: Connection, creates: Sequence[Create], outcomes: dict[int, Outcome]) -> list[Create]:
    """The new instances that are to be created; the others get their outcome."""
    existing = _existing(connection, creates)
    workflows = _workflows(connection, creates)
    fresh: list[Create] = []
    for create in creates:
        if (found := existing.get(_key(create))) is not None:
            outcomes[id(create)] = found
        elif not _startable(create, workflows):
            outcomes[id(create)] = Stale()
        elif (other := _taken_by(connection, create, fresh)) is not None:
            outcomes[id(create)] = Skipped(other)
        else:
            fresh.append(create)
            if create.idempotency_key is not None:
                existing[_key(create)] = Exists(create.instance_id, 0)
    return fresh


def _group(create: Create) -> admission.Group:
    return _created(create).workflow_id, _created(create).concurrency_key


def _taken_by(connection: Connection, create: Create, before: Sequence[Create]) -> str | None:
    """An instance that has the place of one which is not to wait for it."""
    if create.on_conflict != "skip" or create.limit is None:
        return None
    others = admission.others(connection, create.project_id, _group(create))
    others += [other.instance_id for other in before if _group(other) == _group(create)]
    return others[0] if len(others) >= create.limit else None


def _overrun(connection: Connection, create: Create) -> list[str]:
    """The oldest instances of the key, as many as must go for this one to have a place."""
    assert create.limit is not None
    others = admission.others(connection, create.project_id, _group(create))
    return others[: max(0, len(others) - create.limit + 1)]


def _gates(connection: Connection, fresh: Sequence[Create]) -> dict[int, admission.Gate]:
    """The gate of each new instance that a limit may concern."""
    if not fresh:
        return {}
    ids = sorted({_created(create).workflow_id for create in fresh})
    workflows = dict(bulk.select_in(connection, _WORKFLOWS, ("id", "max_running"), "id", ids))
    projects = dict(
        bulk.select_in(connection, _PROJECTS, ("id", "max_running"), "id", sorted({c.project_id for c in fresh}))
    )
    gates: dict[int, admission.Gate] = {}
    for create in fresh:
        if create.limit is not None:
            gates[id(create)] = admission.Gate.KEY
        elif workflows.get(_created(create).workflow_id) is not None:
            gates[id(create)] = admission.Gate.WORKFLOW
        elif projects.get(create.project_id) is not None:
            gates[id(create)] = admission.Gate.PROJECT
    return gates


def _let_in(
    connection: Connection, written: Sequence[Entry], gates: Mapping[int, admission.Gate]
) -> dict[str, list[str]]:
    """By project, who may begin now that these are here or have ended; who stays out is told by which limit."""
    projects = {entry.project_id for entry in written if isinstance(entry, Create) and id(entry) in gates}
    ended = {entry.project_id for entry in written if isinstance(entry, Append) and _ends(entry)} - projects
    if ended:
        projects.update(admission.waiting(connection, sorted(ended)))
    found: dict[str, list[str]] = {}
    for project_id in sorted(projects):
        admitted = admission.admit(connection, project_id)
        found[project_id] = admitted.ids
        for entry in written:
            if isinstance(entry, Create) and entry.project_id == project_id and id(entry) in gates:
                gate = admitted.gates.get(_group(entry))
                if gate is not None and gate is not gates[id(entry)] and entry.instance_id not in admitted.ids:
                    statement = update(Instance).where(Instance.id == entry.instance_id).values(gate=gate.value)
                    connection.execute(statement, execution_options={"synchronize_session": False})
    return found


def _post(
    connection: Connection,
    letters: Sequence[tuple[Entry, str, e.Event]],
    held: Mapping[str, _Held],
    woken: dict[int, list[Wake]],
) -> None:
    """Put letters into inboxes; nobody writes to an instance that has ended."""
    rows = []
    for entry, to, event in letters:
        if to not in held or held[to].completed_at is None:
            at = entry.created.at if isinstance(entry, Create) else entry.events[-1].at
            rows.append((to, msgspec.to_builtins(event), at))
            row = held.get(to)
            wake = Wake(to) if row is None else Wake(to, row.priority, row.fence, row.owner)
            woken.setdefault(id(entry), []).append(wake)
    if rows:
        bulk.insert(connection, _INBOX, ("instance_id", "data", "created_at"), rows)
        rouse(connection, sorted({row[0] for row in rows}))
        canceled = [row[0] for row in rows if row[1]["type"] == "instance.cancel_requested"]
        if canceled:
            ungate(connection, canceled)


def _offer(connection: Connection, appends: Sequence[Append], woken: dict[int, list[Wake]]) -> None:
    """Put up the attempts that other workers may make, and take back those that nobody needs any more."""
    for append in appends:
        if append.offers:
            offers.put(connection, append.instance_id, append.project_id, append.offers)
            few = append.offers[:MAX_CALLED]
            woken[id(append)] += [Wake(offer.id, offer.priority, labels=offer.labels, gpus=offer.gpus) for offer in few]
        if append.revoked:
            woken[id(append)] += offers.revoke(connection, append.instance_id, append.revoked)


def ungate(connection: Connection, instance_ids: Sequence[str]) -> None:
    """Let the instances be claimed whatever the limits say: they are to be cancelled."""
    gated = update(Instance).where(Instance.id.in_(instance_ids), Instance.gate.is_not(None))
    connection.execute(gated.values(gate=None), execution_options={"synchronize_session": False})


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
    if row is None or row[1] != create.project_id:
        return False
    status = WorkflowStatus(row[2])
    if not status.runnable and not (status is WorkflowStatus.DRAFT and created.debug is not None):
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


def _insert_new(
    connection: Connection,
    creates: Sequence[Create],
    places: dict[int, int],
    gates: Mapping[int, admission.Gate],
) -> None:
    rows = []
    leases = {create.lease_s for create in creates if create.worker is not None}
    until = {lease_s: connection.execute(select(db_now(lease_s))).scalar_one() for lease_s in leases}
    for create in creates:
        snapshot = Snapshot()
        snapshot.apply(create.created)
        created, gate = _created(create), gates.get(id(create))
        claimed = create.worker is not None and gate is None
        rows.append(
            (
                *instance_row(create.instance_id, create.project_id, snapshot),
                create.idempotency_key,
                places[id(create)],
                *((1, create.worker, until[create.lease_s]) if claimed else (0, None, None)),
                *(_deadline(create) if gate is not None else None if claimed else create.created.at, 0),
                *((parent.instance_id, parent.path) if (parent := created.parent) is not None else (None, None)),
                parent.on_parent_end == "cancel" if parent is not None else None,
                created.fork_of,
                created.concurrency_key,
                create.limit,
                gate.value if gate is not None else None,
            )
        )
    if rows:
        bulk.insert(connection, _INSTANCES, NEW_COLUMNS, rows)


def _deadline(create: Create) -> datetime | None:
    """When a run that never begins is over all the same."""
    created = _created(create)
    limits = [limit for limit in (created.timeout, created.queue_timeout) if limit is not None]
    return create.created.at + min(limits) if limits else None


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
        bulk.insert(connection, _EVENTS, EVENT_COLUMNS, rows)


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
        bulk.insert(connection, _INSTANCES, APPEND_COLUMNS, rows, conflict=APPEND_UPSERT)


def _upsert_nodes(connection: Connection, appends: Sequence[Append]) -> None:
    rows = [row for append in appends for row in append.nodes]
    if rows:
        bulk.insert(connection, _NODES, NODE_COLUMNS, rows, conflict=NODE_UPSERT)


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
        bulk.insert(connection, _ARTIFACTS, ARTIFACT_COLUMNS, rows, conflict=" ON CONFLICT (id) DO NOTHING")


def _settle_inbox(connection: Connection, appends: Sequence[Append]) -> frozenset[str]:
    consumed = [number for append in appends for number in append.consumed]
    if consumed:
        connection.execute(delete(InboxItem).where(InboxItem.id.in_(consumed)))
    ended = [append.instance_id for append in appends if _ends(append)]
    if ended:  # a letter that came too late is none for a run that is let go on
        bulk.delete_in(connection, _INBOX, "instance_id", ended)
    released = [append.instance_id for append in appends if append.release]
    if not released:
        return frozenset()
    query = select(InboxItem.instance_id).where(InboxItem.instance_id.in_(released)).distinct()
    more = sorted(connection.execute(query).scalars())
    if more:
        rouse(connection, more)
    return frozenset(more)
