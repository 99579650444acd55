"""How many runs may be under way at once: of one workflow, or of the whole project."""

from __future__ import annotations

from typing import Annotated

import strawberry
from strawberry import argument, field

from db.store import lists
from engine.access import Permission
from flow import errors
from graph.permissions import Info, caller, mutation
from graph.results import NotFound, PermissionDenied, ValidationFailed
from graph.scalars import BigInt
from graph.workflows import Workflow, workflow


@strawberry.input(description="How many runs of a workflow may be under way at once.")
class WorkflowLimitSetInput:
    """See ``engine.controls``."""

    id: strawberry.ID = field(description="The workflow's id.")
    max_running: int | None = field(description="So many at most; null: any number.")


@strawberry.input(description="How many runs of your project may be under way at once.")
class ProjectLimitSetInput:
    """See ``engine.controls``."""

    max_running: int | None = field(description="So many at most; null: any number.")


@strawberry.type(description="The limit holds from now on. Runs under way go on, others wait for their turn.")
class WorkflowLimitSetPayload:
    """What is limited."""

    workflow: Workflow = field(description="The workflow.")
    change_seq: BigInt = field(description="Your stream has caught up when it is here.")


@strawberry.type(description="The limit holds from now on. Runs under way go on, others wait for their turn.")
class ProjectLimitSetPayload:
    """What is limited."""

    max_running: int | None = field(description="So many at most; null: any number.")
    change_seq: BigInt = field(description="Your stream has caught up when it is here.")


WorkflowLimitSetResult = Annotated[
    WorkflowLimitSetPayload | ValidationFailed | NotFound | PermissionDenied,
    strawberry.union("WorkflowLimitSetResult", description="A limited workflow, or why it is not."),
]
ProjectLimitSetResult = Annotated[
    ProjectLimitSetPayload | ValidationFailed | PermissionDenied,
    strawberry.union("ProjectLimitSetResult", description="A limited project, or why it is not."),
]


@strawberry.type
class LimitMutation:
    """Limits."""

    @mutation(
        Permission.WORKFLOW_WRITE,
        "Limit how many runs of a workflow are under way at once; runs beyond wait for their turn, fairly between "
        "concurrency keys, by priority and age.",
    )
    async def workflow_limit_set(
        self, info: Info, input: Annotated[WorkflowLimitSetInput, argument(description="The limit.")]
    ) -> WorkflowLimitSetResult:
        """Lets in whoever may begin now."""
        await info.context.engine.instances.limit(caller(info), input.max_running, input.id)
        seq = await _reached(info)
        row = await info.context.load.workflow.load(input.id)
        if row is None:
            raise errors.NotFound("workflow", input.id, path=("input", "id"))
        return WorkflowLimitSetPayload(workflow=workflow(row, caller(info)), change_seq=seq)

    @mutation(
        Permission.WORKFLOW_WRITE,
        "Limit how many runs of your project are under way at once; runs beyond wait for their turn.",
    )
    async def project_limit_set(
        self, info: Info, input: Annotated[ProjectLimitSetInput, argument(description="The limit.")]
    ) -> ProjectLimitSetResult:
        """Lets in whoever may begin now."""
        await info.context.engine.instances.limit(caller(info), input.max_running)
        return ProjectLimitSetPayload(max_running=input.max_running, change_seq=await _reached(info))


async def _reached(info: Info) -> BigInt:
    info.context.refresh()
    return BigInt(await info.context.engine.database.read(lists.latest_change, caller(info).project_id))
