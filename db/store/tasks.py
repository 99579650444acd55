"""Tasks and their executions as they are listed, made, held and ended. Their items are in ``db.store.items``.

Whoever runs a task holds it as a worker holds an instance: by a lease on the database's clock and a fence that grows
with every claim. What only the holder may write goes through ``held``.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, func, select

from db.models import Task, TaskExecution, TaskItem
from db.store.keyset import Listing, Record

_T, _E, _I = Task, TaskExecution, TaskItem

TASKS = Listing(
    columns=(
        _T.id, _T.type, _T.name, _T.description, _T.status, _T.priority, _T.timeout_s, _T.spec, _T.workflow_id,
        _T.version_id, _T.execution_id, _T.progress, _T.message, _T.result, _T.error, _T.total, _T.done, _T.failed,
        _T.canceled, _T.bytes_total, _T.bytes_done, _T.rate, _T.eta_at, _T.expanded, _T.warnings,
        _T.cancel_requested_at, _T.change_seq, _T.created_at, _T.created_by, _T.updated_at, _T.started_at,
        _T.completed_at,
    ),
    fields={
        "id": _T.id, "type": _T.type, "name": _T.name, "status": _T.status, "priority": _T.priority,
        "workflow": _T.workflow_id, "created_at": _T.created_at, "updated_at": _T.updated_at,
        "started_at": _T.started_at, "completed_at": _T.completed_at, "created_by": _T.created_by,
    },
    orders={
        "CREATED": (_T.created_at, _T.id), "CHANGED": (_T.change_seq, _T.id),
        "PRIORITY": (_T.priority, _T.created_at, _T.id),
    },
    project=_T.project_id,
)  # fmt: skip

#: Without the hash of the token.
EXECUTIONS = Listing(
    columns=(
        _E.id, _E.task_id, _E.number, _E.server_id, _E.status, _E.progress, _E.message, _E.result, _E.error,
        _E.created_at, _E.created_by, _E.updated_at, _E.started_at, _E.completed_at,
    ),
    fields={"id": _E.id, "status": _E.status, "server": _E.server_id, "number": _E.number},
    orders={"NUMBER": (_E.number,)},
    project=_E.project_id,
    parent=_E.task_id,
)  # fmt: skip

ITEMS = Listing(
    columns=(
        _I.id, _I.task_id, _I.ordinal, _I.path, _I.relative, _I.size, _I.sha256, _I.status, _I.attempts, _I.losses,
        _I.server_id, _I.instance_id, _I.progress, _I.outputs, _I.result, _I.error, _I.started_at, _I.completed_at,
    ),
    fields={
        "id": _I.id, "status": _I.status, "path": _I.path, "relative": _I.relative, "server": _I.server_id,
        "size": _I.size, "attempts": _I.attempts,
    },
    orders={"PLACE": (_I.ordinal, _I.id)},
    parent=_I.task_id,
)  # fmt: skip

# ---- looking up


def tasks(connection: Connection, project_id: str, ids: Sequence[str]) -> dict[str, Record]:
    """Those of the tasks that exist in the project."""
    query = select(*TASKS.columns).where(Task.project_id == project_id, Task.id.in_(ids))
    return {row.id: row for row in connection.execute(query)}


def executions(connection: Connection, project_id: str, ids: Sequence[str]) -> dict[str, Record]:
    """Those of the executions that exist in the project."""
    query = select(*EXECUTIONS.columns).where(TaskExecution.project_id == project_id, TaskExecution.id.in_(ids))
    return {row.id: row for row in connection.execute(query)}


def items(connection: Connection, project_id: str, ids: Sequence[str]) -> dict[str, Record]:
    """Those of the items that exist in the project."""
    query = (
        select(*ITEMS.columns)
        .join(Task, Task.id == TaskItem.task_id)
        .where(Task.project_id == project_id, TaskItem.id.in_(ids))
    )
    return {row.id: row for row in connection.execute(query)}


def running_by_server(connection: Connection, server_ids: Sequence[str]) -> dict[str, int]:
    """How many slots of each server are taken: the items that it runs now, of whatever task."""
    query = (
        select(TaskItem.server_id, func.count())
        .where(TaskItem.status == "RUNNING", TaskItem.server_id.in_(server_ids))
        .group_by(TaskItem.server_id)
    )
    return dict.fromkeys(server_ids, 0) | {id: int(number) for id, number in connection.execute(query)}


def current_by_server(connection: Connection, server_ids: Sequence[str]) -> dict[str, str]:
    """A task that runs on each server now (the one that began first); no entry for a server that runs none."""
    query = (
        select(TaskItem.server_id, func.min(TaskItem.task_id))
        .where(TaskItem.status == "RUNNING", TaskItem.server_id.in_(server_ids))
        .group_by(TaskItem.server_id)
    )
    return {str(server): str(task) for server, task in connection.execute(query)}
