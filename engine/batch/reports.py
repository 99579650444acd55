"""What the runner of an execution says of it, with the execution's one-time token."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from db.store import changes
from db.store import items as ledger
from db.store import tasks as store
from engine.access import Permission
from flow.errors import Category, Denied, Failure, NotFound
from flow.states import after
from flow.tasks import BATCH, EXECUTION_TRANSITIONS, REPORTED, TaskStatus

if TYPE_CHECKING:
    from sqlalchemy import Connection


@dataclass(frozen=True, slots=True)
class Report:
    """RUNNING with a progress and a message, or an end with its result or error."""

    execution_id: str
    token: str
    status: TaskStatus
    at: datetime
    progress: float | None
    message: str | None
    result: Any
    error: str | None


def record(connection: Connection, project_id: str, report: Report) -> tuple[int, str]:
    """A store function: the change number and the task's id. Raises NotFound, Denied, IllegalTransition."""
    seq, status, step = changes.take(connection, project_id), report.status, REPORTED[report.status]
    found = store.execution(connection, project_id, report.execution_id)
    if found is None:
        raise NotFound("task execution", report.execution_id)
    row = store.locked(connection, project_id, found.task_id)
    found = store.execution(connection, project_id, report.execution_id)
    assert found is not None
    before = TaskStatus(found.status)
    if not (before is status is TaskStatus.RUNNING):  # again: a sign of life
        after(EXECUTION_TRANSITIONS, before, step)
    digest = hashlib.sha256(report.token.encode("utf-8", "surrogatepass")).hexdigest()
    if found.token_sha256 is None or not hmac.compare_digest(found.token_sha256, digest):
        raise Denied(Permission.TASK_RUN, "The token is not this execution's, or is used up.")
    said = {"progress": report.progress, "message": report.message}
    values: dict[str, Any] = {key: value for key, value in said.items() if value is not None}
    if status is TaskStatus.RUNNING:
        store.report(connection, row, report.execution_id, report.at, seq, **values)
        return seq, row.id
    failure = None
    if status is TaskStatus.FAILED:
        message = report.error or report.message or "Its runner says that it failed."
        failure = msgspec.to_builtins(Failure("REPORTED_FAILURE", Category.CODE, message))
    result = report.result if row.type != BATCH else None
    ledger.settle(connection, row.id, status, report.at, failure, result)
    ledger.recount(connection, row.id)
    values = {"progress": 1.0 if status is TaskStatus.COMPLETED else row.progress} | values
    values |= {"result": report.result, "error": failure}
    return store.close(connection, row, step, report.at, seq, **values), row.id
