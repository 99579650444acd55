"""Instances: the runs of workflows, with their lists, their start and their end."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import strawberry
from strawberry import UNSET, argument, field

from db.store import keyset, lists
from engine import clock
from engine.access import Actor, Permission
from engine.instances import Started
from flow import errors, states, timing
from flow import events as e
from flow.events import PauseReason, Phase
from flow.states import InstanceStatus
from graph.blocked import slim_state
from graph.event_types import InstanceEvent
from graph.events import event
from graph.loaders import Counted, Events, Part
from graph.moments import InstanceMoment, moment
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
from graph.pending import Pending, joined, pending
from graph.permissions import Info, caller, query
from graph.scalars import JSON, BigInt
from graph.waiting import Debug, debug

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
    of: strawberry.Private[Instance]

    @derived(
        "How much is done, from 0 to 1: each node weighs what it took in the workflow's last runs, and a running one "
        "counts by its own word or its time so far."
    )
    async def fraction(self, info: Info) -> float:
        """By ``flow.timing``."""
        load = info.context.load
        if self.of.status is InstanceStatus.COMPLETED:
            return 1.0
        graph = await load.graph.load(self.of.version_id)
        if graph is None:
            return 0.0
        outer = await load.outer.load(self.of.id)
        past = await load.past(self.of.version_id)
        return timing.progress(graph, {row.path: slim_state(row) for row in outer}, past, clock.now())


@strawberry.type(description="Why and where a run stands still.")
class InstancePause:
    """See ``flow.events.InstancePaused``."""

    reason: PauseReason = field(description="Somebody paused it, or a debugger did.")
    at: datetime = field(description="Since when.")
    by: str | None = field(description="Who paused it: a user's id.")
    node_path: str | None = field(description="The node that a debugger stopped at.")
    phase: Phase | None = field(description="On which side of that node.")


@strawberry.type(description="One node of a critical path.")
class CriticalStep:
    """See ``flow.timing.Step``."""

    path: str = field(description="The node's place in the run.")
    started_at: datetime = field(description="When it began.")
    completed_at: datetime | None = field(description="When it ended; null while it runs.")
    duration: timedelta = field(description="How long it took, or has taken so far.")
    waited: timedelta = field(description="How long it stood ready, after what was before it on the path had ended.")


@strawberry.type(description="One run of one version of a workflow. It keeps its version for life.")
class Instance(Node):
    """A row of ``instances``."""

    status: InstanceStatus = field(description="Where the run is in its life.")
    input: JSON | None = field(description="What it was started with.")
    output: JSON | None = field(description="What came out; null if that is large: see `outputArtifact`.")
    output_artifact: OutputArtifact | None = field(description="What came out, if that is large.")
    error: Failure | None = field(description="Why it failed, if it did.")
    priority: int = field(description="From 1 (low) to 10 (urgent).")
    pause_reason: PauseReason | None = field(description="Why it is PAUSED; null if it is not.")
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
    viewer_can_pause: bool = field(description="True when you may pause it now.")
    viewer_can_resume: bool = field(description="True when you may resume it now.")
    workflow_id: strawberry.Private[str]
    version_id: strawberry.Private[str]
    trigger_type: strawberry.Private[str]
    parent_id: strawberry.Private[str | None]
    parent_path: strawberry.Private[str | None]
    fork_id: strawberry.Private[str | None]

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
            of=self,
        )

    @derived("Why and where it stands still; null if it is not PAUSED.")
    async def pause(self, info: Info) -> InstancePause | None:
        """From its newest pause."""
        if self.status is not InstanceStatus.PAUSED:
            return None
        last = await info.context.load.newest.load((self.id, "instance.paused"))
        if last is None or not isinstance(last.event, e.InstancePaused):
            return None
        why = last.event
        return InstancePause(reason=why.reason, at=last.at, by=why.by, node_path=why.path, phase=why.phase)

    @derived("The instance whose node started it, if it is a child.")
    async def parent(self, info: Info) -> Instance | None:
        """By loader."""
        return await _other(info, self.parent_id)

    @derived("The node of its parent that started it, if it is a child.")
    async def parent_node(self, info: Info) -> NodeExecution | None:
        """By loader."""
        if self.parent_id is None or self.parent_path is None:
            return None
        row = await info.context.load.node.load((self.parent_id, self.parent_path))
        return None if row is None else execution(row, caller(info))

    @derived("The instances that its nodes started, the newest first.")
    async def children(
        self, info: Info, first: First = None, after: After = None, last: Last = None, before: Before = None
    ) -> Connection[Instance]:
        """By loader."""
        asked = part(lists.CHILDREN, "CREATED", True, first, after, last, before)
        load, actor = info.context.load, caller(info)
        page = await load.children_of.load(Part(self.id, keyset.EVERY, asked))
        return connection(
            lists.CHILDREN,
            asked,
            page,
            lambda row: instance(row, actor),
            lambda: load.child_count.load(Counted(self.id, keyset.EVERY)),
        )

    @derived("The instance that it was forked from, if it was.")
    async def fork_of(self, info: Info) -> Instance | None:
        """By loader."""
        return await _other(info, self.fork_id)

    @derived(
        "The chain of nodes that decided how long the run took (or takes so far), in order: each was released by the "
        "one before it. Loops and children count as one node."
    )
    async def critical_path(self, info: Info) -> list[CriticalStep]:
        """By ``flow.timing``."""
        graph = await info.context.load.graph.load(self.version_id)
        if graph is None:
            return []
        outer = await info.context.load.outer.load(self.id)
        states = {row.path: slim_state(row) for row in outer}
        steps = timing.critical_path(graph, states, self.created_at, clock.now())
        return [
            CriticalStep(
                path=step.path,
                started_at=step.started_at,
                completed_at=step.completed_at,
                duration=step.duration,
                waited=step.waited,
            )
            for step in steps
        ]

    @derived(
        "What became of its nodes, in the order in which they began; while it is open, those follow that have not "
        "begun (PENDING), so that each can be asked what it is blocked by."
    )
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
        waiting: list[Pending] = []
        if not self.status.terminal and (graph := await load.graph.load(self.version_id)) is not None:
            waiting = pending(self.id, graph, await load.outer.load(self.id), wanted)

        async def count() -> int:
            return await load.node_count.load(Counted(self.id, wanted)) + len(waiting)

        return connection(lists.NODES, asked, joined(page, asked, waiting), lambda row: execution(row, actor), count)

    @derived("The outcome of one node; null if there is none of that path.")
    async def node_execution(
        self,
        info: Info,
        path: Annotated[str, argument(description="The node's id, in a loop its path such as `resize[3]/encode`.")],
    ) -> NodeExecution | None:
        """By loader."""
        row = await info.context.load.node.load((self.id, path))
        if row is not None:
            return execution(row, caller(info))
        graph = None if self.status.terminal else await info.context.load.graph.load(self.version_id)
        found = [] if graph is None else pending(self.id, graph, (), keyset.Compare("path", "eq", path))
        return execution(found[0], caller(info)) if found else None

    @derived("The whole instance as it was right after its event `seq`; null if it has none of that number.")
    async def at(
        self, info: Info, seq: Annotated[int, argument(description="An event's place in the history, from 1.")]
    ) -> InstanceMoment | None:
        """Replayed."""
        return await moment(info, self.id, seq)

    @derived("How it is debugged: stepping and breakpoints as they are now; null if it never was.")
    async def debug(self, info: Info) -> Debug | None:
        """From the newest events that say so."""
        load = info.context.load
        last = await load.newest.load((self.id, "debug.set"))
        given = last.event.debug if last is not None and isinstance(last.event, e.DebugSet) else None
        if given is None:
            created = await load.created.load(self.id)
            given = created.debug if created is not None else None
        if given is None:
            return None
        # A resumption says by itself whether the run goes on step by step.
        resumed = await load.newest.load((self.id, "instance.resumed"))
        since = last.seq if last is not None else 0
        if resumed is not None and resumed.seq > since and isinstance(resumed.event, e.InstanceResumed):
            given = e.Debug(stepping=resumed.event.step, breakpoints=given.breakpoints)
        return debug(given)

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


async def _other(info: Info, id: str | None) -> Instance | None:
    row = None if id is None else await info.context.load.instance.load(id)
    return None if row is None else instance(row, caller(info))


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
        viewer_can_pause=actor.may(Permission.INSTANCE_RUN),
        viewer_can_resume=False,
        pause_reason=None,
        workflow_id=created.workflow_id,
        version_id=created.version_id,
        trigger_type=created.trigger.type,
        parent_id=created.parent.instance_id if created.parent is not None else None,
        parent_path=created.parent.path if created.parent is not None else None,
        fork_id=created.fork_of,
    )


def instance(row: keyset.Record, actor: Actor) -> Instance:
    """The row as the schema shows it."""
    status = states.InstanceStatus(row.status)
    may_run = actor.may(Permission.INSTANCE_RUN)
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
        viewer_can_cancel=not status.terminal and may_run,
        viewer_can_pause=status in (InstanceStatus.PENDING, InstanceStatus.RUNNING) and may_run,
        viewer_can_resume=status is InstanceStatus.PAUSED and may_run,
        pause_reason=PauseReason(row.pause_reason) if row.pause_reason and status is InstanceStatus.PAUSED else None,
        workflow_id=row.workflow_id,
        version_id=row.version_id,
        trigger_type=row.trigger_type,
        parent_id=row.parent_id,
        parent_path=row.parent_path,
        fork_id=row.fork_of,
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
    parent: IdFilter | None = field(default=None, description="By the instance whose children they are.")
    fork_of: IdFilter | None = field(default=None, description="By the instance that they were forked from.")
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
        page = await db.read(keyset.page, lists.INSTANCES, actor.project_id, wanted, asked)
        return connection(
            lists.INSTANCES,
            asked,
            page,
            lambda row: instance(row, actor),
            lambda: db.read(keyset.count, lists.INSTANCES, actor.project_id, wanted),
        )
