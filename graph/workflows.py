"""Workflows and their versions as types, and how they are looked up. What changes them is in ``graph.editing``."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import Enum
from typing import Annotated, Any, cast

import strawberry
from strawberry import UNSET, argument, field

from db.store import lists
from engine.access import Actor, Permission
from flow import definition as d
from flow import errors, states
from flow.definition import Join, On
from flow.states import WorkflowStatus
from graph.instances import Instance, InstanceOrder, instance
from graph.instances import OrderBy as InstancesOrderBy
from graph.instances import Where as InstancesWhere
from graph.loaders import Counted, Part
from graph.nodes import Resources
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
from graph.results import Problem
from graph.scalars import JSON, BigInt, SemVer, parts

filter_of = where


# ---- the parts of a definition --------------------------------------------------------------------------------


@strawberry.type(description="How often, and how long apart, a failed attempt is made again.")
class RetryPolicy:
    """See ``flow.definition.RetryPolicy``."""

    max: int = field(description="Retries at most, not counting the first attempt.")
    base: timedelta = field(description="The wait before the first retry.")
    factor: float = field(description="Each wait is this many times the one before.")
    cap: timedelta = field(description="No wait is longer.")
    jitter: float = field(description="The share of a wait that is left to chance, 0 to 1.")
    total_timeout: timedelta | None = field(description="How long all attempts together may take.")
    retry_on: list[str] = field(
        description="Only these categories or codes are retried; empty: as their category says."
    )
    never_on: list[str] = field(description="These categories or codes are never retried.")


@strawberry.type(description="How long a node's result may be used again.")
class CachePolicy:
    """See ``flow.definition.Cache``."""

    ttl: timedelta = field(description="How long a result is good for.")
    key: str | None = field(description="An expression for the key; null: everything that the node gets.")


@strawberry.type(description="Where a node stands on the canvas.")
class Position:
    """In pixels."""

    x: float = field(description="To the right.")
    y: float = field(description="Downwards.")


@strawberry.type(description="One step of a workflow, with every default filled in.")
class DefinitionNode:
    """See ``flow.definition.Node``."""

    id: str = field(description="Its id in the definition.")
    type: str = field(description="Its node type, such as image/preprocess.")
    name: str | None = field(description="Its label for people.")
    parameters: JSON = field(description="The handler's parameters, templates and all.")
    join: Join = field(description="When it starts, given how its incoming edges settled.")
    fail_on_error: bool = field(description="True: its final failure fails the instance.")
    retry: RetryPolicy = field(description="How failed attempts are made again.")
    timeout: timedelta = field(description="How long one attempt may take.")
    heartbeat_timeout: timedelta | None = field(description="How long an attempt may be silent.")
    cache: CachePolicy | None = field(description="Whether its result may be used again.")
    resources: Resources | None = field(description="What it needs; null: what its type needs.")
    runs_on: list[str] = field(description="Labels that a worker must have.")
    on_lost: str = field(description="retry or fail, when its worker died in the middle of it.")
    position: Position | None = field(description="Where it stands on the canvas; null: laid out.")


@strawberry.type(description="From one node to another.")
class DefinitionEdge:
    """See ``flow.definition.Edge``."""

    source: str = field(description="The node that it comes from.")
    target: str = field(description="The node that it leads to.")
    on: On = field(description="Which end of its source it follows.")
    condition: str | None = field(description="A JMESPath expression on the source's output that must be true.")
    mapping: JSON = field(
        description="Target path to `$.<jmespath>` on the source's output, or a literal; empty: all of it."
    )


@strawberry.type(description="What starts a workflow by itself.")
class DefinitionTrigger:
    """See ``flow.definition.TriggerSpec``."""

    id: str = field(description="Its id in the definition.")
    type: str = field(description="manual, api, schedule, filesystem, webhook …")
    config: JSON = field(description="What its type needs to know.")
    input_mapping: JSON = field(description="How its payload becomes the instance's input.")


def definition_node(node: d.Node) -> DefinitionNode:
    """A node as the schema shows it."""
    r = node.retry
    return DefinitionNode(
        id=node.id,
        type=node.type,
        name=node.name,
        parameters=cast(JSON, node.parameters),
        join=node.join,
        fail_on_error=node.fail_on_error,
        retry=RetryPolicy(
            max=r.max,
            base=r.base,
            factor=r.factor,
            cap=r.cap,
            jitter=r.jitter,
            total_timeout=r.total_timeout,
            retry_on=list(r.retry_on),
            never_on=list(r.never_on),
        ),
        timeout=node.timeout,
        heartbeat_timeout=node.heartbeat_timeout,
        cache=CachePolicy(ttl=node.cache.ttl, key=node.cache.key) if node.cache else None,
        resources=(
            Resources(cpu=node.resources.cpu, memory=node.resources.memory, gpu=node.resources.gpu)
            if node.resources
            else None
        ),
        runs_on=list(node.runs_on),
        on_lost=node.on_lost,
        position=Position(x=node.position.x, y=node.position.y) if node.position else None,
    )


def definition_edge(edge: d.Edge) -> DefinitionEdge:
    """An edge as the schema shows it."""
    return DefinitionEdge(
        source=edge.source,
        target=edge.target,
        on=edge.on,
        condition=edge.condition,
        mapping=cast(JSON, edge.mapping),
    )


# ---- versions -------------------------------------------------------------------------------------------------


@strawberry.type(description="One immutable definition of a workflow.")
class WorkflowVersion(Node):
    """A row of ``workflow_versions``."""

    version: SemVer = field(description="Its number.")
    label: str | None = field(description="What somebody named it.")
    change_note: str | None = field(description="What was changed, in its author's words.")
    created_at: datetime = field(description="When it was made.")
    created_by: str | None = field(description="Who made it: a user's id.")
    problems: list[Problem] = field(description="What is wrong with it; only a DRAFT's version can have problems.")
    workflow_id: strawberry.Private[str]
    parent_id: strawberry.Private[str | None]

    @derived("The workflow that it is a version of.")
    async def workflow(self, info: Info) -> Annotated[Workflow, strawberry.lazy("graph.workflows")]:
        """By loader."""
        row = await info.context.load.workflow.load(self.workflow_id)
        if row is None:
            raise errors.NotFound("workflow", self.workflow_id)
        return workflow(row, caller(info))

    @derived("The version that it was made from; null for the first.")
    async def parent(self, info: Info) -> Annotated[WorkflowVersion, strawberry.lazy("graph.workflows")] | None:
        """By loader."""
        row = await info.context.load.version.load(self.parent_id) if self.parent_id else None
        return None if row is None else version(row)

    @derived("The whole definition in its canonical form (with problems: as it was given).")
    async def definition(self, info: Info) -> JSON:
        """As it is stored."""
        return cast(JSON, await _document(info, self.id))

    @derived("Its steps. Empty where problems keep it from being read.")
    async def nodes(self, info: Info) -> list[DefinitionNode]:
        """Typed, with defaults."""
        graph = await info.context.load.graph.load(self.id)
        return [definition_node(node) for node in graph.definition.nodes] if graph else []

    @derived("Its edges. Empty where problems keep it from being read.")
    async def edges(self, info: Info) -> list[DefinitionEdge]:
        """Typed, with defaults."""
        graph = await info.context.load.graph.load(self.id)
        return [definition_edge(edge) for edge in graph.definition.edges] if graph else []

    @derived("What starts it. Empty where problems keep it from being read.")
    async def triggers(self, info: Info) -> list[DefinitionTrigger]:
        """Typed, with defaults."""
        graph = await info.context.load.graph.load(self.id)
        return [
            DefinitionTrigger(
                id=trigger.id,
                type=trigger.type,
                config=cast(JSON, trigger.config),
                input_mapping=cast(JSON, trigger.input_mapping),
            )
            for trigger in (graph.definition.triggers if graph else ())
        ]

    @derived("The JSON Schema that an instance's input must fit, if there is one.")
    async def input_schema(self, info: Info) -> JSON | None:
        """As it is stored."""
        return cast(JSON | None, (await _document(info, self.id)).get("input_schema"))

    @derived("Constants that expressions can use.")
    async def parameters(self, info: Info) -> JSON:
        """As it is stored."""
        return cast(JSON, await _legacy(info, self.id, "parameters") or {})

    @derived("What the workflow is for, such as image processing.")
    async def scenario(self, info: Info) -> str | None:
        """As it is stored."""
        found = await _legacy(info, self.id, "scenario")
        return found if isinstance(found, str) else None

    @derived("How the instance's output is made from its nodes' outputs; empty: all terminal nodes.")
    async def output_mapping(self, info: Info) -> JSON:
        """As it is stored."""
        return cast(JSON, await _legacy(info, self.id, "output_mapping") or {})

    @derived(
        "Older batch form: how files become the input. Of an imported batch workflow as it was given, "
        "else the `input_mapping` of each trigger by id."
    )
    async def input_mapping(self, info: Info) -> JSON:
        """Kept from an import, or derived."""
        found = await _legacy(info, self.id, "input_mapping")
        if found is None:
            graph = await info.context.load.graph.load(self.id)
            found = {each.id: each.input_mapping for each in (graph.definition.triggers if graph else ())}
        return cast(JSON, found)

    @derived(
        "Older batch form: the workflow's own graph. Of an imported batch workflow as it was given, else "
        "the definition."
    )
    async def workflow_config(self, info: Info) -> JSON:
        """Kept from an import, or derived."""
        return cast(JSON, await _legacy(info, self.id, "workflow_config") or await _document(info, self.id))

    @derived(
        "Older batch form: settings by node. Of an imported batch workflow as it was given, else each "
        "node's parameters by id."
    )
    async def node_config(self, info: Info) -> JSON:
        """Kept from an import, or derived."""
        found = await _legacy(info, self.id, "node_config")
        if found is None:
            graph = await info.context.load.graph.load(self.id)
            found = {each.id: each.parameters for each in (graph.definition.nodes if graph else ())}
        return cast(JSON, found)


async def _document(info: Info, id: str) -> dict[str, Any]:
    document = await info.context.load.document.load(id)
    if document is None:
        raise errors.NotFound("workflow version", id)
    return document


async def _legacy(info: Info, id: str, key: str) -> Any:
    """What an import in the older form gave under this key, or else what the definition has there."""
    document = await _document(info, id)
    metadata = document.get("metadata")
    legacy = metadata.get("legacy") if isinstance(metadata, dict) else None
    if isinstance(legacy, dict) and key in legacy:
        return legacy[key]
    return document.get(key)


def version(row: lists.Record) -> WorkflowVersion:
    """The row as the schema shows it."""
    return WorkflowVersion(
        id=strawberry.ID(row.id),
        version=SemVer(f"{row.major}.{row.minor}.{row.patch}"),
        label=row.label,
        change_note=row.change_note,
        created_at=row.created_at,
        created_by=row.created_by,
        problems=[_problem(each) for each in row.problems],
        workflow_id=row.workflow_id,
        parent_id=row.parent_id,
    )


def _problem(stored: Mapping[str, str]) -> Problem:
    return Problem(code=stored["code"], pointer=stored["pointer"], message=stored["message"])


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
        page = await load.versions_of.load(Part(self.id, lists.EVERY, asked))
        return connection(
            lists.VERSIONS, asked, page, version, lambda: load.version_count.load(Counted(self.id, lists.EVERY))
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


def workflow(row: lists.Record, actor: Actor) -> Workflow:
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


_LISTED = lists.Compare(
    "status",
    "in",
    tuple(
        s.value for s in states.WorkflowStatus if s not in {states.WorkflowStatus.HIDDEN, states.WorkflowStatus.DELETED}
    ),
)


def _names_status(wanted: lists.Filter) -> bool:
    match wanted:
        case lists.Compare(field=name):
            return name == "status"
        case lists.All(parts) | lists.Either(parts):
            return any(_names_status(each) for each in parts)
        case lists.Not(inner):
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
            wanted = lists.All((wanted, _LISTED))
        actor, db = caller(info), info.context.engine.database
        page = await db.read(lists.page, lists.WORKFLOWS, actor.project_id, wanted, asked)
        return connection(
            lists.WORKFLOWS,
            asked,
            page,
            lambda row: workflow(row, actor),
            lambda: db.read(lists.count, lists.WORKFLOWS, actor.project_id, wanted),
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
