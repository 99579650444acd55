"""Why a node isn't running, as the schema shows it: one type for each reason of ``flow.blocked``."""

from __future__ import annotations

from datetime import datetime
from enum import Enum
from typing import Annotated, Any, assert_never

import msgspec
import strawberry
from strawberry import field

from db.store import keyset
from engine.access import Actor
from engine.workers import Workers
from flow import blocked, states
from flow import events as e
from flow.events import PauseReason, Phase
from flow.graph import Graph, split
from flow.history import NodeState
from graph.objects import Failure, choice, failure
from graph.permissions import Info, caller
from graph.waiting import Approval, ChildInstance, Signal, Timer, awaited


@strawberry.type(description="Waits for nodes before it that have not ended; its join decides when they have.")
class UpstreamNodes:
    """See ``flow.blocked.UpstreamNodes``."""

    paths: list[str] = field(description="Those nodes' places in the run.")


@strawberry.type(description="The last attempt failed, and the next one has its time.")
class RetryDelay:
    """See ``flow.blocked.RetryDelay``."""

    until: datetime | None = field(description="When the next attempt is due.")
    attempt: int = field(description="The next attempt's number.")
    last_error: Failure | None = field(description="Why the last attempt failed; null: its worker died.")


@strawberry.type(description="A debugger stopped the run at this node: go on by `debugStep` or `debugContinue`.")
class Breakpoint:
    """See ``flow.blocked.Breakpoint``."""

    pause_reason: PauseReason = field(description="A breakpoint or a step.")
    phase: Phase = field(description="On which side of the node.")


@strawberry.type(description="The whole run is paused.")
class Paused:
    """See ``flow.blocked.Paused``."""

    pause_reason: PauseReason = field(description="Why.")
    by: str | None = field(description="Who paused it: a user's id.")
    stopped_at: str | None = field(description="The node that a debugger stopped at.")


@strawberry.type(description="The run waits for its turn: as many runs with its key as may have not ended yet.")
class ConcurrencyKey:
    """See ``flow.blocked.ConcurrencyKey``."""

    key: str = field(description="The key, by the workflow's `concurrency`.")
    limit: int | None = field(description="How many runs with one key may be under way.")


@strawberry.enum(description="Whose limit of running instances is reached.")
class QuotaOwner(Enum):
    """See ``db.store.admission.Gate``."""

    WORKFLOW = choice("WORKFLOW", "The workflow's.")
    PROJECT = choice("PROJECT", "The project's.")


@strawberry.type(description="The run waits for its turn: as many runs as may are under way.")
class Quota:
    """See ``flow.blocked.Quota``."""

    of: QuotaOwner = field(description="Whose limit it is.")


@strawberry.type(description="Nothing but a free place on a worker is missing.")
class Place:
    """See ``flow.blocked.Place``."""

    lane: str = field(description="The kind of place, such as process.")


@strawberry.type(description="Offered to the workers that have what it needs; none of them has taken it yet.")
class WorkerLabels:
    """See ``flow.blocked.WorkerLabels``."""

    labels: list[str] = field(description="Labels that the worker must have.")
    gpus: int = field(description="Graphics cards that the worker must have free.")
    workers: int = field(description="How many workers have all that and take work now; with 0, start one.")


BlockedBy = Annotated[
    UpstreamNodes
    | Timer
    | RetryDelay
    | Approval
    | Signal
    | ChildInstance
    | Breakpoint
    | Paused
    | ConcurrencyKey
    | Quota
    | Place
    | WorkerLabels,
    strawberry.union("BlockedBy", description="One reason why a node isn't running."),
]
Shown = (
    UpstreamNodes
    | Timer
    | RetryDelay
    | Approval
    | Signal
    | ChildInstance
    | Breakpoint
    | Paused
    | ConcurrencyKey
    | Quota
    | Place
    | WorkerLabels
)


def reason(held: blocked.Reason, actor: Actor, workers: Workers) -> Shown:
    """The reason as this caller may see it."""
    match held:
        case blocked.UpstreamNodes(paths=paths):
            return UpstreamNodes(paths=list(paths))
        case blocked.RetryDelay(until=until, attempt=attempt, error=error):
            last = None if error is None else failure(error, actor)
            return RetryDelay(until=until, attempt=attempt, last_error=last)
        case blocked.Timer(until=until):
            return Timer(until=until)
        case blocked.Approval(awaited=waits) | blocked.Signal(awaited=waits):
            return awaited(waits, actor)
        case blocked.ChildInstance(instance_id=instance_id):
            return ChildInstance(instance_id=strawberry.ID(instance_id))
        case blocked.Breakpoint(reason=why, phase=phase):
            return Breakpoint(pause_reason=why, phase=phase)
        case blocked.Paused(reason=why, by=by, path=path):
            return Paused(pause_reason=why, by=by, stopped_at=path)
        case blocked.ConcurrencyKey(key=key, limit=limit):
            return ConcurrencyKey(key=key, limit=limit)
        case blocked.Quota(of=of):
            return Quota(of=QuotaOwner(of))
        case blocked.Place(lane=lane):
            return Place(lane=lane)
        case blocked.WorkerLabels(labels=labels, gpus=gpus):
            fitting = sum(worker.fits(labels, gpus) for worker in workers.live())
            return WorkerLabels(labels=list(labels), gpus=gpus, workers=fitting)
        case _:
            assert_never(held)


async def blocked_by(info: Info, instance_id: str, path: str, state: NodeState | None) -> list[Shown]:
    """Every reason why the node isn't running, put together from rows. ``state`` is None before its first event."""
    load = info.context.load
    row = await load.instance.load(instance_id)
    if row is None or states.InstanceStatus(row.status).terminal:
        return []
    graph = await load.graph.load(row.version_id)
    inner = None if graph is None else graph_at(graph, path)
    scope, id = split(path)
    if inner is None or id not in inner.nodes:
        return []
    nodes: dict[str, NodeState] = {} if state is None else {path: state}
    if state is None or state.status is states.NodeStatus.PENDING:
        sources = list(dict.fromkeys(scope + edge.source for edge in inner.incoming[id]))
        found = await load.state.load_many([(instance_id, source) for source in sources])
        nodes |= {each.path: slim_state(each) for each in found if each is not None}
    paused = None
    if row.status == states.InstanceStatus.PAUSED:
        last = await load.newest.load((instance_id, "instance.paused"))
        paused = last.event if last is not None and isinstance(last.event, e.InstancePaused) else None
    held = blocked.blocked_by(inner, nodes, path, paused=paused, gate=_gate(row))
    actor = caller(info)
    return [reason(each, actor, info.context.engine.workers) for each in held]


def _gate(row: keyset.Record) -> blocked.ConcurrencyKey | blocked.Quota | None:
    if row.gate is None:
        return None
    if row.gate == "KEY":
        return blocked.ConcurrencyKey(row.concurrency_key or "", row.concurrency_limit)
    return blocked.Quota(row.gate)


def graph_at(graph: Graph, path: str) -> Graph | None:
    """The graph that the node at this path belongs to: in a loop its body."""
    try:
        return graph.within(split(path)[0])
    except KeyError:
        return None


def slim_state(row: keyset.Record) -> NodeState:
    """How a node stands, without what it gave."""
    said: Any = row.progress
    progress = None
    if said:
        progress = e.NodeProgress(row.path, row.attempt, said["done"], said.get("total"), said.get("message"))
    return NodeState(
        ordinal=row.ordinal,
        status=states.NodeStatus(row.status),
        attempt=row.attempt,
        skip_reason=row.skip_reason,
        first_start=row.started_at,
        started_at=row.started_at,
        completed_at=row.completed_at,
        started_seq=row.started_seq,
        last_seq=row.last_seq,
        progress=progress,
    )


def stored_awaited(waits: Any) -> e.Awaited | None:
    """What a row says its node waits for."""
    return None if waits is None else msgspec.convert(waits, e.Awaited)
