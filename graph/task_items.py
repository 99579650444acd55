"""The files of a batch as the schema shows them: each with its state, attempts, server and outputs."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import strawberry
from strawberry import UNSET, field

from db.store import keyset
from engine.access import Actor
from flow.tasks import TaskStatus
from graph.nodes import duration
from graph.objects import Failure, Node, derived, stored_failure
from graph.paging import IdFilter, IntFilter, StringFilter
from graph.permissions import Info, caller
from graph.scalars import JSON, BigInt

if TYPE_CHECKING:
    from graph.instances import Instance
    from graph.servers import Server
    from graph.tasks import Task

strawberry.enum(TaskStatus, description="The life of a task, of each of its executions, and of each of its files.")


@strawberry.type(description="A file that came out, in its place.")
class TaskOutput:
    """One of the row's ``outputs``."""

    path: str = field(description="Where it is, on the machine that runs the task.")
    name: str = field(description="Its name without the folders.")
    size: BigInt = field(description="Its size in bytes.")
    sha256: str = field(description="The SHA-256 of its content, in hexadecimal.")


@strawberry.type(description="One file of a batch, or the one run of another task.")
class TaskItem(Node):
    """A row of ``task_items``."""

    ordinal: int = field(description="Its place in the order in which files were found.")
    path: str = field(description="The file; empty for one run.")
    relative: str = field(description="Its path below the target folder.")
    size: BigInt = field(description="Its size in bytes when it was found.")
    sha256: str | None = field(description="The SHA-256 of its content when it was last sent out, in hexadecimal.")
    status: TaskStatus = field(description="Where it is in its life.")
    attempts: int = field(description="How often it was sent out.")
    losses: int = field(description="How often its server was lost meanwhile.")
    progress: float | None = field(description="How much of it is done, from 0 to 1, by its server's word.")
    outputs: list[TaskOutput] = field(description="The files that came out.")
    result: JSON | None = field(description="What its run gave.")
    error: Failure | None = field(description="Why it failed (last), if it did.")
    started_at: datetime | None = field(description="When it was last sent out.")
    completed_at: datetime | None = field(description="When it ended, however it did.")
    duration: timedelta | None = field(description="From `startedAt` to `completedAt`.")
    task_id: strawberry.Private[str]
    server_id: strawberry.Private[str | None]
    instance_id: strawberry.Private[str | None]

    @derived("The task that it belongs to.")
    async def task(self, info: Info) -> Annotated[Task, strawberry.lazy("graph.tasks")] | None:
        """By loader."""
        from graph.tasks import task

        row = await info.context.load.task.load(self.task_id)
        return None if row is None else task(row, caller(info))

    @derived("The server that it runs or ran on; null for this engine, without a server, and before it was sent out.")
    async def server(self, info: Info) -> Annotated[Server, strawberry.lazy("graph.servers")] | None:
        """By loader."""
        from graph.servers import server

        row = await info.context.load.server.load(self.server_id) if self.server_id else None
        return None if row is None else server(row, caller(info))

    @derived("The run of the workflow that it started here, if it did.")
    async def instance(self, info: Info) -> Annotated[Instance, strawberry.lazy("graph.instances")] | None:
        """By loader."""
        from graph.instances import instance

        row = await info.context.load.instance.load(self.instance_id) if self.instance_id else None
        return None if row is None else instance(row, caller(info))


def task_item(row: keyset.Record, actor: Actor) -> TaskItem:
    """The row as the schema shows it."""
    return TaskItem(
        id=strawberry.ID(row.id),
        ordinal=row.ordinal,
        path=row.path,
        relative=row.relative,
        size=row.size,
        sha256=row.sha256,
        status=TaskStatus(row.status),
        attempts=row.attempts,
        losses=row.losses,
        progress=row.progress,
        outputs=[
            TaskOutput(path=each["path"], name=each["name"], size=each["size"], sha256=each["sha256"])
            for each in row.outputs
        ],
        result=row.result,
        error=stored_failure(row.error, actor),
        started_at=row.started_at,
        completed_at=row.completed_at,
        duration=duration(row.started_at, row.completed_at),
        task_id=row.task_id,
        server_id=row.server_id,
        instance_id=row.instance_id,
    )


@strawberry.input(description="Compares the status of a task or of a file.")
class TaskStatusFilter:
    """``eq`` or ``in``."""

    eq: TaskStatus | None = field(default=UNSET, description="Is exactly this.")
    in_: list[TaskStatus] | None = field(default=UNSET, name="in", description="Is one of these.")


@strawberry.input(name="TaskItemWhere", description="Which files. Everything that is given must hold.")
class ItemWhere:
    """See ``db.store.tasks.ITEMS``."""

    id: IdFilter | None = field(default=None, description="By id.")
    status: TaskStatusFilter | None = field(default=None, description="By status.")
    path: StringFilter | None = field(default=None, description="By their whole path.")
    relative: StringFilter | None = field(default=None, description="By their path below the target folder.")
    server: IdFilter | None = field(default=None, description="By the server that they run or ran on.")
    size: IntFilter | None = field(default=None, description="By size in bytes.")
    attempts: IntFilter | None = field(default=None, description="By how often they were sent out.")
    and_: list[ItemWhere] | None = field(default=None, name="and", description="All of these hold.")
    or_: list[ItemWhere] | None = field(default=None, name="or", description="At least one of these holds.")
    not_: ItemWhere | None = field(default=None, name="not", description="This does not hold.")
