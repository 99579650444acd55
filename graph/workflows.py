"""Workflows as types, and how they and their versions are looked up. What changes them is in ``graph.editing``."""

from __future__ import annotations

from datetime import datetime
from enum import Enum
from typing import Annotated

import strawberry
from strawberry import UNSET, argument, field

from db.store import keyset, lists
from engine.access import Actor, Permission
from flow import states
from flow.states import WorkflowStatus
from graph.instances import Instance, InstanceOrder, instance
from graph.instances import OrderBy as InstancesOrderBy
from graph.instances import Where as InstancesWhere
from graph.loaders import Counted, Part
from graph.objects import Node, choice, derived
from graph.paging import (
    After,
    Before,
    Connection,
    DateTimeFilter,
    First,
    IdFilter,
    Last,
    StringFilter,
    connection,
    part,
    refuse,
    where,
)
from graph.permissions import Info, caller, query
from graph.scalars import BigInt, SemVer, parts
from graph.versions import WorkflowVersion, version

filter_of = where


# ---- workflows ------------------------------------------------------------------------------------------------


@strawberry.type(description="A named process; new runs take its current version.")
class Workflow(Node):
    """A row of ``workflows``."""

    name: str = field(description="Its name, unique in the project.")
    display_name: str | None = field(description="Its name for people.")
    description: str | None = field(description="What it does.")
    scenario: str | None = field(description="What it is for, such as image processing.")
    status: WorkflowStatus = field(description="Where it is in its life.")
    tags: list[str] = field(description="Words to find it by.")
    created_at: datetime = field(description="When it was made.")
    created_by: str | None = field(description="Who made it: a user's id.")
    updated_at: datetime = field(description="When it was last changed.")
    updated_by: str | None = field(description="Who changed it last: a user's id.")
    deleted_at: datetime | None = field(description="When it was deleted, if it was.")
    max_running: int | None = field(description="So many of its runs may be under way at once; null: any number.")
    change_seq: BigInt = field(description="The place of its newest change in the project's order of changes.")
    viewer_can_edit: bool = field(description="True when you may change it now.")
    viewer_can_run: bool = field(description="True when you may run it now.")
    current_version_id: strawberry.Private[str | None]

    @derived("The version that new runs take.")
    async def current_version(self, info: Info) -> WorkflowVersion | None:
        """By loader."""
        row = await info.context.load.version.load(self.current_version_id) if self.current_version_id else None
        return None if row is None else version(row)

    @derived("Its versions, the highest first.")
    async def versions(
        self, info: Info, first: First = None, after: After = None, last: Last = None, before: Before = None
    ) -> Connection[WorkflowVersion]:
        """By loader: one statement for a whole page of workflows."""
        asked = part(lists.VERSIONS, "VERSION", True, first, after, last, before)
        load = info.context.load
        page = await load.versions_of.load(Part(self.id, keyset.EVERY, asked))
        return connection(
            lists.VERSIONS, asked, page, version, lambda: load.version_count.load(Counted(self.id, keyset.EVERY))
        )

    @derived("Its runs, the newest first unless you say otherwise.")
    async def instances(
        self,
        info: Info,
        where: InstancesWhere = None,
        order_by: InstancesOrderBy = InstanceOrder.CREATED_DESC,
        first: First = None,
        after: After = None,
        last: Last = None,
        before: Before = None,
    ) -> Connection[Instance]:
        """By loader: one statement for a whole page of workflows."""
        order, _, direction = order_by.value.partition("_")
        asked = part(lists.INSTANCES, order, direction == "DESC", first, after, last, before)
        wanted = filter_of(where)
        load, actor = info.context.load, caller(info)
        actor.require(Permission.INSTANCE_READ)
        page = await load.instances_of.load(Part(self.id, wanted, asked))
        return connection(
            lists.INSTANCES,
            asked,
            page,
            lambda row: instance(row, actor),
            lambda: load.instance_count.load(Counted(self.id, wanted)),
        )


_EDITABLE = frozenset(states.WorkflowStatus) - {states.WorkflowStatus.ARCHIVED, states.WorkflowStatus.DELETED}


def workflow(row: keyset.Record, actor: Actor) -> Workflow:
    """The row as the schema shows it."""
    status = states.WorkflowStatus(row.status)
    return Workflow(
        id=strawberry.ID(row.id),
        name=row.name,
        display_name=row.display_name,
        description=row.description,
        scenario=row.scenario,
        status=status,
        tags=row.tags or [],
        created_at=row.created_at,
        created_by=row.created_by,
        updated_at=row.updated_at,
        updated_by=row.updated_by,
        deleted_at=row.deleted_at,
        max_running=row.max_running,
        change_seq=row.change_seq,
        viewer_can_edit=status in _EDITABLE and actor.may(Permission.WORKFLOW_WRITE),
        viewer_can_run=status.runnable and actor.may(Permission.INSTANCE_RUN),
        current_version_id=row.current_version_id,
    )


# ---- lists ----------------------------------------------------------------------------------------------------


@strawberry.input(description="Compares a workflow's status.")
class WorkflowStatusFilter:
    """``eq`` or ``in``."""

    eq: WorkflowStatus | None = field(default=UNSET, description="Is exactly this.")
    in_: list[WorkflowStatus] | None = field(default=UNSET, name="in", description="Is one of these.")


@strawberry.input(description="Looks among a workflow's tags.")
class TagFilter:
    """``contains``."""

    contains: str | None = field(default=UNSET, description="One of the tags is exactly this.")


@strawberry.input(
    description="Which workflows. Everything that is given must hold. Without a status anywhere in it, hidden and "
    "deleted workflows are left out."
)
class WorkflowWhere:
    """See ``db.store.lists.WORKFLOWS``."""

    id: IdFilter | None = field(default=None, description="By id.")
    name: StringFilter | None = field(default=None, description="By name.")
    display_name: StringFilter | None = field(default=None, description="By the name for people.")
    description: StringFilter | None = field(default=None, description="By what they do.")
    scenario: StringFilter | None = field(default=None, description="By what they are for.")
    status: WorkflowStatusFilter | None = field(default=None, description="By status.")
    tag: TagFilter | None = field(default=None, description="By a tag.")
    created_at: DateTimeFilter | None = field(default=None, description="By when they were made.")
    updated_at: DateTimeFilter | None = field(default=None, description="By when they were last changed.")
    and_: list[WorkflowWhere] | None = field(default=None, name="and", description="All of these hold.")
    or_: list[WorkflowWhere] | None = field(default=None, name="or", description="At least one of these holds.")
    not_: WorkflowWhere | None = field(default=None, name="not", description="This does not hold.")


@strawberry.enum(description="The order of a list of workflows.")
class WorkflowOrder(Enum):
    """Order and direction."""

    UPDATED_DESC = choice("UPDATED_DESC", "The one changed last first.")
    UPDATED_ASC = choice("UPDATED_ASC", "The one not changed for longest first.")
    CREATED_DESC = choice("CREATED_DESC", "The newest first.")
    CREATED_ASC = choice("CREATED_ASC", "The oldest first.")
    NAME_ASC = choice("NAME_ASC", "By name.")
    NAME_DESC = choice("NAME_DESC", "By name, backwards.")


_LISTED = keyset.Compare(
    "status",
    "in",
    tuple(
        s.value for s in states.WorkflowStatus if s not in {states.WorkflowStatus.HIDDEN, states.WorkflowStatus.DELETED}
    ),
)


def _names_status(wanted: keyset.Filter) -> bool:
    match wanted:
        case keyset.Compare(field=name):
            return name == "status"
        case keyset.All(parts) | keyset.Either(parts):
            return any(_names_status(each) for each in parts)
        case keyset.Not(inner):
            return _names_status(inner)


@strawberry.type
class WorkflowQuery:
    """Workflows and versions by id and as lists."""

    @query(Permission.WORKFLOW_READ, "One workflow by id or by name; null if your project has none.")
    async def workflow(
        self,
        info: Info,
        id: Annotated[strawberry.ID | None, argument(description="The workflow's id.")] = None,
        name: Annotated[str | None, argument(description="Its name, instead of the id.")] = None,
    ) -> Workflow | None:
        """By loader."""
        actor = caller(info)
        if (id is None) == (name is None):
            raise refuse("BAD_INPUT", "Give the workflow's `id` or its `name`.", "id")
        found: str | None = id or await info.context.engine.database.read(
            lists.workflow_id, actor.project_id, name or ""
        )
        row = await info.context.load.workflow.load(found) if found else None
        return None if row is None else workflow(row, actor)

    @query(
        Permission.WORKFLOW_READ,
        "The workflows of your project, the one changed last first unless you say otherwise. Hidden and deleted ones "
        "are left out unless you ask for them by status.",
    )
    async def workflows(
        self,
        info: Info,
        where: Annotated[WorkflowWhere | None, argument(name="where", description="Only those that match.")] = None,
        order_by: Annotated[WorkflowOrder, argument(description="In which order.")] = WorkflowOrder.UPDATED_DESC,
        first: First = None,
        after: After = None,
        last: Last = None,
        before: Before = None,
    ) -> Connection[Workflow]:
        """One page."""
        order, _, direction = order_by.value.partition("_")
        asked = part(lists.WORKFLOWS, order, direction == "DESC", first, after, last, before)
        wanted = filter_of(where)
        if not _names_status(wanted):
            wanted = keyset.All((wanted, _LISTED))
        actor, db = caller(info), info.context.engine.database
        page = await db.read(keyset.page, lists.WORKFLOWS, actor.project_id, wanted, asked)
        return connection(
            lists.WORKFLOWS,
            asked,
            page,
            lambda row: workflow(row, actor),
            lambda: db.read(keyset.count, lists.WORKFLOWS, actor.project_id, wanted),
        )

    @query(
        Permission.WORKFLOW_READ,
        "One version by its id, or by workflow and number (without a number: the current one); null if there is none.",
    )
    async def workflow_version(
        self,
        info: Info,
        id: Annotated[strawberry.ID | None, argument(description="The version's id.")] = None,
        workflow: Annotated[strawberry.ID | None, argument(description="The workflow's id, instead.")] = None,
        version: Annotated[SemVer | None, argument(description="With `workflow`: the version's number.")] = None,
    ) -> WorkflowVersion | None:
        """By loader."""
        if (id is None) == (workflow is None):
            raise refuse("BAD_INPUT", "Give the version's `id`, or its `workflow` and number.", "id")
        found: str | None = id
        if workflow is not None:
            number = parts(version) if version is not None else None
            project = caller(info).project_id
            found = await info.context.engine.database.read(lists.version_id, project, workflow, number)
        row = await info.context.load.version.load(found) if found else None
        return None if row is None else version_of(row)


version_of = version
