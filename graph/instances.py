"""Instances: the runs of workflows, with their lists, their start and their end."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import strawberry
from strawberry import UNSET, argument, field

from db.store import lists
from engine.access import Actor, Permission
from engine.instances import Started
from flow import errors, states
from flow import events as e
from flow.states import InstanceStatus
from graph.event_types import InstanceEvent
from graph.events import event
from graph.loaders import Counted, Events, Part
from graph.nodes import NodeExecution, NodeExecutionWhere, duration, execution
from graph.objects import (
    Failure,
    Node,
    OutputArtifact,
    choice,
    derived,
    output_artifact,
    stored_failure,
)
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

if TYPE_CHECKING:
    from graph.versions import WorkflowVersion
    from graph.workflows import Workflow

MOST_EVENTS = 500


@strawberry.type(description="What started an instance.")
class Trigger:
    """See ``flow.events.Trigger``."""

    type: str = field(description="api, manual, schedule, filesystem, webhook …")
    id: str | None = field(description="The trigger's id in the definition, if it was one.")
    payload: JSON | None = field(description="What the trigger brought.")


@strawberry.type(description="A name and value that somebody put on an instance, to find it by.")
class Label:
    """One pair."""

    name: str = field(description="The label's name.")
    value: str = field(description="The label's value.")


@strawberry.type(description="How many of an instance's nodes are in each state.")
class InstanceProgress:
    """Counted from ``node_executions``; a node without a row is pending."""

    total: int = field(description="The nodes of the definition.")
    pending: int = field(description="Have not begun.")
    running: int = field(description="Are running, waiting, or will be tried again.")
    completed: int = field(description="Completed.")
    failed: int = field(description="Failed for good.")
    skipped: int = field(description="Were not run.")
    canceled: int = field(description="Were stopped.")


@strawberry.type(description="One run of one version of a workflow. It keeps its version for life.")
class Instance(Node):
    """A row of ``instances``."""

    status: InstanceStatus = field(description="Where the run is in its life.")
    input: JSON | None = field(description="What it was started with.")
    output: JSON | None = field(description="What came out; null if that is large: see `outputArtifact`.")
    output_artifact: OutputArtifact | None = field(description="What came out, if that is large.")
    error: Failure | None = field(description="Why it failed, if it did.")
    priority: int = field(description="From 1 (low) to 10 (urgent).")
    labels: list[Label] = field(description="What was put on it, by name.")
    idempotency_key: str | None = field(description="The key that it was started with.")
    created_at: datetime = field(description="When it was started.")
    created_by: str | None = field(description="Who started it: a user's id.")
    started_at: datetime | None = field(description="When a worker first took it up.")
    completed_at: datetime | None = field(description="When it ended, however it did.")
    cancel_requested_at: datetime | None = field(description="When somebody first asked to cancel it.")
    duration: timedelta | None = field(description="From `startedAt` to `completedAt`.")
    last_seq: int = field(description="Its newest event: resume `instanceEvents` after it.")
    change_seq: BigInt = field(description="The place of its newest change in the project's order of changes.")
    viewer_can_cancel: bool = field(description="True when you may cancel it now.")
    workflow_id: strawberry.Private[str]
    version_id: strawberry.Private[str]
    trigger_type: strawberry.Private[str]

    @derived("The workflow that it runs.")
    async def workflow(self, info: Info) -> Annotated[Workflow, strawberry.lazy("graph.workflows")]:
        """By loader."""
        from graph.workflows import workflow

        row = await info.context.load.workflow.load(self.workflow_id)
        if row is None:
            raise errors.NotFound("workflow", self.workflow_id)
        return workflow(row, caller(info))

    @derived("The version that it is pinned to.")
    async def version(self, info: Info) -> Annotated[WorkflowVersion, strawberry.lazy("graph.versions")]:
        """By loader."""
        from graph.versions import version

        row = await info.context.load.version.load(self.version_id)
        if row is None:
            raise errors.NotFound("workflow version", self.version_id)
        return version(row)

    @derived("What started it.")
    async def trigger(self, info: Info) -> Trigger:
        """From the first event."""
        created = await info.context.load.created.load(self.id)
        given = created.trigger if created is not None else e.Trigger(type=self.trigger_type)
        return Trigger(type=given.type, id=given.id, payload=given.payload)

    @derived("How long the whole run may take, if it was limited.")
    async def timeout(self, info: Info) -> timedelta | None:
        """From the first event."""
        created = await info.context.load.created.load(self.id)
        return created.timeout if created is not None else None

    @derived("How many of its nodes are in each state.")
    async def progress(self, info: Info) -> InstanceProgress:
        """By loader."""
        counts = await info.context.load.node_counts.load(self.id)
        graph = await info.context.load.graph.load(self.version_id)
        known = sum(counts.values())
        total = max(len(graph.nodes) if graph is not None else 0, known)
        return InstanceProgress(
            total=total,
            pending=counts.get("PENDING", 0) + total - known,
            running=sum(counts.get(status, 0) for status in ("RUNNING", "WAITING", "RETRYING")),
            completed=counts.get("COMPLETED", 0),
            failed=counts.get("FAILED", 0),
            skipped=counts.get("SKIPPED", 0),
            canceled=counts.get("CANCELED", 0),
        )

    @derived("What became of its nodes, in the order in which they began.")
    async def node_executions(
        self,
        info: Info,
        where: Annotated[
            NodeExecutionWhere | None, argument(name="where", description="Only those that match.")
        ] = None,
        first: First = None,
        after: After = None,
        last: Last = None,
        before: Before = None,
    ) -> Connection[NodeExecution]:
        """By loader: one statement for a whole page of instances."""
        asked = part(lists.NODES, "PLACE", False, first, after, last, before)
        wanted = filter_of(where)
        load, actor = info.context.load, caller(info)
        page = await load.nodes_of.load(Part(self.id, wanted, asked))
        return connection(
            lists.NODES,
            asked,
            page,
            lambda row: execution(row, actor),
            lambda: load.node_count.load(Counted(self.id, wanted)),
        )

    @derived("The outcome of one node; null while it has no event.")
    async def node_execution(
        self,
        info: Info,
        path: Annotated[str, argument(description="The node's id, in a loop its path such as `resize[3]/encode`.")],
    ) -> NodeExecution | None:
        """By loader."""
        row = await info.context.load.node.load((self.id, path))
        return None if row is None else execution(row, caller(info))

    @derived("Its history: the events after a `seq`, oldest first.")
    async def events(
        self,
        info: Info,
        after: Annotated[int, argument(description="Only events after this `seq`.")] = 0,
        first: Annotated[int, argument(description="At most this many: 1 to 500.")] = 100,
    ) -> list[InstanceEvent]:
        """By loader."""
        limit = max(1, min(first, MOST_EVENTS))
        found = await info.context.load.events.load(Events(self.id, after, limit))
        actor = caller(info)
        return [event(self.id, each, actor) for each in found]


filter_of = where


def as_created(started: Started, idempotency_key: str | None, actor: Actor) -> Instance:
    """The instance as its first event made it: nothing has to be read to answer who started it."""
    recorded = started.created
    assert recorded is not None
    assert isinstance(recorded.event, e.InstanceCreated)
    created = recorded.event
    return Instance(
        id=strawberry.ID(started.instance_id),
        status=states.InstanceStatus.PENDING,
        input=created.input,
        output=None,
        output_artifact=None,
        error=None,
        priority=created.priority,
        labels=[Label(name=name, value=value) for name, value in sorted(created.labels.items())],
        idempotency_key=idempotency_key,
        created_at=recorded.at,
        created_by=created.created_by,
        started_at=None,
        completed_at=None,
        cancel_requested_at=None,
        duration=None,
        last_seq=1,
        change_seq=BigInt(started.change_seq),
        viewer_can_cancel=actor.may(Permission.INSTANCE_RUN),
        workflow_id=created.workflow_id,
        version_id=created.version_id,
        trigger_type=created.trigger.type,
    )


def instance(row: lists.Record, actor: Actor) -> Instance:
    """The row as the schema shows it."""
    status = states.InstanceStatus(row.status)
    return Instance(
        id=strawberry.ID(row.id),
        status=status,
        input=row.input,
        output=row.output,
        output_artifact=output_artifact(row.output_artifact),
        error=stored_failure(row.error, actor),
        priority=row.priority,
        labels=[Label(name=name, value=value) for name, value in sorted((row.labels or {}).items())],
        idempotency_key=row.idempotency_key,
        created_at=row.created_at,
        created_by=row.created_by,
        started_at=row.started_at,
        completed_at=row.completed_at,
        cancel_requested_at=row.cancel_requested_at,
        duration=duration(row.started_at, row.completed_at),
        last_seq=row.last_seq,
        change_seq=row.change_seq,
        viewer_can_cancel=not status.terminal and actor.may(Permission.INSTANCE_RUN),
        workflow_id=row.workflow_id,
        version_id=row.version_id,
        trigger_type=row.trigger_type,
    )


# ---- lists ----------------------------------------------------------------------------------------------------


@strawberry.input(description="Compares an instance's status.")
class InstanceStatusFilter:
    """``eq`` or ``in``."""

    eq: InstanceStatus | None = field(default=UNSET, description="Is exactly this.")
    in_: list[InstanceStatus] | None = field(default=UNSET, name="in", description="Is one of these.")


@strawberry.input(description="A label that an instance must carry.")
class LabelFilter:
    """Name and value."""

    name: str = field(description="The label's name.")
    value: str = field(description="The label's value.")


@strawberry.input(description="Which instances. Everything that is given must hold.")
class InstanceWhere:
    """See ``db.store.lists.INSTANCES``."""

    id: IdFilter | None = field(default=None, description="By id.")
    workflow: IdFilter | None = field(default=None, description="By their workflow's id.")
    version: IdFilter | None = field(default=None, description="By their version's id.")
    status: InstanceStatusFilter | None = field(default=None, description="By status.")
    trigger: StringFilter | None = field(default=None, description="By the type of what started them.")
    priority: IntFilter | None = field(default=None, description="By priority.")
    created_at: DateTimeFilter | None = field(default=None, description="By when they were started.")
    started_at: DateTimeFilter | None = field(default=None, description="By when a worker took them up.")
    completed_at: DateTimeFilter | None = field(default=None, description="By when they ended.")
    created_by: IdFilter | None = field(default=None, description="By who started them.")
    label: LabelFilter | None = field(default=None, description="By a label.")
    and_: list[InstanceWhere] | None = field(default=None, name="and", description="All of these hold.")
    or_: list[InstanceWhere] | None = field(default=None, name="or", description="At least one of these holds.")
    not_: InstanceWhere | None = field(default=None, name="not", description="This does not hold.")


@strawberry.enum(description="The order of a list of instances.")
class InstanceOrder(Enum):
    """Order and direction."""

    CREATED_DESC = choice("CREATED_DESC", "The newest first.")
    CREATED_ASC = choice("CREATED_ASC", "The oldest first.")
    CHANGED_DESC = choice("CHANGED_DESC", "The one that changed last first.")
    CHANGED_ASC = choice("CHANGED_ASC", "The one that has not changed for longest first.")


Where = Annotated[InstanceWhere | None, argument(name="where", description="Only those that match.")]
OrderBy = Annotated[InstanceOrder, argument(description="In which order.")]


@strawberry.type
class InstanceQuery:
    """Instances by id and as lists."""

    @query(Permission.INSTANCE_READ, "One instance; null if your project has none of that id.")
    async def instance(
        self, info: Info, id: Annotated[strawberry.ID, argument(description="The instance's id.")]
    ) -> Instance | None:
        """By loader."""
        row = await info.context.load.instance.load(id)
        return None if row is None else instance(row, caller(info))

    @query(Permission.INSTANCE_READ, "The instances of your project, the newest first unless you say otherwise.")
    async def instances(
        self,
        info: Info,
        where: Where = None,
        order_by: OrderBy = InstanceOrder.CREATED_DESC,
        first: First = None,
        after: After = None,
        last: Last = None,
        before: Before = None,
    ) -> Connection[Instance]:
        """One page."""
        order, _, direction = order_by.value.partition("_")
        asked = part(lists.INSTANCES, order, direction == "DESC", first, after, last, before)
        wanted = filter_of(where)
        actor, db = caller(info), info.context.engine.database
        page = await db.read(lists.page, lists.INSTANCES, actor.project_id, wanted, asked)
        return connection(
            lists.INSTANCES,
            asked,
            page,
            lambda row: instance(row, actor),
            lambda: db.read(lists.count, lists.INSTANCES, actor.project_id, wanted),
        )
