"""The ledger: every item of a task, which server has it, and what became of it.

Changes under a ``Hold`` are the holder's alone (``db.store.tasks.held`` looks at the fence), and in their transaction
they are counted in the task's row: so the counts add up whenever somebody looks. RUNNING items are
the slots that are taken on a server; they are counted, never kept as a number that could leak.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Text, case, cast, delete, func, select, update

from db.models import Server, TaskItem
from db.store import bulk, changes
from db.store import tasks as store
from db.store.dbclock import db_now, db_now_once
from db.store.keyset import Record
from db.store.tasks import ITEMS, Hold, close, held, set_task
from flow.tasks import TaskStatus, TaskStep

_COLUMNS = (
    "id", "task_id", "ordinal", "path", "relative", "size", "status", "attempts", "failures", "losses", "outputs",
)  # fmt: skip
_REFUSED = (*_COLUMNS, "error", "completed_at")
_BATCH = 5_000


@dataclass(frozen=True, slots=True)
class NewItem:
    """A file that was found; with ``error`` (a Failure as JSON) it has failed already."""

    id: str
    path: str
    relative: str
    size: int
    error: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Taken:
    """An item in the hands of its task's holder: RUNNING, on that server (None: this engine), ``ref`` if submitted."""

    id: str
    ordinal: int
    path: str
    relative: str
    size: int
    attempts: int
    failures: int
    losses: int
    server_id: str | None
    ref: str | None


_TAKEN: tuple[Any, ...] = (
    TaskItem.id, TaskItem.ordinal, TaskItem.path, TaskItem.relative, TaskItem.size, TaskItem.attempts,
    TaskItem.failures, TaskItem.losses, TaskItem.server_id, TaskItem.ref,
)  # fmt: skip


def add(
    connection: Connection,
    hold: Hold,
    found: Sequence[NewItem],
    cursor: Any,
    warnings: Mapping[str, int],
    at: datetime,
    *,
    over: bool = False,
    again: bool = True,
) -> int:
    """Add what was found, with the place where the expansion goes on (``over``: nowhere); how many were new.

    ``again``: some of them may be there from before.
    """
    row = held(connection, hold)
    if again and found:
        known = set(_known(connection, hold.task_id, [item.path for item in found]))
        found = [item for item in found if item.path not in known]
    ordinals = range(row.total + 1, row.total + 1 + len(found))
    rows: list[tuple[Any, ...]] = [
        (item.id, hold.task_id, ordinal, item.path, item.relative, item.size, "PENDING", 0, 0, 0, [])
        for ordinal, item in zip(ordinals, found, strict=True)
        if item.error is None
    ]
    refused: list[tuple[Any, ...]] = [
        (item.id, hold.task_id, ordinal, item.path, item.relative, item.size, "FAILED", 0, 0, 0, [], item.error, at)
        for ordinal, item in zip(ordinals, found, strict=True)
        if item.error is not None
    ]
    table: Any = TaskItem.__table__
    bulk.insert(connection, table, _COLUMNS, rows)
    bulk.insert(connection, table, _REFUSED, refused)
    counted = dict(row.warnings)
    for reason, number in warnings.items():
        counted[reason] = counted.get(reason, 0) + number
    set_task(
        connection,
        hold.task_id,
        total=row.total + len(found),
        failed=row.failed + len(refused),
        bytes_total=row.bytes_total + sum(item.size for item in found),
        cursor=cursor,
        expanded=over,
        warnings=counted,
    )
    return len(found)


def _known(connection: Connection, task_id: str, paths: Sequence[str]) -> list[str]:
    query = select(TaskItem.path).where(TaskItem.task_id == task_id, TaskItem.path.in_(paths))
    return list(connection.execute(query).scalars())


def insert_only(connection: Connection, task_id: str, item_id: str) -> None:
    """The one item of a task that is no batch."""
    table: Any = TaskItem.__table__
    bulk.insert(connection, table, _COLUMNS, [(item_id, task_id, 1, "", "", 0, "PENDING", 0, 0, 0, [])])


def take(connection: Connection, hold: Hold, server_id: str | None, slots: int, most: int, at: datetime) -> list[Taken]:
    """The next items for a server that has ``slots`` in all, at most ``most``, and no more than are free there."""
    held(connection, hold)
    if server_id is not None and connection.dialect.name != "sqlite":
        # Another task's holder may be counting the same slots.
        connection.execute(select(Server.id).where(Server.id == server_id).with_for_update())
    running = select(func.count()).where(TaskItem.status == "RUNNING")
    if server_id is None:
        running = running.where(TaskItem.task_id == hold.task_id, TaskItem.server_id.is_(None))
    else:
        running = running.where(TaskItem.server_id == server_id)
    free = min(most, slots - connection.execute(running).scalar_one())
    if free <= 0:
        return []
    # Those that failed before come last: they tell least about the others.
    pending = select(TaskItem.id).where(TaskItem.task_id == hold.task_id, TaskItem.status == "PENDING")
    fresh = pending.where(TaskItem.due_at.is_(None)).order_by(TaskItem.ordinal)
    ids = list(connection.execute(fresh.limit(free)).scalars())
    if len(ids) < free:
        again = pending.where(TaskItem.due_at <= db_now_once()).order_by(TaskItem.due_at)
        ids += connection.execute(again.limit(free - len(ids))).scalars()
    if not ids:
        return []
    rows = connection.execute(
        update(TaskItem)
        .where(TaskItem.id.in_(ids))
        .values(
            status="RUNNING",
            attempts=TaskItem.attempts + 1,
            server_id=server_id,
            ref=None,
            instance_id=None,
            progress=None,
            error=None,
            due_at=None,
            started_at=at,
        )
        .returning(*_TAKEN),
        execution_options={"synchronize_session": False},
    )
    return sorted((Taken(*row) for row in rows), key=lambda item: item.ordinal)


def running(connection: Connection, task_id: str) -> list[Taken]:
    """The items that were in somebody's hands when the task was last let go of."""
    query = select(*_TAKEN).where(TaskItem.task_id == task_id, TaskItem.status == "RUNNING").order_by(TaskItem.ordinal)
    return [Taken(*row) for row in connection.execute(query)]


@dataclass(frozen=True, slots=True)
class Waiting:
    """How many items wait for a server, and in how many seconds the first of them may go (0: now)."""

    items: int
    in_s: float


def waiting(connection: Connection, task_id: str) -> Waiting:
    """What is left to hand out; looks at no more than the first few of the items that may go at once."""
    pending = TaskItem.task_id == task_id, TaskItem.status == "PENDING"
    first = connection.execute(select(TaskItem.id).where(*pending, TaskItem.due_at.is_(None)).limit(1)).first()
    if first is not None:
        return Waiting(1, 0.0)
    query = select(func.count(), func.min(TaskItem.due_at), db_now().label("now")).where(*pending)
    number, due, now = connection.execute(query).one()
    return Waiting(number, 0.0 if due is None else max(0.0, (due - now).total_seconds()))


def submitted(
    connection: Connection, hold: Hold, item_id: str, ref: str, instance_id: str | None, sha256: str | None
) -> None:
    """Keep the server's reference: from now on the item is followed, after whatever happens, and not sent again."""
    held(connection, hold)
    values = {"ref": ref, "instance_id": instance_id, "sha256": sha256}
    connection.execute(update(TaskItem).where(TaskItem.id == item_id, TaskItem.status == "RUNNING").values(**values))


def note(connection: Connection, /, hold: Hold, shares: Mapping[str, float], at: datetime, **values: Any) -> int:
    """How far the task is (``db.store.tasks.note``), and each of its running items; the change number."""
    seq = store.note(connection, hold, at, **values)
    for id, share in shares.items():
        running = update(TaskItem).where(TaskItem.id == id, TaskItem.status == "RUNNING")
        connection.execute(running.values(progress=share))
    return seq


def finish(
    connection: Connection,
    hold: Hold,
    item: Taken,
    status: TaskStatus,
    at: datetime,
    *,
    outputs: Sequence[Mapping[str, Any]] = (),
    result: Any = None,
    error: Mapping[str, Any] | None = None,
) -> None:
    """What became of a running item, for good."""
    row = held(connection, hold)
    changed = connection.execute(
        update(TaskItem)
        .where(TaskItem.id == item.id, TaskItem.status == "RUNNING")
        .values(status=status, outputs=list(outputs), result=result, error=error, progress=None, completed_at=at)
    )
    if not changed.rowcount:
        return
    match status:
        case TaskStatus.COMPLETED:
            set_task(connection, hold.task_id, done=row.done + 1, bytes_done=row.bytes_done + item.size)
        case TaskStatus.FAILED:
            set_task(connection, hold.task_id, failed=row.failed + 1)
        case TaskStatus.CANCELED:
            set_task(connection, hold.task_id, canceled=row.canceled + 1)
        case _:
            raise ValueError(f"{status} is no end of an item")


def give_back(
    connection: Connection,
    hold: Hold,
    item_id: str,
    *,
    in_s: float = 0.0,
    failed: bool = False,
    lost: bool = False,
    error: Mapping[str, Any] | None = None,
) -> None:
    """Let any server take the item again, in so many seconds. ``failed`` and ``lost`` are counted."""
    held(connection, hold)
    connection.execute(
        update(TaskItem)
        .where(TaskItem.id == item_id, TaskItem.status == "RUNNING")
        .values(
            status="PENDING",
            server_id=None,
            ref=None,
            instance_id=None,
            progress=None,
            error=error,
            failures=TaskItem.failures + int(failed),
            losses=TaskItem.losses + int(lost),
            due_at=db_now(in_s) if in_s > 0 else None,
        )
    )


def cancel_rest(connection: Connection, hold: Hold, at: datetime) -> int:
    """Cancel some of the items that have not ended, at most a few thousand; how many. Call until it is 0.

    Nothing may be under way any more: what says that it runs was left over, and would keep its server's place for ever.
    """
    row = held(connection, hold)
    ids = _some(connection, hold.task_id, ("PENDING", "RUNNING"))
    if ids:
        connection.execute(update(TaskItem).where(TaskItem.id.in_(ids)).values(status="CANCELED", completed_at=at))
        set_task(connection, hold.task_id, canceled=row.canceled + len(ids))
    return len(ids)


def only(connection: Connection, task_id: str) -> Record:
    """The one item of a task that is no batch."""
    return connection.execute(select(*ITEMS.columns).where(TaskItem.task_id == task_id).limit(1)).one()


def without_outputs(connection: Connection, task_id: str) -> int:
    """How many items are done and have no output."""
    query = select(func.count()).where(
        TaskItem.task_id == task_id, TaskItem.status == "COMPLETED", cast(TaskItem.outputs, Text) == "[]"
    )
    return int(connection.execute(query).scalar_one())


def reopen(connection: Connection, task_id: str, statuses: Sequence[str], only: Sequence[str] | None = None) -> int:
    """Let the items of these statuses (of these ids) run again, under the lock of their task's row; how many."""
    wanted = [TaskItem.task_id == task_id, TaskItem.status.in_(statuses)]
    if only is not None:
        wanted.append(TaskItem.id.in_(only))
    return connection.execute(
        update(TaskItem)
        .where(*wanted)
        .values(
            status="PENDING", server_id=None, ref=None, instance_id=None, error=None, result=None, outputs=[],
            failures=0, losses=0, due_at=None, started_at=None, completed_at=None,
        )
    ).rowcount  # fmt: skip


def settle(
    connection: Connection, task_id: str, status: TaskStatus, at: datetime, error: Any = None, result: Any = None
) -> None:
    """Every item that has not ended ends so: somebody else says that the whole task has."""
    wanted = TaskItem.task_id == task_id, TaskItem.status.in_(("PENDING", "RUNNING"))
    values = {"status": status, "error": error, "result": result, "completed_at": at}
    connection.execute(update(TaskItem).where(*wanted).values(**values))


def fail_task(connection: Connection, hold: Hold, error: Mapping[str, Any], at: datetime) -> int:
    """End the whole task as failed, with whatever of it has not ended; the change number."""
    seq = changes.take(connection, hold.project_id)
    row = held(connection, hold)
    settle(connection, hold.task_id, TaskStatus.CANCELED, at)
    recount(connection, hold.task_id)
    return close(connection, row, TaskStep.FAIL, at, seq, error=error, message=error["message"])


def recount(connection: Connection, task_id: str) -> None:
    """Set the task's counts to what its items are."""
    sums = {
        "total": func.count(),
        "done": func.coalesce(func.sum(case((TaskItem.status == "COMPLETED", 1), else_=0)), 0),
        "failed": func.coalesce(func.sum(case((TaskItem.status == "FAILED", 1), else_=0)), 0),
        "canceled": func.coalesce(func.sum(case((TaskItem.status == "CANCELED", 1), else_=0)), 0),
        "bytes_total": func.coalesce(func.sum(TaskItem.size), 0),
        "bytes_done": func.coalesce(func.sum(case((TaskItem.status == "COMPLETED", TaskItem.size), else_=0)), 0),
    }
    row = connection.execute(
        select(*(value.label(name) for name, value in sums.items())).where(TaskItem.task_id == task_id)
    ).one()
    set_task(connection, task_id, **{name: int(value) for name, value in row._asdict().items()})


def delete_some(connection: Connection, task_id: str) -> int:
    """Remove some items of a task, at most a few thousand; how many. Call until it is 0."""
    ids = _some(connection, task_id, None)
    if ids:
        connection.execute(delete(TaskItem).where(TaskItem.id.in_(ids)))
    return len(ids)


def _some(connection: Connection, task_id: str, statuses: Sequence[str] | None) -> list[str]:
    query = select(TaskItem.id).where(TaskItem.task_id == task_id)
    if statuses is not None:
        query = query.where(TaskItem.status.in_(statuses))
    return list(connection.execute(query.limit(_BATCH)).scalars())
