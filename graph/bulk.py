"""What is done with many runs at once: a row of result for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import strawberry
from strawberry import argument, field

from db.store import lists
from engine.access import Permission
from graph.instances import Instance, InstanceWhere, instance
from graph.objects import derived
from graph.paging import where
from graph.permissions import Info, caller, mutation
from graph.results import PermissionDenied, UserError, ValidationFailed, refusal_as_result
from graph.scalars import BigInt

if TYPE_CHECKING:
    from engine.controls import Bulk


@strawberry.input(description="Which instances to cancel.")
class InstancesCancelInput:
    """See ``engine.controls``."""

    where: InstanceWhere = field(description="Those that match, the oldest 10,000 at most.")
    reason: str | None = field(default=None, description="Why, for whoever looks at their history.")


@strawberry.input(description="Which failed instances go on.")
class InstancesRetryInput:
    """See ``engine.controls``."""

    where: InstanceWhere = field(description="Those that match, the oldest 10,000 at most.")


@strawberry.type(description="What became of one of many.")
class InstanceOutcome:
    """See ``engine.controls.Row``."""

    instance_id: strawberry.ID = field(description="The instance's id.")
    refusal: UserError | None = field(description="Why nothing was done with it; null: it was done.")

    @derived("The instance.")
    async def instance(self, info: Info) -> Instance | None:
        """By loader."""
        row = await info.context.load.instance.load(self.instance_id)
        return None if row is None else instance(row, caller(info))


@strawberry.type(description="What became of each instance that matched.")
class InstancesCancelPayload:
    """A row each."""

    results: list[InstanceOutcome] = field(description="A row for each, the oldest instance first.")
    more: bool = field(description="True if others match too: call again.")
    change_seq: BigInt = field(description="Your stream has caught up when it is here.")


@strawberry.type(description="What became of each instance that matched.")
class InstancesRetryPayload:
    """A row each."""

    results: list[InstanceOutcome] = field(description="A row for each, the oldest instance first.")
    more: bool = field(description="True if others match too: call again.")
    change_seq: BigInt = field(description="Your stream has caught up when it is here.")


InstancesCancelResult = Annotated[
    InstancesCancelPayload | ValidationFailed | PermissionDenied,
    strawberry.union("InstancesCancelResult", description="What became of each, or why nothing was done."),
]
InstancesRetryResult = Annotated[
    InstancesRetryPayload | ValidationFailed | PermissionDenied,
    strawberry.union("InstancesRetryResult", description="What became of each, or why nothing was done."),
]


@strawberry.type
class BulkMutation:
    """Many at once."""

    @mutation(Permission.INSTANCE_RUN, "Cancel every run that matches; those that have ended get a row that says so.")
    async def instances_cancel(
        self, info: Info, input: Annotated[InstancesCancelInput, argument(description="Which ones, and why.")]
    ) -> InstancesCancelResult:
        """One after another, in the order of their age."""
        found = await info.context.engine.instances.cancel_many(caller(info), where(input.where), input.reason)
        return InstancesCancelPayload(results=_rows(found), more=found.more, change_seq=await _reached(info))

    @mutation(
        Permission.INSTANCE_RUN,
        "Let every FAILED run that matches go on from what failed; the others get a row that says why not.",
    )
    async def instances_retry(
        self, info: Info, input: Annotated[InstancesRetryInput, argument(description="Which ones.")]
    ) -> InstancesRetryResult:
        """One after another, in the order of their age."""
        found = await info.context.engine.instances.retry_many(caller(info), where(input.where))
        return InstancesRetryPayload(results=_rows(found), more=found.more, change_seq=await _reached(info))


def _rows(found: Bulk) -> list[InstanceOutcome]:
    return [
        InstanceOutcome(
            instance_id=strawberry.ID(row.instance_id),
            refusal=None if row.refusal is None else refusal_as_result(row.refusal),
        )
        for row in found.rows
    ]


async def _reached(info: Info) -> BigInt:
    info.context.refresh()
    project_id = caller(info).project_id
    return BigInt(await info.context.engine.database.read(lists.latest_change, project_id))
