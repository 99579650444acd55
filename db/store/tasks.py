"""Tasks and their executions as they are listed, made, held and ended. Their items are in ``db.store.items``.

Whoever runs a task holds it as a worker holds an instance: by a lease on the database's clock and a fence that grows
with every claim. What only the holder may write goes through ``held``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, case, delete, func, insert, literal, or_, select, update

from db.base import Instant
from db.models import Task, TaskExecution, TaskItem
from db.store import changes
from db.store.dbclock import db_now, db_now_once
from db.store.keyset import Listing, Record
from flow.errors import Conflict, LeaseLost, NotFound
from flow.states import after
from flow.tasks import EXECUTION_TRANSITIONS, TASK_TRANSITIONS, TaskStatus, TaskStep

_T, _E, _I = Task, TaskExecution, TaskItem

#: A task that could only wait is left alone for so many seconds at least, and so that all of them together are tried at
#: this many a second.
ASIDE_S, ASIDE_RATE = 5.0, 10.0

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


def open_of_workflow(connection: Connection, workflow_id: str) -> str | None:
    """The id of a task that runs the workflow or is about to, if there is one."""
    query = select(Task.id).where(Task.workflow_id == workflow_id, Task.completed_at.is_(None), _wanted())
    return connection.execute(query.limit(1)).scalar()


def running_by_server(connection: Connection, server_ids: Sequence[str]) -> dict[str, int]:
    """How many slots of each server are taken: the items that it runs now, of whatever task."""
    query = (
        select(TaskItem.server_id, func.count())
        .where(TaskItem.status == "RUNNING", TaskItem.server_id.in_(server_ids))
        .group_by(TaskItem.server_id)
    )
    return dict.fromkeys(server_ids, 0) | {str(id): int(number) for id, number in connection.execute(query)}


def current_by_server(connection: Connection, server_ids: Sequence[str]) -> dict[str, str]:
    """A task that runs on each server now (the one that began first); no entry for a server that runs none."""
    query = (
        select(TaskItem.server_id, func.min(TaskItem.task_id))
        .where(TaskItem.status == "RUNNING", TaskItem.server_id.in_(server_ids))
        .group_by(TaskItem.server_id)
    )
    return {str(server): str(task) for server, task in connection.execute(query)}


# ---- making and changing


def insert_task(connection: Connection, **values: Any) -> None:
    """Insert a task; what is not given is as it is before anything happened."""
    empty: dict[str, Any] = {
        "progress": 0.0,
        "total": 0,
        "done": 0,
        "failed": 0,
        "canceled": 0,
        "bytes_total": 0,
        "bytes_done": 0,
        "expanded": False,
        "warnings": {},
        "fence": 0,
    }
    connection.execute(insert(Task).values(**empty | values))


def insert_execution(
    connection: Connection,
    task_id: str,
    project_id: str,
    id: str,
    *,
    server_id: str | None,
    token_sha256: str,
    at: datetime,
    by: str | None,
) -> None:
    """The task's next execution; its current one from now on."""
    number = connection.execute(
        select(func.coalesce(func.max(TaskExecution.number), 0)).where(TaskExecution.task_id == task_id)
    ).scalar_one()
    connection.execute(
        insert(TaskExecution).values(
            id=id,
            task_id=task_id,
            project_id=project_id,
            number=number + 1,
            server_id=server_id,
            status=TaskStatus.PENDING,
            progress=0.0,
            token_sha256=token_sha256,
            created_at=at,
            created_by=by,
            updated_at=at,
        )
    )
    connection.execute(update(Task).where(Task.id == task_id).values(execution_id=id))


def locked(connection: Connection, project_id: str, task_id: str) -> Record:
    """The task's row, which nobody else changes until the commit. Raises NotFound."""
    query = select(Task.__table__).where(Task.project_id == project_id, Task.id == task_id).with_for_update()
    row = connection.execute(query).one_or_none()
    if row is None:
        raise NotFound("task", task_id)
    return row


def set_task(connection: Connection, task_id: str, **values: Any) -> None:
    """Set some columns of a task."""
    connection.execute(update(Task).where(Task.id == task_id).values(**values))


def set_execution(connection: Connection, execution_id: str, **values: Any) -> None:
    """Set some columns of an execution."""
    connection.execute(update(TaskExecution).where(TaskExecution.id == execution_id).values(**values))


def execution(connection: Connection, project_id: str, execution_id: str) -> Record | None:
    """The execution's row with the hash of its token."""
    wanted = TaskExecution.project_id == project_id, TaskExecution.id == execution_id
    return connection.execute(select(TaskExecution.__table__).where(*wanted)).one_or_none()


def make_due(connection: Connection, task_id: str) -> None:
    """Somebody should hold the task, from now on."""
    connection.execute(update(Task).where(Task.id == task_id).values(due_at=db_now()))


def report(connection: Connection, row: Record, execution_id: str, at: datetime, seq: int, **values: Any) -> None:
    """What the runner of an execution says of it on the way: it runs, with this progress and message."""
    begun = {"status": TaskStatus.RUNNING, "updated_at": at}
    connection.execute(
        update(TaskExecution)
        .where(TaskExecution.id == execution_id)
        .values(**values, **begun, started_at=func.coalesce(TaskExecution.started_at, literal(at, Instant())))
    )
    if row.status == TaskStatus.PENDING:
        values = values | {"status": TaskStatus.RUNNING, "started_at": at}
    set_task(connection, row.id, **values, updated_at=at, change_seq=seq)


def delete_task(connection: Connection, project_id: str, task_id: str) -> None:
    """Remove a task that has no items any more, and its executions."""
    connection.execute(delete(Task).where(Task.project_id == project_id, Task.id == task_id))


# ---- holding


@dataclass(frozen=True, slots=True)
class Hold:
    """A task that this worker runs, under this fence."""

    task_id: str
    project_id: str
    owner: str
    fence: int


def claim(connection: Connection, owner: str, lease_s: float, most: int) -> list[Hold]:
    """Take tasks that want to run and that nobody holds, the most urgent first."""
    due = (
        select(Task.id)
        .where(Task.completed_at.is_(None), _free())
        .order_by(Task.priority.desc(), Task.created_at)
        .limit(most)
        .with_for_update(skip_locked=True)
    )
    ids = list(connection.execute(due).scalars())
    if not ids:
        return []
    rows = connection.execute(
        update(Task)
        .where(Task.id.in_(ids))
        .values(owner=owner, fence=Task.fence + 1, lease_until=db_now(lease_s))
        .returning(Task.id, Task.project_id, Task.fence),
        execution_options={"synchronize_session": False},
    )
    holds = {row.id: Hold(row.id, row.project_id, owner, row.fence) for row in rows}
    return [holds[id] for id in ids]


def due_in(connection: Connection) -> float | None:
    """Seconds until there is a task to claim, 0 or less if there is one; None if no open task is for anybody."""
    at = func.min(func.coalesce(Task.lease_until, Task.due_at))
    row = connection.execute(select(at.label("at"), db_now().label("now")).where(Task.completed_at.is_(None))).one()
    return None if row.at is None else float((row.at - row.now).total_seconds())


def renew(connection: Connection, owner: str, holds: Sequence[Hold], lease_s: float) -> dict[str, bool]:
    """Extend the leases that are still held; those tasks, and whether somebody wants them to stop."""
    wanted = {hold.task_id: hold.fence for hold in holds}
    rows = connection.execute(
        update(Task)
        .where(Task.id.in_(wanted), Task.owner == owner, Task.completed_at.is_(None))
        .values(lease_until=db_now(lease_s))
        .returning(Task.id, Task.fence, Task.cancel_requested_at),
        execution_options={"synchronize_session": False},
    )
    return {id: asked is not None for id, fence, asked in rows if wanted[id] == fence}


def release(connection: Connection, hold: Hold) -> None:
    """Give a task back for others to go on with at once."""
    connection.execute(
        update(Task)
        .where(Task.id == hold.task_id, Task.owner == hold.owner, Task.fence == hold.fence)
        .values(owner=None, lease_until=None)
    )


def step_aside(connection: Connection, hold: Hold, most_s: float) -> None:
    """Give a task back that could only wait, for some seconds (at most ``most_s``), so that others may try; the more of
    them, the longer. One that is to be cancelled is due at once.
    """
    number = select(func.count()).select_from(Task).where(Task.completed_at.is_(None), _wanted())
    tasks = int(connection.execute(number).scalar_one())
    connection.execute(
        update(Task)
        .where(Task.id == hold.task_id, Task.owner == hold.owner, Task.fence == hold.fence)
        .values(
            owner=None,
            lease_until=None,
            due_at=case(
                (Task.cancel_requested_at.is_not(None), db_now()),
                else_=db_now(min(most_s, max(ASIDE_S, tasks / ASIDE_RATE))),
            ),
        )
    )


def expire_all(connection: Connection) -> None:
    """End every lease now. Only for a process that knows itself to be the only one on this database, at its start."""
    open_ = Task.completed_at.is_(None), Task.lease_until.is_not(None)
    connection.execute(update(Task).where(*open_).values(lease_until=db_now()))


def held(connection: Connection, hold: Hold) -> Record:
    """The task's row, locked until the commit. Raises LeaseLost if somebody else has taken the task, or ended it."""
    query = (
        select(Task.__table__)
        .where(Task.id == hold.task_id, Task.fence == hold.fence, Task.owner == hold.owner)
        .with_for_update()
    )
    row = connection.execute(query).one_or_none()
    if row is None or row.completed_at is not None:
        raise LeaseLost(hold.task_id, hold.fence)
    return row


def begin(connection: Connection, hold: Hold, at: datetime) -> Record:
    """The task runs, if it did not already; its row."""
    seq = changes.take(connection, hold.project_id)
    row = held(connection, hold)
    if row.status == TaskStatus.PENDING:
        status = after(TASK_TRANSITIONS, TaskStatus(row.status), TaskStep.START)
        set_task(connection, hold.task_id, status=status, started_at=at, updated_at=at, change_seq=seq)
        set_execution(connection, row.execution_id, status=status, started_at=at, updated_at=at)
        row = held(connection, hold)
    return row


def note(connection: Connection, /, hold: Hold, at: datetime, **values: Any) -> int:
    """Progress, message, rate and the like; the change number."""
    seq = changes.take(connection, hold.project_id)
    row = held(connection, hold)
    set_task(connection, hold.task_id, **values, updated_at=at, change_seq=seq)
    shared = {name: value for name, value in values.items() if name in ("progress", "message")}
    set_execution(connection, row.execution_id, **shared, updated_at=at)
    return seq


def set_token(connection: Connection, hold: Hold, execution_id: str, token_sha256: str) -> None:
    """From now on this is the token with which the execution's runner reports."""
    held(connection, hold)
    set_execution(connection, execution_id, token_sha256=token_sha256)


def end(connection: Connection, /, hold: Hold, step: TaskStep, at: datetime, **values: Any) -> int:
    """The task and its execution have ended; nobody holds it any more. The change number.

    Raises LeaseLost. ``values``: progress, message, result, error.
    """
    seq = changes.take(connection, hold.project_id)
    return close(connection, held(connection, hold), step, at, seq, **values)


def close(connection: Connection, row: Record, step: TaskStep, at: datetime, seq: int, **values: Any) -> int:
    """End the task of that row, which is locked. Raises IllegalTransition."""
    status = after(TASK_TRANSITIONS, TaskStatus(row.status), step)
    shared = {name: value for name, value in values.items() if name in ("progress", "message", "result", "error")}
    ended = {"status": status, "completed_at": at, "updated_at": at}
    nobody = {"owner": None, "lease_until": None, "due_at": None, "fence": row.fence + 1}
    set_task(connection, row.id, **values, **ended, **nobody, rate=None, eta_at=None, change_seq=seq)
    if row.execution_id is not None:
        found = execution(connection, row.project_id, row.execution_id)
        if found is not None and not TaskStatus(found.status).terminal:
            after(EXECUTION_TRANSITIONS, TaskStatus(found.status), step)
            set_execution(connection, row.execution_id, **shared, **ended, token_sha256=None)
    return seq


def expect(row: Record, statuses: frozenset[TaskStatus], remedy: str) -> None:
    """Raise Conflict with the remedy unless the task is in one of the statuses."""
    if TaskStatus(row.status) not in statuses:
        raise Conflict(f"The task is {row.status}. {remedy}", status=row.status)


def _wanted() -> ColumnElement[bool]:
    """Somebody holds it, or should."""
    return or_(Task.due_at.is_not(None), Task.lease_until.is_not(None))


def _free() -> ColumnElement[bool]:
    return or_(
        and_(Task.lease_until.is_not(None), Task.lease_until <= db_now_once()),
        and_(Task.lease_until.is_(None), Task.due_at <= db_now_once()),
    )
