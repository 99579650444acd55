"""What can be listed, and everything that is looked up for many objects at once.

Every function is scoped to one project; rows are plain tuples with names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, case, cast, exists, false, func, literal, select, tuple_
from sqlalchemy.dialects.postgresql import JSONB

from db.models import Artifact, EventRow, Instance, NodeExecution, Project, Workflow, WorkflowVersion
from db.store.keyset import Compare, Filter, Listing, Record, Rows, Slice, condition, page
from flow import events as e


def _tags(dialect: str, compare: Compare) -> ColumnElement[bool]:
    """``tags`` contains: one of the workflow's tags is exactly this."""
    if dialect == "postgresql":
        return cast(Workflow.tags, JSONB).bool_op("@>")(literal([compare.value], JSONB))
    each = func.json_each(Workflow.tags).table_valued("value")
    return exists(select(1).select_from(each).where(each.c.value == compare.value))


def _label(dialect: str, compare: Compare) -> ColumnElement[bool]:
    """``label`` eq (name, value): the instance carries this label."""
    name, value = compare.value
    if dialect == "postgresql":
        return cast(Instance.labels, JSONB).bool_op("@>")(literal({name: value}, JSONB))
    each = func.json_each(func.coalesce(Instance.labels, "{}")).table_valued("key", "value")
    return exists(select(1).select_from(each).where(each.c.key == name, each.c.value == value))


_I, _N, _W, _V = Instance, NodeExecution, Workflow, WorkflowVersion

INSTANCES = Listing(
    columns=(
        _I.id, _I.workflow_id, _I.version_id, _I.status, _I.trigger_type, _I.input, _I.output, _I.output_artifact,
        _I.error, _I.labels, _I.priority, _I.idempotency_key, _I.created_at, _I.created_by, _I.started_at,
        _I.completed_at, _I.cancel_requested_at, _I.last_seq, _I.change_seq, _I.pause_reason, _I.parent_id,
        _I.parent_path, _I.fork_of, _I.gate, _I.concurrency_key, _I.concurrency_limit,
    ),
    fields={
        "id": _I.id, "workflow": _I.workflow_id, "version": _I.version_id, "status": _I.status,
        "trigger": _I.trigger_type, "priority": _I.priority, "created_at": _I.created_at,
        "started_at": _I.started_at, "completed_at": _I.completed_at, "created_by": _I.created_by, "label": _label,
        "parent": _I.parent_id, "fork_of": _I.fork_of,
    },
    orders={"CREATED": (_I.created_at, _I.id), "CHANGED": (_I.change_seq, _I.id)},
    project=_I.project_id,
    parent=_I.workflow_id,
)  # fmt: skip

#: The same instances, only to find them.
INSTANCE_IDS = msgspec.structs.replace(INSTANCES, columns=(_I.id, _I.created_at))

#: The same instances as the children of others.
CHILDREN = msgspec.structs.replace(INSTANCES, parent=_I.parent_id)

WORKFLOWS = Listing(
    columns=(
        _W.id, _W.name, _W.display_name, _W.description, _W.scenario, _W.status, _W.tags, _W.current_version_id,
        _W.change_seq, _W.created_at, _W.created_by, _W.updated_at, _W.updated_by, _W.deleted_at, _W.deleted_by,
        _W.max_running,
    ),
    fields={
        "id": _W.id, "name": _W.name, "display_name": _W.display_name, "description": _W.description,
        "scenario": _W.scenario, "status": _W.status, "created_at": _W.created_at, "updated_at": _W.updated_at,
        "tag": _tags,
    },
    orders={"UPDATED": (_W.updated_at, _W.id), "CREATED": (_W.created_at, _W.id), "NAME": (_W.name, _W.id)},
    project=_W.project_id,
)  # fmt: skip

#: Without the definitions: they can be megabytes, and ``definitions`` gives them when they are asked for.
VERSIONS = Listing(
    columns=(
        _V.id, _V.workflow_id, _V.major, _V.minor, _V.patch, _V.parent_id, _V.problems, _V.label, _V.change_note,
        _V.created_at, _V.created_by,
    ),
    fields={"id": _V.id, "label": _V.label},
    orders={"VERSION": (_V.major, _V.minor, _V.patch, _V.id)},
    project=_V.project_id,
    parent=_V.workflow_id,
)  # fmt: skip

NODES = Listing(
    columns=(
        _N.instance_id, _N.path, _N.ordinal, _N.node_id, _N.node_type, _N.status, _N.skip_reason, _N.attempt,
        _N.started_at, _N.completed_at, _N.due_at, _N.started_seq, _N.output,
        _N.output_artifact, _N.error, _N.progress, _N.usage,
        _N.worker, _N.last_seq, _N.awaited, _N.cached,
    ),
    fields={"node_id": _N.node_id, "path": _N.path, "status": _N.status, "node_type": _N.node_type},
    orders={"PLACE": (_N.ordinal, _N.path)},
    parent=_N.instance_id,
)  # fmt: skip

_STATE = (
    _N.instance_id, _N.path, _N.ordinal, _N.status, _N.skip_reason, _N.attempt, _N.started_at, _N.completed_at,
    _N.started_seq, _N.last_seq, _N.progress,
)  # fmt: skip


def instances(connection: Connection, project_id: str, ids: Sequence[str]) -> dict[str, Record]:
    """Those of the instances that exist in the project."""
    query = select(*INSTANCES.columns).where(Instance.project_id == project_id, Instance.id.in_(ids))
    return {row.id: row for row in connection.execute(query)}


def workflows(connection: Connection, project_id: str, ids: Sequence[str]) -> dict[str, Record]:
    """Those of the workflows that exist in the project."""
    query = select(*WORKFLOWS.columns).where(Workflow.project_id == project_id, Workflow.id.in_(ids))
    return {row.id: row for row in connection.execute(query)}


def workflow_id(connection: Connection, project_id: str, name: str) -> str | None:
    """The workflow of that name."""
    query = select(Workflow.id).where(Workflow.project_id == project_id, Workflow.name == name)
    return connection.execute(query).scalar_one_or_none()


def versions(connection: Connection, project_id: str, ids: Sequence[str]) -> dict[str, Record]:
    """Those of the versions that exist in the project, without their definitions."""
    query = select(*VERSIONS.columns).where(WorkflowVersion.project_id == project_id, WorkflowVersion.id.in_(ids))
    return {row.id: row for row in connection.execute(query)}


def version_id(
    connection: Connection, project_id: str, workflow: str, version: tuple[int, int, int] | None
) -> str | None:
    """The id of the workflow's version of that number, or of its current one."""
    if version is None:
        query = select(Workflow.current_version_id).where(Workflow.project_id == project_id, Workflow.id == workflow)
        return connection.execute(query).scalar_one_or_none()
    major, minor, patch = version
    query_version = select(WorkflowVersion.id).where(
        WorkflowVersion.project_id == project_id,
        WorkflowVersion.workflow_id == workflow,
        WorkflowVersion.major == major,
        WorkflowVersion.minor == minor,
        WorkflowVersion.patch == patch,
    )
    return connection.execute(query_version).scalar_one_or_none()


def definitions(connection: Connection, project_id: str, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The stored definition of each version."""
    query = select(WorkflowVersion.id, WorkflowVersion.definition).where(
        WorkflowVersion.project_id == project_id, WorkflowVersion.id.in_(ids)
    )
    return {row.id: row.definition for row in connection.execute(query)}


def nodes(connection: Connection, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Record]:
    """The node executions of these (instance, path) that exist."""
    query = select(*NODES.columns).where(tuple_(NodeExecution.instance_id, NodeExecution.path).in_(keys))
    return {(row.instance_id, row.path): row for row in connection.execute(query)}


def nodes_changed(connection: Connection, instance_id: str, after: int, limit: int) -> Rows:
    """The node executions with an event after ``after``, in the order of their newest event."""
    query = (
        select(*NODES.columns)
        .where(NodeExecution.instance_id == instance_id, NodeExecution.last_seq > after)
        .order_by(NodeExecution.last_seq)
        .limit(limit)
    )
    return connection.execute(query).all()


def outputs(connection: Connection, ids: Sequence[str]) -> dict[str, Rows]:
    """What every node of these instances came to, and when: enough to derive a node's input."""
    query = select(*_STATE, NodeExecution.output, NodeExecution.output_artifact, NodeExecution.error).where(
        NodeExecution.instance_id.in_(ids)
    )
    found: dict[str, list[Record]] = {id: [] for id in ids}
    for row in connection.execute(query):
        found[row.instance_id].append(row)
    return {id: tuple(rows) for id, rows in found.items()}


def node_states(connection: Connection, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Record]:
    """How these (instance, path) stand that exist, without what they gave."""
    query = select(*_STATE).where(tuple_(NodeExecution.instance_id, NodeExecution.path).in_(keys))
    return {(row.instance_id, row.path): row for row in connection.execute(query)}


def outer_states(connection: Connection, ids: Sequence[str]) -> dict[str, Rows]:
    """How the nodes of each instance stand that belong to no loop's body, without what they gave."""
    query = select(*_STATE).where(NodeExecution.instance_id.in_(ids), NodeExecution.path == NodeExecution.node_id)
    found: dict[str, list[Record]] = {id: [] for id in ids}
    for row in connection.execute(query):
        found[row.instance_id].append(row)
    return {id: tuple(rows) for id, rows in found.items()}


def durations(connection: Connection, version_id: str, runs: int) -> dict[str, list[float]]:
    """How many seconds each node took in the version's newest completed runs, outside of loops' bodies."""
    newest = (
        select(Instance.id)
        .where(Instance.version_id == version_id, Instance.status == "COMPLETED")
        .order_by(Instance.created_at.desc())
        .limit(runs)
        .scalar_subquery()
    )
    query = select(NodeExecution.path, NodeExecution.started_at, NodeExecution.completed_at).where(
        NodeExecution.instance_id.in_(newest),
        NodeExecution.path == NodeExecution.node_id,
        NodeExecution.status == "COMPLETED",
        NodeExecution.started_at.is_not(None),
    )
    found: dict[str, list[float]] = {}
    for path, started_at, completed_at in connection.execute(query):
        if started_at is not None and completed_at is not None:
            found.setdefault(path, []).append(max(0.0, (completed_at - started_at).total_seconds()))
    return found


def node_counts(connection: Connection, ids: Sequence[str]) -> dict[str, dict[str, int]]:
    """How many nodes of each instance are in each status."""
    query = (
        select(NodeExecution.instance_id, NodeExecution.status, func.count())
        .where(NodeExecution.instance_id.in_(ids))
        .group_by(NodeExecution.instance_id, NodeExecution.status)
    )
    found: dict[str, dict[str, int]] = {id: {} for id in ids}
    for instance_id, status, number in connection.execute(query):
        found[instance_id][status] = int(number)
    return found


def events(
    connection: Connection,
    ids: Sequence[str],
    after: int,
    limit: int,
    *,
    type: str | None = None,
    path: str | None = None,
) -> dict[str, list[e.Recorded]]:
    """The next events of each instance after ``after``, at most ``limit`` of each; of one type or node if given."""
    wanted = [EventRow.instance_id.in_(ids), EventRow.seq > after]
    if type is not None:
        wanted.append(EventRow.type == type)
    if path is not None:
        wanted.append(EventRow.path == path)
    columns = (EventRow.instance_id, EventRow.seq, EventRow.at, EventRow.data, EventRow.change_seq)
    found: dict[str, list[e.Recorded]] = {id: [] for id in ids}
    if len(ids) == 1:
        query = select(*columns).where(*wanted).order_by(EventRow.seq).limit(limit)
    else:
        place = func.row_number().over(partition_by=EventRow.instance_id, order_by=EventRow.seq)
        inner = select(*columns, place.label("place")).where(*wanted).subquery()
        query = (
            select(inner.c.instance_id, inner.c.seq, inner.c.at, inner.c.data, inner.c.change_seq)
            .where(inner.c.place <= limit)
            .order_by(inner.c.instance_id, inner.c.seq)
        )
    for instance_id, seq, at, data, change_seq in connection.execute(query):
        found[instance_id].append(e.Recorded(seq, at, e.decode(data), change_seq))
    return found


def newest(connection: Connection, ids: Sequence[str], types: Sequence[str]) -> dict[str, e.Recorded]:
    """The last event of one of these types of each instance that has one."""
    last = (
        select(EventRow.instance_id, func.max(EventRow.seq).label("seq"))
        .where(EventRow.instance_id.in_(ids), EventRow.type.in_(types))
        .group_by(EventRow.instance_id)
        .subquery()
    )
    query = select(EventRow.instance_id, EventRow.seq, EventRow.at, EventRow.data, EventRow.change_seq).join(
        last, (EventRow.instance_id == last.c.instance_id) & (EventRow.seq == last.c.seq)
    )
    return {id: e.Recorded(seq, at, e.decode(data), change) for id, seq, at, data, change in connection.execute(query)}


def artifacts(connection: Connection, project_id: str, ids: Sequence[str]) -> dict[str, Record]:
    """Those of the artifacts that exist in the project."""
    columns: tuple[Any, ...] = (Artifact.id, Artifact.sha256, Artifact.size, Artifact.media_type)
    query = select(*columns).where(Artifact.project_id == project_id, Artifact.id.in_(ids))
    return {row.id: row for row in connection.execute(query)}


class Changes(msgspec.Struct, frozen=True):
    """What became of a project's instances up to ``change_seq``.

    ``added`` were created in the window, ``updated`` before it; ``removed`` changed and don't match (any more).
    """

    change_seq: int
    added: Rows
    updated: Rows
    removed: tuple[str, ...]


def latest_change(connection: Connection, project_id: str) -> int:
    """The newest place in the project's order of changes."""
    return int(connection.execute(select(Project.change_seq).where(Project.id == project_id)).scalar_one())


def snapshot(connection: Connection, project_id: str, where: Filter, limit: int) -> Changes:
    """The newest instances that match, as of now: a live list starts with this and goes on with ``changes``."""
    rows = page(connection, INSTANCES, project_id, where, Slice("CREATED", descending=True, limit=limit)).rows
    return Changes(latest_change(connection, project_id), rows, (), ())


def changes(connection: Connection, project_id: str, where: Filter, after: int, up_to: int, limit: int) -> Changes:
    """The instances whose newest change is in ``(after, up_to]``, oldest change first, at most ``limit`` of them.

    ``change_seq`` of the answer is ``up_to``, or the last row's when there are more: ask again from there.
    """
    matches = case((func.coalesce(condition(connection, INSTANCES, where), false()), 1), else_=0).label("matches")
    born = (
        select(EventRow.change_seq)
        .where(EventRow.instance_id == Instance.id, EventRow.seq == 1)
        .scalar_subquery()
        .label("born")
    )
    query = (
        select(*INSTANCES.columns, matches, born)
        .where(Instance.project_id == project_id, Instance.change_seq > after, Instance.change_seq <= up_to)
        .order_by(Instance.change_seq, Instance.id)
        .limit(limit + 1)
    )
    rows: Rows = connection.execute(query).all()  # type: ignore[assignment]
    reached = up_to
    if len(rows) > limit:
        # Several rows can't share a change_seq, so the cut never falls inside one.
        rows = rows[:limit]
        reached = rows[-1].change_seq
    return Changes(
        reached,
        tuple(row for row in rows if row.matches and (row.born or 0) > after),
        tuple(row for row in rows if row.matches and (row.born or 0) <= after),
        tuple(row.id for row in rows if not row.matches),
    )
