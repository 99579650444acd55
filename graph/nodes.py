"""Node executions (what became of a node in a run) and node types (what a node can be)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, cast

import msgspec
import strawberry
from strawberry import UNSET, argument, field

from db.store import keyset
from engine.access import Actor
from engine.nodes.contract import NodeType as EngineNodeType
from engine.nodes.contract import Placement
from flow import events as e
from flow import planner, states
from flow.definition import Node as DefinitionNode
from flow.errors import Failure as FlowFailure
from flow.errors import NotFound
from flow.expressions import ExpressionError
from flow.history import NodeState
from flow.states import NodeStatus, SkipReason
from graph.blocked import BlockedBy, blocked_by, graph_at, slim_state, stored_awaited
from graph.event_types import LogLine
from graph.events import log_line
from graph.loaders import Events, artifact_json
from graph.objects import (
    Failure,
    Node,
    NodeProgress,
    OutputArtifact,
    ResourceUsage,
    derived,
    output_artifact,
    resource_usage,
    stored_failure,
)
from graph.paging import StringFilter
from graph.pending import Pending
from graph.permissions import Info, caller
from graph.scalars import JSON, SemVer
from graph.waiting import Awaited, awaited

if TYPE_CHECKING:
    from graph.instances import Instance

#: A node's input is put together from its sources' outputs; larger ones than this (in bytes, all together) are not.
LARGEST_INPUT = 1024 * 1024
MOST_LOG_LINES = 500
#: Values that a debugger set, which are looked through for a node's input.
MOST_VALUES = 1_000


@strawberry.type(description="What became of one node in one run.")
class NodeExecution(Node):
    """A row of ``node_executions``."""

    path: str = field(
        description="The node's place in the run: its id, in a loop with the iteration (`resize[3]/encode`)."
    )
    node_id: str = field(description="The node's id in the definition.")
    node_type: str = field(description="The node's type, such as image/preprocess.")
    status: NodeStatus = field(description="Where the node is in its life.")
    skip_reason: SkipReason | None = field(description="Why it was not run, if it was skipped.")
    attempt: int = field(description="The attempt that is running or was the last, from 1; 0 before the first.")
    retry_count: int = field(description="How many attempts were made again.")
    started_at: datetime | None = field(description="When the first attempt began.")
    completed_at: datetime | None = field(description="When the node ended.")
    duration: timedelta | None = field(description="From the first attempt's begin to the end.")
    due_at: datetime | None = field(description="When the next attempt is due, if it waits for one.")
    output: JSON | None = field(description="What it gave; null if that is large: see `outputArtifact`.")
    output_artifact: OutputArtifact | None = field(description="What it gave, if that is large.")
    error: Failure | None = field(description="Why it failed, or why its last attempt did.")
    progress: NodeProgress | None = field(description="How far it has come, by its own word.")
    resource_usage: ResourceUsage | None = field(description="What the last attempt used.")
    worker: str | None = field(description="The worker that makes or made the last attempt.")
    cached: bool = field(description="True if nothing was run for it: its output is a pinned or remembered one.")
    iteration: int | None = field(description="Which iteration of the innermost loop around it, from 0; null outside.")
    last_seq: int = field(description="The node's newest event: resume `nodeExecutionUpdated` after it.")
    instance_id: strawberry.Private[str]
    awaited: strawberry.Private[e.Awaited | None]
    state: strawberry.Private[NodeState | None]

    @derived("What it waits for, if it is WAITING.")
    def waiting(self, info: Info) -> Awaited | None:
        """From its row."""
        if self.awaited is None or self.status is not NodeStatus.WAITING:
            return None
        return awaited(self.awaited, caller(info))

    @derived("Every reason why it isn't running, the outermost first; empty if it runs or has ended.")
    async def blocked_by(self, info: Info) -> list[BlockedBy]:
        """By loaders."""
        return await blocked_by(info, self.instance_id, self.path, self.state)

    @derived("The instance that the node belongs to.")
    async def instance(self, info: Info) -> Annotated[Instance, strawberry.lazy("graph.instances")]:
        """By loader."""
        from graph.instances import instance

        row = await info.context.load.instance.load(self.instance_id)
        if row is None:
            raise NotFound("instance", self.instance_id)
        return instance(row, caller(info))

    @derived("How often a failed attempt is made again at most, by the definition.")
    async def max_retries(self, info: Info) -> int:
        """From the version that the instance is pinned to."""
        node = await _definition_node(info, self.instance_id, self.path)
        return node.retry.max if node else 0

    @derived(
        "What the node gets or got: put together from the instance's input or its sources' outputs, "
        "or set by a debugger. Null where it can't be told yet, in a loop's body, or if it is larger than a megabyte."
    )
    async def input(self, info: Info) -> JSON | None:
        """Derived, never stored."""
        return cast(JSON | None, await _input(info, self.instance_id, self.node_id, self.path))

    @derived("What the node wrote to its log, oldest first.")
    async def logs(
        self,
        info: Info,
        first: Annotated[int, argument(description="At most this many lines: 1 to 500.")] = 100,
        after: Annotated[int, argument(description="Only lines after this `seq`.")] = 0,
    ) -> list[LogLine]:
        """By loader."""
        limit = max(1, min(first, MOST_LOG_LINES))
        found = await info.context.load.events.load(Events(self.instance_id, after, limit, "node.log", self.path))
        return [log_line(each, each.event) for each in found if isinstance(each.event, e.NodeLog)]


@strawberry.input(description="Compares a node's status.")
class NodeStatusFilter:
    """``eq`` or ``in``."""

    eq: NodeStatus | None = field(default=UNSET, description="Is exactly this.")
    in_: list[NodeStatus] | None = field(default=UNSET, name="in", description="Is one of these.")


@strawberry.input(description="Which node executions. Everything that is given must hold.")
class NodeExecutionWhere:
    """See ``db.store.lists.NODES``."""

    node_id: StringFilter | None = field(default=None, description="By the node's id.")
    path: StringFilter | None = field(default=None, description="By the node's place in the run.")
    status: NodeStatusFilter | None = field(default=None, description="By status.")
    node_type: StringFilter | None = field(default=None, description="By the node's type.")
    and_: list[NodeExecutionWhere] | None = field(default=None, name="and", description="All of these hold.")
    or_: list[NodeExecutionWhere] | None = field(default=None, name="or", description="At least one of these holds.")
    not_: NodeExecutionWhere | None = field(default=None, name="not", description="This does not hold.")


def execution_id(instance_id: str, path: str) -> str:
    """A node execution's id: derived, so that it is the same in every event and row."""
    return f"node-{instance_id.removeprefix('inst-')}.{path}"


def split_id(id: str) -> tuple[str, str] | None:
    """The instance and path that a node execution's id names."""
    body, dot, path = id.removeprefix("node-").partition(".")
    return (f"inst-{body}", path) if dot and id.startswith("node-") else None


def execution(row: keyset.Record | Pending, actor: Actor) -> NodeExecution:
    """The row as the schema shows it."""
    done = row.progress
    waits = stored_awaited(row.awaited)
    return NodeExecution(
        id=strawberry.ID(execution_id(row.instance_id, row.path)),
        path=row.path,
        node_id=row.node_id,
        node_type=row.node_type,
        status=states.NodeStatus(row.status),
        skip_reason=states.SkipReason(row.skip_reason) if row.skip_reason else None,
        attempt=row.attempt,
        retry_count=max(0, row.attempt - 1),
        started_at=row.started_at,
        completed_at=row.completed_at,
        duration=duration(row.started_at, row.completed_at),
        due_at=row.due_at,
        output=row.output,
        output_artifact=output_artifact(row.output_artifact),
        error=stored_failure(row.error, actor),
        progress=NodeProgress(**done) if done else None,
        resource_usage=resource_usage(row.usage),
        worker=row.worker,
        last_seq=row.last_seq,
        cached=bool(row.cached),
        iteration=iteration(row.path),
        instance_id=row.instance_id,
        awaited=waits,
        state=None if isinstance(row, Pending) else _standing(row, waits),
    )


def iteration(path: str) -> int | None:
    """Which iteration of its loop: ``resize[3]/encode`` is in iteration 3."""
    loop = path.rpartition("/")[0].rpartition("/")[2]
    number = loop.rpartition("[")[2].removesuffix("]")
    return int(number) if loop.endswith("]") and number.isdecimal() else None


def _standing(row: keyset.Record, waits: e.Awaited | None) -> NodeState:
    state = slim_state(row)
    state.due, state.error, state.awaited = row.due_at, _flow_failure(row.error), waits
    return state


def duration(start: datetime | None, end: datetime | None) -> timedelta | None:
    """How long something took, once it has ended; never negative, even where two hosts' clocks differ."""
    return max(end - start, timedelta(0)) if start is not None and end is not None else None


async def _definition_node(info: Info, instance_id: str, path: str) -> DefinitionNode | None:
    load = info.context.load
    row = await load.instance.load(instance_id)
    graph = await load.graph.load(row.version_id) if row is not None else None
    inner = graph_at(graph, path) if graph is not None else None
    return inner.nodes.get(path.rpartition("/")[2]) if inner is not None else None


async def _input(info: Info, instance_id: str, node_id: str, path: str) -> Any:
    load = info.context.load
    row = await load.instance.load(instance_id)
    graph = await load.graph.load(row.version_id) if row is not None else None
    if row is None or graph is None or path != node_id or node_id not in graph.nodes:
        return None
    given = [
        recorded.event.value
        for recorded in await load.events.load(Events(instance_id, 0, MOST_VALUES, "debug.value_set"))
        if isinstance(recorded.event, e.ValueSet) and recorded.event.what == "input" and recorded.event.path == path
    ]
    if given:
        return given[-1]
    edges = graph.incoming[node_id]
    if not edges:
        return row.input
    wanted = {edge.source for edge in edges} | {path}
    outcomes = [each for each in await load.outcomes.load(instance_id) if each.path in wanted]
    sizes = [each.output_artifact["size"] for each in outcomes if each.output_artifact and each.path != path]
    if sum(sizes) > LARGEST_INPUT:
        return None
    nodes = {each.path: await _state(info, each) for each in outcomes if each.path != path or each.started_seq}
    try:
        return planner.node_input(graph, nodes, row.input, node_id)
    except ExpressionError:
        return None


async def _state(info: Info, row: keyset.Record) -> NodeState:
    output = row.output
    if row.output_artifact:
        output = await artifact_json(info.context.engine, row.output_artifact)
    return NodeState(
        ordinal=row.ordinal,
        status=states.NodeStatus(row.status),
        output=output,
        error=_flow_failure(row.error),
        started_seq=row.started_seq,
        last_seq=row.last_seq,
    )


def _flow_failure(error: Mapping[str, Any] | None) -> FlowFailure | None:
    return None if error is None else msgspec.convert(error, FlowFailure)


# ---- node types -----------------------------------------------------------------------------------------------

strawberry.enum(Placement, name="NodePlacement", description="Where a node type's handler runs.")


@strawberry.type(description="What a node needs while it runs; null: no wish.")
class Resources:
    """See ``flow.definition.Resources``."""

    cpu: int | None = field(description="Millicores.")
    memory: int | None = field(description="Megabytes.")
    gpu: int | None = field(description="Graphics cards.")


@strawberry.type(description="A kind of node: everything that is needed to draw its form and to explain it.")
class NodeType:
    """See ``engine.nodes.contract.NodeType``."""

    name: str = field(description="What a definition's node says as its `type`, such as image/preprocess.")
    title: str = field(description="Its name for people.")
    description: str = field(description="What it does.")
    category: str = field(description="The family it belongs to, such as image.")
    icon: str = field(description="The name of its icon (of the Lucide set).")
    version: SemVer = field(description="The handler's version.")
    parameters_schema: JSON = field(description="The JSON Schema of its parameters.")
    output_schema: JSON | None = field(description="The JSON Schema of its output, if it declares one.")
    placement: Placement = field(description="Where it runs.")
    resources: Resources = field(description="What it needs if a node does not say otherwise.")
    unavailable: str | None = field(description="Why it can't run here, if it can't; null: it can.")


def node_type(kind: EngineNodeType) -> NodeType:
    """A registered type as the schema shows it."""
    needs = kind.resources
    return NodeType(
        name=kind.name,
        title=kind.title,
        description=kind.description,
        category=kind.category,
        icon=kind.icon,
        version=SemVer(kind.version),
        parameters_schema=cast(JSON, kind.parameters_schema),
        output_schema=cast(JSON | None, kind.output_schema),
        placement=kind.placement,
        resources=Resources(cpu=needs.cpu, memory=needs.memory, gpu=needs.gpu),
        unavailable=kind.unavailable,
    )
