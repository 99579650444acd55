"""What can be done with tasks: make one, change, run, cancel, retry and delete it, and report on its runs."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, cast

import msgspec
import strawberry
from strawberry import UNSET, argument, field

from engine.access import Permission
from flow import errors
from flow.tasks import BATCH, WORKFLOW, RunSpec, TaskStatus
from graph.batches import BatchInput, batch_spec, execution_of, parameters_of, reread, which
from graph.permissions import SIGNED_IN, Info, caller, mutation
from graph.results import (
    Conflict,
    NotFound,
    PermissionDenied,
    ServerUnavailable,
    ValidationFailed,
)
from graph.scalars import JSON, BigInt
from graph.starting import WorkflowRef
from graph.tasks import Task, TaskExecution

# ---- inputs ---------------------------------------------------------------------------------------------------


@strawberry.input(description="A task of any type. A batch says all of it in `batch`.")
class TaskCreateInput:
    """See ``flow.tasks``."""

    type: str = field(description="`workflow`, `batch`, or the node type to run, such as ai/image-analyze.")
    workflow: WorkflowRef | None = field(default=None, description="With the type `workflow`: which one.")
    batch: BatchInput | None = field(default=None, description="With the type `batch`: all about it.")
    input: JSON | None = field(default=None, description="What the run gets.")
    parameters: JSON | None = field(
        default=None, description="An object: the node's parameters, or what overlays the definition's."
    )
    server: str | None = field(
        default=None, description="The server that runs it: id or name; null: the project's own server `local`."
    )
    retries: int | None = field(
        default=None, description="How often it is tried again if it fails for a passing reason; 0 if left out."
    )
    priority: int | None = field(default=None, description="From 1 (low) to 10 (urgent); 5 if left out.")
    timeout: timedelta | None = field(default=None, description="How long it may take before it is stopped.")
    name: str | None = field(default=None, description="Its name; that of what it runs if left out.")
    description: str | None = field(default=None, description="What it is for.")
    start: bool = field(default=True, description="False: leave it PENDING until `taskExecute`.")


@strawberry.input(description="A change of a task that has not started. What is left out stays.")
class TaskUpdateInput:
    """See ``engine.tasks``."""

    id: strawberry.ID = field(description="The task's id.")
    name: str | None = field(default=UNSET, description="Its name.")
    description: str | None = field(default=UNSET, description="What it is for; null takes the description away.")
    parameters: JSON | None = field(default=UNSET, description="An object: all the parameters; null: none.")
    priority: int | None = field(default=UNSET, description="From 1 (low) to 10 (urgent).")


@strawberry.input(description="Which task to delete.")
class TaskDeleteInput:
    """By id."""

    id: strawberry.ID = field(description="The task's id.")


@strawberry.input(description="Which task to cancel.")
class TaskCancelInput:
    """By id."""

    id: strawberry.ID = field(description="The task's id.")
    reason: str | None = field(default=None, description="Why, for whoever looks at it later.")


@strawberry.input(description="Which task to run, and where.")
class TaskExecuteInput:
    """See ``engine.tasks``."""

    id: strawberry.ID = field(description="The task's id.")
    server: str | None = field(
        default=None, description="The server that runs it: id or name; null: as the task was made."
    )


@strawberry.input(description="What the runner of an execution reports.")
class TaskExecutionStatusSetInput:
    """See ``engine.tasks``."""

    id: strawberry.ID = field(description="The execution's id.")
    token: str = field(description="The token that came with the execution; an end uses it up.")
    status: TaskStatus = field(description="How the execution is now.")
    progress: float | None = field(default=None, description="How much is done, from 0 to 1.")
    message: str | None = field(default=None, description="What it does or did, in a sentence.")
    result: JSON | None = field(default=None, description="What came out.")
    error: str | None = field(default=None, description="Why it failed.")


@strawberry.input(description="Which files of a finished task run again.")
class TaskItemsRetryInput:
    """See ``engine.tasks``."""

    task: strawberry.ID = field(description="The task's id.")
    items: list[strawberry.ID] | None = field(default=None, description="Only these; all that failed if left out.")
    canceled: bool = field(default=False, description="Without `items`: True runs those that were stopped again too.")


# ---- payloads -------------------------------------------------------------------------------------------------


@strawberry.type
class TaskPayload:
    """What every step of a task's life answers; the schema has its children only."""

    task: Task = field(description="The task after it.")
    change_seq: BigInt = field(description="Your stream has caught up when it is here.")


@strawberry.type
class RunPayload(TaskPayload):
    """What answers when a task begins to run."""

    execution: TaskExecution | None = field(description="The run; null if it was not started.")
    execution_token: str | None = field(
        description="Lets a runner report on that run by `taskExecutionStatusSet`. It is shown only here."
    )


@strawberry.type(description="The task was made.")
class TaskCreatePayload(RunPayload):
    """The task and its run."""


@strawberry.type(description="The task runs.")
class TaskExecutePayload(RunPayload):
    """The task and its run."""


@strawberry.type(description="The task was changed.")
class TaskUpdatePayload(TaskPayload):
    """The task."""


@strawberry.type(description="The request is recorded. The task is CANCELED when its running files have stopped.")
class TaskCancelPayload(TaskPayload):
    """The task."""


@strawberry.type(description="The task, its runs and its ledger are gone. What it wrote stays.")
class TaskDeletePayload:
    """Its id, for it is gone."""

    id: strawberry.ID = field(description="The task's id.")
    change_seq: BigInt = field(description="Your stream has caught up when it is here.")


@strawberry.type(description="The report is stored.")
class TaskExecutionStatusSetPayload:
    """The run."""

    execution: TaskExecution = field(description="The run after it.")
    change_seq: BigInt = field(description="Your stream has caught up when it is here.")


@strawberry.type(description="The files run again.")
class TaskItemsRetryPayload(TaskPayload):
    """The task and how many."""

    items: int = field(description="How many files run again.")
    execution: TaskExecution | None = field(description="The run that does it.")


# ---- results --------------------------------------------------------------------------------------------------

TaskCreateResult = Annotated[
    TaskCreatePayload | ValidationFailed | NotFound | Conflict | ServerUnavailable | PermissionDenied,
    strawberry.union("TaskCreateResult", description="A task, or why there is none."),
]
TaskUpdateResult = Annotated[
    TaskUpdatePayload | ValidationFailed | NotFound | Conflict | PermissionDenied,
    strawberry.union("TaskUpdateResult", description="The changed task, or why it is not changed."),
]
TaskDeleteResult = Annotated[
    TaskDeletePayload | NotFound | Conflict | PermissionDenied,
    strawberry.union("TaskDeleteResult", description="The task is gone, or why it is not."),
]
TaskCancelResult = Annotated[
    TaskCancelPayload | ValidationFailed | NotFound | Conflict | PermissionDenied,
    strawberry.union("TaskCancelResult", description="The task, which stops, or why it does not."),
]
TaskExecuteResult = Annotated[
    TaskExecutePayload | ValidationFailed | NotFound | Conflict | ServerUnavailable | PermissionDenied,
    strawberry.union("TaskExecuteResult", description="The running task, or why it does not run."),
]
TaskExecutionStatusSetResult = Annotated[
    TaskExecutionStatusSetPayload | ValidationFailed | NotFound | Conflict | PermissionDenied,
    strawberry.union("TaskExecutionStatusSetResult", description="The run, or why the report is not taken."),
]
TaskItemsRetryResult = Annotated[
    TaskItemsRetryPayload | ValidationFailed | NotFound | Conflict | ServerUnavailable | PermissionDenied,
    strawberry.union("TaskItemsRetryResult", description="How many files run again, or why none does."),
]


@strawberry.type
class TaskMutation:
    """The life of a task."""

    @mutation(Permission.TASK_RUN, "Make a task: a batch, one run of a workflow, or one node.")
    async def task_create(
        self, info: Info, input: Annotated[TaskCreateInput, argument(description="What it does.")]
    ) -> TaskCreateResult:
        """Checked and stored, and begun unless it is to wait."""
        spec = await batch_spec(info, _the_batch(input)) if input.type == BATCH else await _run_spec(info, input)
        started = await info.context.engine.tasks.create(caller(info), spec, start=input.start)
        return TaskCreatePayload(
            task=await reread(info, started.task_id),
            execution=await execution_of(info, started.execution_id),
            execution_token=started.token,
            change_seq=BigInt(started.change_seq),
        )

    @mutation(Permission.TASK_RUN, "Change a task that has not started.")
    async def task_update(
        self, info: Info, input: Annotated[TaskUpdateInput, argument(description="What is different.")]
    ) -> TaskUpdateResult:
        """Only what is given."""
        for name in ("name", "priority"):
            if getattr(input, name) is None:
                message = f"`{name}` can't be null; leave it out to keep it."
                raise errors.Invalid([errors.Problem(f"/{name}", "WRONG_TYPE", message)], path=("input", name))
        seq = await info.context.engine.tasks.update(
            caller(info),
            input.id,
            name=msgspec.UNSET if input.name is UNSET else cast(str, input.name),
            description=msgspec.UNSET if input.description is UNSET else input.description,
            parameters=msgspec.UNSET if input.parameters is UNSET else parameters_of(input.parameters),
            priority=msgspec.UNSET if input.priority is UNSET else cast(int, input.priority),
        )
        return TaskUpdatePayload(task=await reread(info, input.id), change_seq=BigInt(seq))

    @mutation(Permission.TASK_RUN, "Delete a finished task with its ledger. What it wrote stays.")
    async def task_delete(
        self, info: Info, input: Annotated[TaskDeleteInput, argument(description="Which one.")]
    ) -> TaskDeleteResult:
        """Only a finished one."""
        seq = await info.context.engine.tasks.delete(caller(info), input.id)
        return TaskDeletePayload(id=input.id, change_seq=BigInt(seq))

    @mutation(
        Permission.TASK_RUN,
        "Cancel a task: nothing new is begun, what runs is stopped, what is done stays. Twice is once.",
    )
    async def task_cancel(
        self, info: Info, input: Annotated[TaskCancelInput, argument(description="Which one, and why.")]
    ) -> TaskCancelResult:
        """Asks its holder to stop."""
        seq = await info.context.engine.tasks.cancel(caller(info), input.id, input.reason)
        return TaskCancelPayload(task=await reread(info, input.id), change_seq=BigInt(seq))

    @mutation(
        Permission.TASK_RUN,
        "Run a task that exists: for the first time, or again. Of a batch, only files that are not completed.",
    )
    async def task_execute(
        self, info: Info, input: Annotated[TaskExecuteInput, argument(description="Which one, and where.")]
    ) -> TaskExecuteResult:
        """A new execution."""
        started = await info.context.engine.tasks.execute(caller(info), input.id, input.server)
        return TaskExecutePayload(
            task=await reread(info, started.task_id),
            execution=await execution_of(info, started.execution_id),
            execution_token=started.token,
            change_seq=BigInt(started.change_seq),
        )

    @mutation(
        SIGNED_IN,
        "For runners: report how an execution stands. The one-time token that came with it is what allows this.",
    )
    async def task_execution_status_set(
        self, info: Info, input: Annotated[TaskExecutionStatusSetInput, argument(description="The report.")]
    ) -> TaskExecutionStatusSetResult:
        """By the execution's own token."""
        seq = await info.context.engine.tasks.execution_status_set(
            caller(info),
            input.id,
            input.token,
            input.status,
            progress=input.progress,
            message=input.message,
            result=input.result,
            error=input.error,
        )
        info.context.refresh()
        execution = await execution_of(info, input.id)
        if execution is None:
            raise errors.NotFound("task execution", input.id)
        return TaskExecutionStatusSetPayload(execution=execution, change_seq=BigInt(seq))

    @mutation(Permission.TASK_RUN, "Run the files of a finished task again that failed; the others stay as they are.")
    async def task_items_retry(
        self, info: Info, input: Annotated[TaskItemsRetryInput, argument(description="Which files.")]
    ) -> TaskItemsRetryResult:
        """A new execution of some items."""
        retried = await info.context.engine.tasks.items_retry(
            caller(info), input.task, failed=not input.canceled, items=input.items
        )
        return TaskItemsRetryPayload(
            task=await reread(info, input.task),
            items=retried.items,
            execution=await execution_of(info, retried.execution_id),
            change_seq=BigInt(retried.change_seq),
        )


def _the_batch(given: TaskCreateInput) -> BatchInput:
    """What a batch is to do. Raises Invalid where it is missing, or said beside `batch`."""
    problems = []
    if given.batch is None:
        problems.append(errors.Problem("/batch", "MISSING_KEY", "A task of the type `batch` needs `batch`."))
    beside = ("workflow", "input", "parameters", "server", "retries", "priority", "timeout", "name", "description")
    for name in beside:
        if getattr(given, name) is not None:
            message = f"Of a batch, this is said inside of `batch`, not in `{name}`."
            problems.append(errors.Problem(f"/{name}", "UNKNOWN_KEY", message))
    if given.batch is None or problems:
        raise errors.Invalid(problems, path=("input",))
    return given.batch


async def _run_spec(info: Info, given: TaskCreateInput) -> RunSpec:
    """One run. Raises Invalid where `type` and the rest don't fit, NotFound for a version."""
    problems = []
    if given.batch is not None:
        problems.append(errors.Problem("/batch", "UNKNOWN_KEY", "`batch` is for the type `batch`."))
    if given.type == WORKFLOW and given.workflow is None:
        problems.append(errors.Problem("/workflow", "MISSING_KEY", "A task of the type `workflow` needs `workflow`."))
    if given.type != WORKFLOW and given.workflow is not None:
        problems.append(errors.Problem("/workflow", "UNKNOWN_KEY", "`workflow` is for the type `workflow`."))
    if problems:
        raise errors.Invalid(problems, path=("input",))
    workflow_id, workflow_name, version_id = (
        (None, None, None) if given.workflow is None else await which(info, given.workflow)
    )
    return RunSpec(
        type=given.type,
        workflow_id=workflow_id,
        workflow_name=workflow_name,
        version_id=version_id,
        input=given.input,
        parameters=parameters_of(given.parameters),
        server=given.server,
        retries=0 if given.retries is None else given.retries,
        priority=5 if given.priority is None else given.priority,
        timeout=given.timeout,
        name=given.name,
        description=given.description,
    )
