"""Tasks, their executions and their files as types, and how they are looked up. What changes them is in
``graph.tasking`` and ``graph.batches``.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, cast

import strawberry
from strawberry import argument, field

from db.store import keyset
from db.store import tasks as store
from engine.access import Actor, Permission
from flow.tasks import BATCH, TaskStatus
from graph.loaders import Counted, Part
from graph.nodes import duration
from graph.objects import Failure, Node, choice, derived, stored_failure
from graph.paging import (
    After,
    Before,
    Connection,
    DateTimeFilter,
    First,
    IdFilter,
    IntFilter,
    Last,
    StringFilter,
    connection,
    part,
    where,
)
from graph.permissions import Info, caller, query
from graph.scalars import JSON, BigInt
from graph.task_items import (
    ItemWhere,
    TaskItem,
    TaskStatusFilter,
    task_item,
)

if TYPE_CHECKING:
    from graph.servers import Server
    from graph.versions import WorkflowVersion
    from graph.workflows import Workflow

filter_of = where


@strawberry.enum(description="What a batch does when a file fails.")
class OnItemError(Enum):
    """See ``flow.tasks.BatchSpec``."""

    CONTINUE = choice("continue", "The others go on; the task tells how many failed.")
    STOP = choice("stop", "Nothing new is begun, and the task is FAILED.")


@strawberry.type(description="Something that a batch left out, and how often.")
class TaskWarning:
    """One of the row's ``warnings``."""

    reason: str = field(description="Why, such as FOLDER_UNREADABLE.")
    count: int = field(description="How many files or folders.")


@strawberry.type(description="What a batch was asked to do.")
class Batch:
    """See ``flow.tasks.BatchSpec``."""

    target_folders: list[str] = field(description="The folders that hold the files.")
    folder_keywords: list[str] = field(description="Only folders below them with one of these in the name; empty: all.")
    file_patterns: list[str] = field(description="Only files of such names; empty: what the workflow's input takes.")
    recursive: bool = field(description="Whether folders in folders count.")
    output_root: str | None = field(description="Where outputs land, each at its input's relative path.")
    on_item_error: OnItemError = field(description="What it does when a file fails.")
    item_retries: int = field(description="How often a file is tried again that failed for a passing reason.")


@strawberry.type(description="One run of a task. A task keeps all of them.")
class TaskExecution(Node):
    """A row of ``task_executions``."""

    number: int = field(description="Which of the task's executions, from 1.")
    status: TaskStatus = field(description="Where it is in its life.")
    progress: float = field(description="How much is done, from 0 to 1.")
    message: str | None = field(description="What it does or did, in a sentence.")
    result: JSON | None = field(description="What came out.")
    error: Failure | None = field(description="Why it failed, if it did.")
    created_at: datetime = field(description="When it was asked for.")
    created_by: str | None = field(description="Who asked for it: a user's id.")
    updated_at: datetime = field(description="When it last changed.")
    started_at: datetime | None = field(description="When it began.")
    completed_at: datetime | None = field(description="When it ended, however it did.")
    duration: timedelta | None = field(description="From `startedAt` to `completedAt`.")
    task_id: strawberry.Private[str]
    server_id: strawberry.Private[str | None]

    @derived("The task that it is a run of.")
    async def task(self, info: Info) -> Annotated[Task, strawberry.lazy("graph.tasks")] | None:
        """By loader."""
        row = await info.context.load.task.load(self.task_id)
        return None if row is None else task(row, caller(info))

    @derived("The server that it was asked to run on; null for several, or for this engine, without a server.")
    async def server(self, info: Info) -> Annotated[Server, strawberry.lazy("graph.servers")] | None:
        """By loader."""
        from graph.servers import server

        row = await info.context.load.server.load(self.server_id) if self.server_id else None
        return None if row is None else server(row, caller(info))


def task_execution(row: keyset.Record, actor: Actor) -> TaskExecution:
    """The row as the schema shows it."""
    return TaskExecution(
        id=strawberry.ID(row.id),
        number=row.number,
        status=TaskStatus(row.status),
        progress=row.progress,
        message=row.message,
        result=row.result,
        error=stored_failure(row.error, actor),
        created_at=row.created_at,
        created_by=row.created_by,
        updated_at=row.updated_at,
        started_at=row.started_at,
        completed_at=row.completed_at,
        duration=duration(row.started_at, row.completed_at),
        task_id=row.task_id,
        server_id=row.server_id,
    )


@strawberry.type(description="Work in the background: a workflow over many files, one run of a workflow, or one node.")
class Task(Node):
    """A row of ``tasks``."""

    type: str = field(description="`batch`, `workflow`, or the node type that it runs, such as ai/image-analyze.")
    name: str = field(description="Its name.")
    description: str | None = field(description="What it is for.")
    status: TaskStatus = field(description="Where it is in its life.")
    priority: int = field(description="From 1 (low) to 10 (urgent).")
    timeout: timedelta | None = field(description="How long it may take before it is stopped.")
    progress: float = field(description="How much is done, from 0 to 1.")
    message: str | None = field(description="What it does, waits for or did, in a sentence.")
    result: JSON | None = field(description="What came out.")
    error: Failure | None = field(description="Why it failed, if it did.")
    input: JSON | None = field(description="What it was given, if it is one run.")
    parameters: JSON = field(description="What overlays the definition's or the node's parameters.")
    batch: Batch | None = field(description="What a batch was asked to do; null for one run.")
    total: int = field(description="How many files it has found so far; 1 for one run.")
    done: int = field(description="How many of them are completed.")
    failed: int = field(description="How many of them failed.")
    canceled: int = field(description="How many of them were stopped.")
    bytes_total: BigInt = field(description="How large the files are together that it has found so far.")
    bytes_done: BigInt = field(description="How large the completed ones are together.")
    expanded: bool = field(description="False while folders are still looked through: `total` grows.")
    warnings: list[TaskWarning] = field(description="What was left out while looking through folders.")
    rate: float | None = field(description="How many files end in a second, lately.")
    estimated_end: datetime | None = field(description="When it will be done, at that rate.")
    created_at: datetime = field(description="When it was made.")
    created_by: str | None = field(description="Who made it: a user's id.")
    updated_at: datetime = field(description="When it last changed.")
    started_at: datetime | None = field(description="When it began.")
    completed_at: datetime | None = field(description="When it ended, however it did.")
    cancel_requested_at: datetime | None = field(description="When somebody first asked to cancel it.")
    duration: timedelta | None = field(description="From `startedAt` to `completedAt`.")
    change_seq: BigInt = field(description="The place of its newest change in the project's order of changes.")
    viewer_can_update: bool = field(description="True when you may change it: it has not started.")
    viewer_can_cancel: bool = field(description="True when you may cancel it now.")
    viewer_can_execute: bool = field(description="True when you may run it now, or again.")
    viewer_can_retry: bool = field(description="True when there are failed files that you may run again now.")
    viewer_can_delete: bool = field(description="True when you may delete it now.")
    workflow_id: strawberry.Private[str | None]
    version_id: strawberry.Private[str | None]
    execution_id: strawberry.Private[str | None]
    server_ids: strawberry.Private[tuple[str, ...]]

    @derived("The workflow that it runs (a single node has a hidden one of its own); null once it is gone for good.")
    async def workflow(self, info: Info) -> Annotated[Workflow, strawberry.lazy("graph.workflows")] | None:
        """By loader."""
        from graph.workflows import workflow

        row = await info.context.load.workflow.load(self.workflow_id) if self.workflow_id else None
        return None if row is None else workflow(row, caller(info))

    @derived("The version that it is pinned to; null as `workflow` is.")
    async def version(self, info: Info) -> Annotated[WorkflowVersion, strawberry.lazy("graph.versions")] | None:
        """By loader."""
        from graph.versions import version

        row = await info.context.load.version.load(self.version_id) if self.version_id else None
        return None if row is None else version(row)

    @derived("The servers that share the work; empty: this engine, without a server. Deleted ones are left out.")
    async def servers(self, info: Info) -> list[Annotated[Server, strawberry.lazy("graph.servers")]]:
        """By loader."""
        from graph.servers import server

        rows = await info.context.load.server.load_many(self.server_ids)
        return [server(row, caller(info)) for row in rows if row is not None]

    @derived("Its newest run; null before the first.")
    async def execution(self, info: Info) -> TaskExecution | None:
        """By loader."""
        row = await info.context.load.execution.load(self.execution_id) if self.execution_id else None
        return None if row is None else task_execution(row, caller(info))

    @derived("Its runs, the newest first.")
    async def executions(
        self, info: Info, first: First = None, after: After = None, last: Last = None, before: Before = None
    ) -> Connection[TaskExecution]:
        """By loader: one statement for a whole page of tasks."""
        asked = part(store.EXECUTIONS, "NUMBER", True, first, after, last, before)
        load, actor = info.context.load, caller(info)
        page = await load.executions_of.load(Part(self.id, keyset.EVERY, asked))
        return connection(
            store.EXECUTIONS,
            asked,
            page,
            lambda row: task_execution(row, actor),
            lambda: load.execution_count.load(Counted(self.id, keyset.EVERY)),
        )

    @derived("Its files (or its one run), in the order in which they were found.")
    async def items(
        self,
        info: Info,
        where: Annotated[ItemWhere | None, argument(name="where", description="Only those that match.")] = None,
        first: First = None,
        after: After = None,
        last: Last = None,
        before: Before = None,
    ) -> Connection[TaskItem]:
        """By loader: one statement for a whole page of tasks."""
        asked = part(store.ITEMS, "PLACE", False, first, after, last, before)
        wanted = filter_of(where)
        load, actor = info.context.load, caller(info)
        page = await load.items_of.load(Part(self.id, wanted, asked))
        return connection(
            store.ITEMS,
            asked,
            page,
            lambda row: task_item(row, actor),
            lambda: load.item_count.load(Counted(self.id, wanted)),
        )


def task(row: keyset.Record, actor: Actor) -> Task:
    """The row as the schema shows it."""
    status = TaskStatus(row.status)
    may_run = actor.may(Permission.TASK_RUN)
    spec: Mapping[str, Any] = row.spec
    batch = row.type == BATCH
    servers = spec.get("servers") or () if batch else [spec["server"]] if spec.get("server") else ()
    return Task(
        id=strawberry.ID(row.id),
        type=row.type,
        name=row.name,
        description=row.description,
        status=status,
        priority=row.priority,
        timeout=None if row.timeout_s is None else timedelta(seconds=row.timeout_s),
        progress=row.progress,
        message=row.message,
        result=row.result,
        error=stored_failure(row.error, actor),
        input=spec.get("input"),
        parameters=cast(JSON, spec.get("parameters") or {}),
        batch=_batch(spec) if batch else None,
        total=row.total,
        done=row.done,
        failed=row.failed,
        canceled=row.canceled,
        bytes_total=row.bytes_total,
        bytes_done=row.bytes_done,
        expanded=row.expanded,
        warnings=warnings(row.warnings),
        rate=row.rate,
        estimated_end=None if status.terminal else row.eta_at,
        created_at=row.created_at,
        created_by=row.created_by,
        updated_at=row.updated_at,
        started_at=row.started_at,
        completed_at=row.completed_at,
        cancel_requested_at=row.cancel_requested_at,
        duration=duration(row.started_at, row.completed_at),
        change_seq=row.change_seq,
        viewer_can_update=may_run and status is TaskStatus.PENDING and row.started_at is None,
        viewer_can_cancel=may_run and not status.terminal,
        viewer_can_execute=may_run and (status.terminal or row.execution_id is None),
        viewer_can_retry=may_run and status.terminal and row.failed > 0,
        viewer_can_delete=may_run and status.terminal,
        workflow_id=row.workflow_id,
        version_id=row.version_id,
        execution_id=row.execution_id,
        server_ids=tuple(servers),
    )


def _batch(spec: Mapping[str, Any]) -> Batch:
    return Batch(
        target_folders=list(spec["target_folders"]),
        folder_keywords=list(spec.get("folder_keywords") or ()),
        file_patterns=list(spec.get("file_patterns") or ()),
        recursive=spec.get("recursive", True),
        output_root=spec.get("output_root"),
        on_item_error=OnItemError(spec.get("on_item_error", "continue")),
        item_retries=spec.get("item_retries", 2),
    )


def warnings(found: Mapping[str, int] | None) -> list[TaskWarning]:
    """By reason, in the order of the alphabet."""
    return [TaskWarning(reason=reason, count=count) for reason, count in sorted((found or {}).items())]


# ---- lists ----------------------------------------------------------------------------------------------------


@strawberry.input(description="Which tasks. Everything that is given must hold.")
class TaskWhere:
    """See ``db.store.tasks.TASKS``."""

    id: IdFilter | None = field(default=None, description="By id.")
    type: StringFilter | None = field(default=None, description="By type: `batch`, `workflow`, or a node type.")
    name: StringFilter | None = field(default=None, description="By name.")
    status: TaskStatusFilter | None = field(default=None, description="By status.")
    priority: IntFilter | None = field(default=None, description="By priority.")
    workflow: IdFilter | None = field(default=None, description="By their workflow's id.")
    created_at: DateTimeFilter | None = field(default=None, description="By when they were made.")
    updated_at: DateTimeFilter | None = field(default=None, description="By when they last changed.")
    started_at: DateTimeFilter | None = field(default=None, description="By when they began.")
    completed_at: DateTimeFilter | None = field(default=None, description="By when they ended.")
    created_by: IdFilter | None = field(default=None, description="By who made them.")
    and_: list[TaskWhere] | None = field(default=None, name="and", description="All of these hold.")
    or_: list[TaskWhere] | None = field(default=None, name="or", description="At least one of these holds.")
    not_: TaskWhere | None = field(default=None, name="not", description="This does not hold.")


@strawberry.enum(description="The order of a list of tasks.")
class TaskOrder(Enum):
    """Order and direction."""

    CREATED_DESC = choice("CREATED_DESC", "The newest first.")
    CREATED_ASC = choice("CREATED_ASC", "The oldest first.")
    CHANGED_DESC = choice("CHANGED_DESC", "The one that changed last first.")
    CHANGED_ASC = choice("CHANGED_ASC", "The one that has not changed for longest first.")
    PRIORITY_DESC = choice("PRIORITY_DESC", "The most urgent first, among equals the newest.")
    PRIORITY_ASC = choice("PRIORITY_ASC", "The least urgent first, among equals the oldest.")


@strawberry.type
class TaskQuery:
    """Tasks by id and as lists."""

    @query(Permission.TASK_READ, "One task; null if your project has none of that id.")
    async def task(
        self, info: Info, id: Annotated[strawberry.ID, argument(description="The task's id.")]
    ) -> Task | None:
        """By loader."""
        row = await info.context.load.task.load(id)
        return None if row is None else task(row, caller(info))

    @query(Permission.TASK_READ, "The tasks of your project, the newest first unless you say otherwise.")
    async def tasks(
        self,
        info: Info,
        where: Annotated[TaskWhere | None, argument(name="where", description="Only those that match.")] = None,
        order_by: Annotated[TaskOrder, argument(description="In which order.")] = TaskOrder.CREATED_DESC,
        first: First = None,
        after: After = None,
        last: Last = None,
        before: Before = None,
    ) -> Connection[Task]:
        """One page."""
        order, _, direction = order_by.value.partition("_")
        asked = part(store.TASKS, order, direction == "DESC", first, after, last, before)
        wanted = filter_of(where)
        actor, db = caller(info), info.context.engine.database
        page = await db.read(keyset.page, store.TASKS, actor.project_id, wanted, asked)
        return connection(
            store.TASKS,
            asked,
            page,
            lambda row: task(row, actor),
            lambda: db.read(keyset.count, store.TASKS, actor.project_id, wanted),
        )

    @query(Permission.TASK_READ, "One run of a task; null if your project has none of that id.")
    async def task_execution(
        self, info: Info, id: Annotated[strawberry.ID, argument(description="The execution's id.")]
    ) -> TaskExecution | None:
        """By loader."""
        row = await info.context.load.execution.load(id)
        return None if row is None else task_execution(row, caller(info))
