"""Batches: a workflow over the files of folders. What one is asked to do, whether a server could take it, its start."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import strawberry
from strawberry import UNSET, argument, field

from db.store import lists
from engine.access import Permission
from engine.tasks import Plan, Unavailable
from flow import errors
from flow.servers import ServerStatus
from flow.tasks import BatchSpec
from graph.objects import derived
from graph.permissions import Info, caller, mutation, query
from graph.results import (
    Conflict,
    NotFound,
    PermissionDenied,
    ServerUnavailable,
    ValidationFailed,
)
from graph.scalars import JSON, BigInt
from graph.starting import WorkflowRef
from graph.tasks import OnItemError, Task, TaskExecution, TaskWarning, task, task_execution, warnings

if TYPE_CHECKING:
    from graph.servers import Server

#: A dry run is told of so many files.
FIRST_FILES = 100


@strawberry.input(description="A workflow over the files of folders.")
class BatchInput:
    """See ``flow.tasks.BatchSpec``."""

    workflow: WorkflowRef = field(description="Which workflow takes each file.")
    target_folders: list[str] = field(
        description="The folders that hold the files: absolute, or relative to the first of the allowed roots."
    )
    folder_keywords: list[str] | None = field(
        default=None,
        description="Only folders below them whose name contains one of these, in capitals or not; none: all, and the "
        "target folders themselves.",
    )
    file_patterns: list[str] | None = field(
        default=None, description="Only files of such names, like *.jpg; none: what the workflow's input takes."
    )
    recursive: bool = field(default=True, description="Whether folders in folders count.")
    selected_server: str | None = field(default=None, description="The one server that does it all: its id or name.")
    servers: list[str] | None = field(
        default=None,
        description="Several servers that share the work: ids or names. Neither this nor `selectedServer`: the "
        "project's own server `local`, which is this engine.",
    )
    output_root: str | None = field(
        default=None,
        description="Where outputs land, each at its input's relative path. Not inside a target folder.",
    )
    parameters: JSON | None = field(
        default=None,
        description="An object that overlays the definition's parameters and fills the inputs of the same names.",
    )
    on_item_error: OnItemError = field(default=OnItemError.CONTINUE, description="What to do when a file fails.")
    item_retries: int = field(
        default=2, description="How often a file is tried again that failed for a passing reason."
    )
    priority: int = field(default=5, description="From 1 (low) to 10 (urgent).")
    timeout: timedelta | None = field(default=None, description="How long all of it may take.")
    name: str | None = field(default=None, description="The task's name; its workflow's if left out.")
    description: str | None = field(default=None, description="What the task is for.")


@strawberry.input(description="A workflow over the files of folders, to be started.")
class BatchStartInput(BatchInput):
    """A batch, and whether it is only to be looked at."""

    dry_run: bool = field(
        default=False, description="True: store nothing, and say in `plan` what would be done and on which servers."
    )


@strawberry.type(description="A file that a batch would take.")
class PlannedFile:
    """See ``engine.tasks.PlannedFile``."""

    path: str = field(description="The file.")
    relative: str = field(description="Its path below the target folder.")
    size: BigInt = field(description="Its size in bytes.")
    refusal: str | None = field(description="Why it would fail at once, if it would.")


@strawberry.type(description="What a batch would do.")
class BatchPlan:
    """See ``engine.tasks.Plan``."""

    files: int = field(description="How many files it would take.")
    bytes: BigInt = field(description="How large they are together.")
    more: bool = field(
        description="True: there are so many that counting was given up; the numbers are at least these."
    )
    first: list[PlannedFile] = field(description=f"The first of them, {FIRST_FILES} at most.")
    warnings: list[TaskWarning] = field(description="What would be left out.")
    server_ids: strawberry.Private[tuple[str, ...]]

    @derived("The servers that would share the work; empty: this engine, without a server.")
    async def servers(self, info: Info) -> list[Annotated[Server, strawberry.lazy("graph.servers")]]:
        """By loader."""
        from graph.servers import server

        rows = await info.context.load.server.load_many(self.server_ids)
        return [server(row, caller(info)) for row in rows if row is not None]


@strawberry.type(description="Whether a batch could start now.")
class ServerCheck:
    """See ``engine.tasks.ServerCheck``."""

    available: bool = field(description="True: it could.")
    server_name: str | None = field(
        description="The server that would take it, or can't; null: this engine, without a server."
    )
    batch_size: int = field(description="How many files it takes at once.")
    message: str = field(description="The same in a sentence.")
    reason: Unavailable | None = field(description="Why not; null if it could.")
    status: ServerStatus | None = field(description="How the server is, if it is NOT_ONLINE.")
    server_id: strawberry.Private[str | None]
    task_id: strawberry.Private[str | None]

    @derived("The server; null: this engine, without a server.")
    async def server(self, info: Info) -> Annotated[Server, strawberry.lazy("graph.servers")] | None:
        """By loader."""
        from graph.servers import server

        row = await info.context.load.server.load(self.server_id) if self.server_id else None
        return None if row is None else server(row, caller(info))

    @derived("A task that it works on, if it is BUSY.")
    async def task(self, info: Info) -> Task | None:
        """By loader."""
        row = await info.context.load.task.load(self.task_id) if self.task_id else None
        return None if row is None else task(row, caller(info))


@strawberry.type(description="The batch was started, or (`dryRun`) only looked at.")
class BatchStartPayload:
    """What was started, or would be done."""

    task: Task | None = field(description="The task; null if it was only looked at.")
    execution: TaskExecution | None = field(description="Its first run.")
    execution_token: str | None = field(
        description="Lets a runner report on that run by `taskExecutionStatusSet`. It is shown only here."
    )
    plan: BatchPlan | None = field(description="What would be done; null if it was started.")
    change_seq: BigInt = field(description="Your stream has caught up when it is here.")


BatchStartResult = Annotated[
    BatchStartPayload | ValidationFailed | NotFound | Conflict | ServerUnavailable | PermissionDenied,
    strawberry.union("BatchStartResult", description="A batch, or why there is none."),
]


@strawberry.type
class BatchQuery:
    """Whether a batch could start."""

    @query(Permission.TASK_READ, "Whether a batch could start now on the server that it names, and if not, why.")
    async def server_check(
        self, info: Info, input: Annotated[BatchInput, argument(description="The batch, as `batchStart` takes it.")]
    ) -> ServerCheck:
        """Asks the ledger, not the server."""
        found = await info.context.engine.tasks.check(caller(info), await batch_spec(info, input))
        return ServerCheck(
            available=found.available,
            server_name=found.server_name,
            batch_size=found.batch_size,
            message=found.message,
            reason=found.reason,
            status=ServerStatus(found.status) if found.status else None,
            server_id=found.server_id,
            task_id=found.task_id,
        )


@strawberry.type
class BatchMutation:
    """Starting batches."""

    @mutation(
        Permission.TASK_RUN,
        "Run a workflow over the files of folders, on one or several servers. Each file is done once, whatever dies "
        "meanwhile.",
    )
    async def batch_start(
        self, info: Info, input: Annotated[BatchStartInput, argument(description="Which workflow, over which files.")]
    ) -> BatchStartResult:
        """Stores it; its folders are looked through afterwards."""
        actor, tasks = caller(info), info.context.engine.tasks
        spec = await batch_spec(info, input)
        if input.dry_run:
            plan = await tasks.batch_plan(actor, spec, first=FIRST_FILES)
            seq = await info.context.engine.database.read(lists.latest_change, actor.project_id)
            return BatchStartPayload(
                task=None, execution=None, execution_token=None, plan=_plan(plan), change_seq=BigInt(seq)
            )
        started = await tasks.batch_start(actor, spec)
        return BatchStartPayload(
            task=await reread(info, started.task_id),
            execution=await execution_of(info, started.execution_id),
            execution_token=started.token,
            plan=None,
            change_seq=BigInt(started.change_seq),
        )


async def batch_spec(info: Info, given: BatchInput) -> BatchSpec:
    """What is asked for, as the engine takes it. Raises Invalid, NotFound for a version."""
    workflow_id, workflow_name, version_id = await which(info, given.workflow)
    if given.selected_server is not None and given.servers is not None:
        message = "Give `selectedServer` or `servers`, not both."
        raise errors.Invalid([errors.Problem("/servers", "NOT_BOTH", message)], path=("input", "servers"))
    return BatchSpec(
        workflow_id=workflow_id,
        workflow_name=workflow_name,
        version_id=version_id,
        target_folders=tuple(given.target_folders),
        folder_keywords=tuple(given.folder_keywords or ()),
        file_patterns=tuple(given.file_patterns or ()),
        recursive=given.recursive,
        servers=tuple(given.servers or ()) if given.selected_server is None else (given.selected_server,),
        output_root=given.output_root,
        parameters=parameters_of(given.parameters),
        on_item_error=cast(Literal["continue", "stop"], given.on_item_error.value),
        item_retries=given.item_retries,
        priority=given.priority,
        timeout=given.timeout,
        name=given.name,
        description=given.description,
    )


async def which(info: Info, ref: WorkflowRef) -> tuple[str | None, str | None, str | None]:
    """The workflow's id, its name, its version's id: those that are known. Raises NotFound for the version."""
    version_id = ref.version if ref.version is not UNSET else None
    if version_id is None:
        return (
            ref.id if ref.id is not UNSET else None,
            ref.name if ref.name is not UNSET else None,
            None,
        )
    version = await info.context.load.version.load(version_id)
    if version is None:
        raise errors.NotFound("workflow version", version_id, path=("input", "workflow", "version"))
    return version.workflow_id, None, version_id


def parameters_of(given: JSON | None) -> dict[str, Any]:
    """The object that parameters are. Raises Invalid if they are none."""
    if given is None:
        return {}
    if not isinstance(given, dict):
        message = "`parameters` is an object: names and their values."
        raise errors.Invalid([errors.Problem("/parameters", "WRONG_TYPE", message)], path=("input", "parameters"))
    return given


def _plan(plan: Plan) -> BatchPlan:
    return BatchPlan(
        files=plan.files,
        bytes=BigInt(plan.bytes),
        more=plan.more,
        first=[
            PlannedFile(path=file.path, relative=file.relative, size=BigInt(file.size), refusal=file.refusal)
            for file in plan.first
        ],
        warnings=warnings(plan.warnings),
        server_ids=plan.servers,
    )


async def reread(info: Info, id: str) -> Task:
    """The task as it is now."""
    info.context.refresh()
    row = await info.context.load.task.load(id)
    if row is None:
        raise errors.NotFound("task", id)
    return task(row, caller(info))


async def execution_of(info: Info, id: str | None) -> TaskExecution | None:
    """The execution as it is now."""
    row = await info.context.load.execution.load(id) if id is not None else None
    return None if row is None else task_execution(row, caller(info))
