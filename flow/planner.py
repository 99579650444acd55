"""What to do next: the decisions of a run, and nothing else.

``Graph`` is a definition prepared for asking. ``Run`` is one instance under way: it takes events in and keeps, for
each node, how its incoming edges have settled, so that planning costs what *changed*, not what *is*.
``plan(graph, snapshot, now)`` asks the same of a snapshot from scratch; tests hold the two against each other.

A run ends in one of four modes. Only the first starts ordinary nodes; in the others every node that would have
started is skipped instead (INSTANCE_ENDED), so that all edges settle, by the same table, and the run drains:

* none      — work as usual, then COMPLETED
* failing   — a ``fail_on_error`` node failed: siblings are cancelled, clean-up nodes still run, then FAILED
* canceling — then CANCELED
* late      — the deadline passed: then TIMED_OUT
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, StrEnum
from itertools import chain, islice
from typing import Any, assert_never

import msgspec

from flow import events as e
from flow import expressions, mapping, retry
from flow.actions import Action, Begin, Cancel, End, Fail, Skip, Start
from flow.definition import Definition, Edge, Join, Node, On
from flow.errors import Category, Failure
from flow.expressions import ExpressionError
from flow.history import NodeState, Snapshot
from flow.states import InstanceStatus, NodeStatus, SkipReason

# ---- the graph ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Graph:
    """A definition with its edges indexed. ``lanes`` names, per node, the pool of places that it runs in."""

    definition: Definition
    nodes: Mapping[str, Node]
    incoming: Mapping[str, tuple[Edge, ...]]
    outgoing: Mapping[str, tuple[Edge, ...]]
    lanes: Mapping[str, str]


def prepare(definition: Definition, lane: Callable[[Node], str] = lambda node: "default") -> Graph:
    """The graph of a valid definition."""
    incoming: dict[str, list[Edge]] = {node.id: [] for node in definition.nodes}
    outgoing: dict[str, list[Edge]] = {node.id: [] for node in definition.nodes}
    for edge in definition.edges:
        incoming[edge.target].append(edge)
        outgoing[edge.source].append(edge)
    return Graph(
        definition=definition,
        nodes={node.id: node for node in definition.nodes},
        incoming={id: tuple(edges) for id, edges in incoming.items()},
        outgoing={id: tuple(edges) for id, edges in outgoing.items()},
        lanes={node.id: lane(node) for node in definition.nodes},
    )


# ---- edges ----------------------------------------------------------------------------------------------------


class Settled(StrEnum):
    """To what an edge settled, once."""

    LIVE = "live"
    DEAD = "dead"
    FAILED = "failed"


def settle(edge: Edge, source: NodeState) -> Settled:
    """To what the edge settles, its source having ended. Raises ExpressionError if its condition can't be evaluated."""
    match source.status:
        case NodeStatus.COMPLETED:
            followed = edge.on is not On.FAILURE
        case NodeStatus.FAILED:
            if edge.on is On.SUCCESS:
                return Settled.FAILED
            followed = True
        case _:  # SKIPPED, and CANCELED when a run ends early: nothing comes this way any more
            return Settled.DEAD
    if followed and edge.condition is not None:
        followed = expressions.truthy(expressions.search(edge.condition, outcome(source)))
    return Settled.LIVE if followed else Settled.DEAD


def outcome(state: NodeState) -> Any:
    """What an edge's condition and mapping see of its source: its output, or ``{error: …}`` where it failed."""
    if state.status is NodeStatus.FAILED and state.error is not None:
        return {"error": msgspec.to_builtins(state.error)}
    return state.output


@dataclass(slots=True)
class Tally:
    """How a node's incoming edges have settled so far; ``skipped`` of the dead ones came from skipped nodes."""

    total: int
    live: int = 0
    dead: int = 0
    failed: int = 0
    skipped: int = 0
    rescued: bool = False
    #: Edges whose condition could not be evaluated, and the first one's error.
    broken: int = 0
    error: Failure | None = None

    @property
    def settled(self) -> bool:
        """True when no edge is open any more."""
        return self.live + self.dead + self.failed + self.broken == self.total


class Verdict(Enum):
    """What a join says."""

    WAIT = "wait"
    START = "start"
    SKIP = "skip"
    FAIL = "fail"


def verdict(join: Join, tally: Tally) -> Verdict:
    """Whether a node with this join starts, given how its edges settled; final as soon as it isn't WAIT.

    Only what starts a node at its first live or failed edge is decided before all edges have settled, so that
    the order in which they do never makes a difference.
    """
    match join:
        case Join.ANY if tally.live:
            return Verdict.START
        case Join.ONE_FAILED if tally.failed:
            return Verdict.START
        case _ if not tally.settled:
            return Verdict.WAIT
        case _ if tally.broken:
            return Verdict.FAIL
        case Join.ALL:
            starts = tally.live > 0 and tally.failed == 0
        case Join.ALL_LIVE:
            starts = tally.live == tally.total
        case Join.ALL_DONE:
            starts = True
        case Join.NONE_FAILED:
            starts = tally.failed == 0
        case Join.ANY | Join.ONE_FAILED:
            starts = False
        case _:
            assert_never(join)
    return Verdict.START if starts or tally.total == 0 else Verdict.SKIP


def skip_reason(tally: Tally) -> SkipReason:
    """Why a node whose join said SKIP is skipped."""
    if tally.failed:
        return SkipReason.UPSTREAM_FAILED
    return SkipReason.UPSTREAM_SKIPPED if tally.skipped == tally.dead else SkipReason.CONDITION


# ---- limits --------------------------------------------------------------------------------------------------

#: An instance with more events than this fails: its history would no longer fit where it is replayed.
MAX_EVENTS = 50_000
_TOO_MANY_EVENTS = Failure(
    code="EVENT_LIMIT",
    category=Category.RESOURCE,
    message=f"The instance has more than {MAX_EVENTS:,} events. Split the work over several workflows, or log less.",
)


class Mode(Enum):
    """How a run is going to end, see the module's header."""

    NONE = "none"
    FAILING = "failing"
    CANCELING = "canceling"
    LATE = "late"


# ---- the run --------------------------------------------------------------------------------------------------


class Run:
    """One instance under way. Feed it every event (``apply``), ask it what to do (``plan``).

    ``plan`` changes nothing: until an event answers an action, the action is planned again.
    """

    __slots__ = (
        "_aborted",
        "_begun",
        "_due",
        "_failed_seq",
        "_open",
        "_ready",
        "_tallies",
        "failure",
        "graph",
        "snapshot",
    )

    def __init__(self, graph: Graph, events: Iterable[e.Recorded] = ()) -> None:
        self.graph = graph
        self.snapshot = Snapshot()
        self.failure: Failure | None = None
        self._failed_seq = 0
        #: Not even clean-up nodes are started any more.
        self._aborted = False
        #: Some node was started, so that the queue timeout is met.
        self._begun = False
        self._tallies = {id: Tally(total=len(edges)) for id, edges in graph.incoming.items()}
        #: Nodes that have not ended.
        self._open = len(graph.nodes)
        #: Pending nodes whose verdict is not WAIT, in the order in which it fell; by lane.
        self._ready: dict[str, dict[str, None]] = {lane: {} for lane in graph.lanes.values()}
        #: Pending nodes that are to be skipped or failed.
        self._due: dict[str, None] = {}
        for id, tally in self._tallies.items():
            if tally.total == 0:
                self._ready[graph.lanes[id]][id] = None
        for recorded in events:
            self.apply(recorded)

    def apply(self, recorded: e.Recorded) -> None:
        """Take one more event in, and settle what follows from it. Raises as ``Snapshot.apply`` does."""
        self.snapshot.apply(recorded)
        if recorded.seq == MAX_EVENTS:
            self.abort(_TOO_MANY_EVENTS)
        match recorded.event:
            case e.NodeStarted(path=path):
                self._begun = True
                self._ready[self.graph.lanes[path]].pop(path, None)
            case e.NodeCompleted(path=path) | e.NodeSkipped(path=path) | e.NodeCanceled(path=path):
                self._ended(path)
            case e.NodeFailed(path=path, error=error):
                if self.graph.nodes[path].fail_on_error and self.failure is None:
                    self.failure, self._failed_seq = error, recorded.seq
                self._ended(path)
            case _:
                pass

    def abort(self, failure: Failure) -> None:
        """The run fails now, with this failure, and nothing is started any more."""
        if not self.snapshot.status.terminal:
            self.failure, self._aborted, self._failed_seq = self.failure or failure, True, sys.maxsize

    def _ended(self, id: str) -> None:
        self._open -= 1
        self._ready[self.graph.lanes[id]].pop(id, None)
        self._due.pop(id, None)
        state = self.snapshot.nodes[id]
        for edge in self.graph.outgoing[id]:
            self._settle(edge, state)

    def _settle(self, edge: Edge, source: NodeState) -> None:
        target, tally = edge.target, self._tallies[edge.target]
        try:
            match settle(edge, source):
                case Settled.LIVE:
                    tally.live += 1
                    tally.rescued |= source.status is NodeStatus.FAILED
                case Settled.FAILED:
                    tally.failed += 1
                case Settled.DEAD:
                    tally.dead += 1
                    tally.skipped += (
                        source.status is not NodeStatus.COMPLETED and source.status is not NodeStatus.FAILED
                    )
        except ExpressionError as error:
            tally.broken += 1
            tally.error = tally.error or msgspec.structs.replace(
                error.failure(target),
                message=f"The condition of the edge {edge.source} → {target} failed: {error.message}",
            )
        if target in self.snapshot.nodes and self.snapshot.nodes[target].status is not NodeStatus.PENDING:
            return
        match verdict(self.graph.nodes[target].join, tally):
            case Verdict.START:
                self._ready[self.graph.lanes[target]][target] = None
            case Verdict.SKIP | Verdict.FAIL:
                self._due[target] = None
            case Verdict.WAIT:
                pass

    # -- questions

    def mode(self, now: datetime) -> Mode:
        """How the run is going to end, as far as is known now."""
        if self.snapshot.cancel is not None:
            return Mode.CANCELING
        if self.failure is not None:
            return Mode.FAILING
        deadline = self._deadline()
        return Mode.LATE if deadline is not None and now >= deadline[0] else Mode.NONE

    def wake_at(self, after: datetime | None = None) -> datetime | None:
        """When to plan again if nothing happens before: the next retry or deadline. None: only an event can help.

        ``after`` is when was planned last: what was due by then has been planned and is waited for otherwise.
        """
        instants = [due for id in self.snapshot.retrying if (due := self.snapshot.nodes[id].due) is not None]
        if (deadline := self._deadline()) is not None and not self.snapshot.status.terminal:
            instants.append(deadline[0])
        return min((instant for instant in instants if after is None or instant > after), default=None)

    def held_up(self, now: datetime) -> set[str]:
        """The lanes whose room keeps a node from starting: to be asked when all that was planned is history."""
        if self.snapshot.status.terminal:
            return set()
        lanes = {lane for lane, ready in self._ready.items() if ready}
        for id in self.snapshot.retrying:
            due = self.snapshot.nodes[id].due
            if due is not None and due <= now:
                lanes.add(self.graph.lanes[id])
        return lanes

    def _deadline(self) -> tuple[datetime, Failure] | None:
        created = self.snapshot.created
        if created is None or self.snapshot.created_at is None:
            return None
        limits: list[tuple[timedelta, str, str]] = []
        if created.timeout is not None:
            limits.append((created.timeout, "EXECUTION_TIMEOUT", "The instance did not end in time"))
        if created.queue_timeout is not None and not self._begun:
            limits.append((created.queue_timeout, "QUEUE_TIMEOUT", "No node of the instance was started in time"))
        if not limits:
            return None
        limit, code, sentence = min(limits)
        failure = Failure(code=code, category=Category.TIMEOUT, message=f"{sentence} ({limit.total_seconds():g} s).")
        return self.snapshot.created_at + limit, failure

    def plan(self, now: datetime, room: Mapping[str, int] | None = None) -> list[Action]:
        """Everything to be done now; empty when there is nothing but to wait (or nothing any more).

        ``room`` bounds how many nodes may be started per lane. The order of siblings carries no meaning.
        """
        snapshot = self.snapshot
        if snapshot.created is None or snapshot.status.terminal:
            return []
        mode = self.mode(now)
        if snapshot.status is InstanceStatus.PENDING and mode is Mode.NONE:
            return [Begin()]
        if self._open == 0:
            return [End(self._end(mode))]
        actions: list[Action] = []
        for id in self._due:
            tally = self._tallies[id]
            actions.append(Fail(id, tally.error) if tally.error is not None else Skip(id, skip_reason(tally)))
        if mode is not Mode.NONE:
            actions.extend(self._drain(mode))
        again: dict[str, list[Start]] = {}
        for id in sorted(snapshot.retrying):
            state = snapshot.nodes[id]
            if state.due is not None and state.due <= now and not self._stops(mode, state):
                again.setdefault(self.graph.lanes[id], []).append(Start(id, state.attempt + 1))
        for lane, ready in self._ready.items():
            free = None if room is None else max(0, room.get(lane, 0))
            first = (Start(id, 1) for id in ready if mode is Mode.NONE or self._cleans_up(mode, id))
            actions.extend(islice(chain(again.get(lane, ()), first), free))
        return actions

    def _drain(self, mode: Mode) -> Iterable[Action]:
        """Ending early: stop what runs, and skip what would have started."""
        for id in sorted(self.snapshot.running | self.snapshot.retrying):
            if self._stops(mode, self.snapshot.nodes[id]):
                yield Cancel(id)
        for ready in self._ready.values():
            for id in ready:
                if not self._cleans_up(mode, id):
                    yield Skip(id, SkipReason.INSTANCE_ENDED)

    def _stops(self, mode: Mode, state: NodeState) -> bool:
        """A failing run stops what began before the failure; what began after it is cleaning up."""
        return mode in (Mode.CANCELING, Mode.LATE) or (mode is Mode.FAILING and state.started_seq < self._failed_seq)

    def _cleans_up(self, mode: Mode, id: str) -> bool:
        """A failing run still starts what is there for the bad case: by its join, or reached from a failed node."""
        join = self.graph.nodes[id].join
        return (
            mode is Mode.FAILING
            and not self._aborted
            and (join in (Join.ONE_FAILED, Join.ALL_DONE) or self._tallies[id].rescued)
        )

    def _end(self, mode: Mode) -> e.InstanceCompleted | e.InstanceFailed | e.InstanceCanceled | e.InstanceTimedOut:
        match mode:
            case Mode.CANCELING:
                return e.InstanceCanceled(reason=self.snapshot.cancel.reason if self.snapshot.cancel else None)
            case Mode.FAILING:
                assert self.failure is not None
                return e.InstanceFailed(error=self.failure)
            case Mode.LATE:
                deadline = self._deadline()
                assert deadline is not None
                return e.InstanceTimedOut(error=deadline[1])
            case Mode.NONE:
                try:
                    return e.InstanceCompleted(output=output(self.graph, self.snapshot))
                except ExpressionError as error:
                    return e.InstanceFailed(error=error.failure())
            case _:
                assert_never(mode)

    def conclude(self, path: str, failure: Failure, usage: e.Usage | None, now: datetime, draw: float) -> e.AnyEvent:
        """What a failed attempt becomes: a retry with its due time, or the node's failure. ``draw``: [-1, 1]."""
        state, node = self.snapshot.nodes[path], self.graph.nodes[path]
        failure = msgspec.structs.replace(failure, node_id=path, attempt=state.attempt)
        decision = retry.decide(
            node.retry,
            failure,
            failures=state.attempt - state.lost,
            first_start=state.first_start or now,
            now=now,
            draw=draw,
        )
        match decision:
            case retry.Again(at):
                return e.NodeRetrying(path=path, attempt=state.attempt, error=failure, due=at)
            case retry.GiveUp():
                return e.NodeFailed(path=path, attempt=state.attempt, error=failure, usage=usage)
            case _:
                assert_never(decision)

    def lost(self, path: str) -> e.AnyEvent:
        """What becomes of a node whose worker died in the middle of it, by its ``on_lost``."""
        state = self.snapshot.nodes[path]
        if self.graph.nodes[path].on_lost == "retry":
            return e.NodeLost(path=path, attempt=state.attempt, worker=state.worker)
        message = "The worker died in the middle of this node, and `on_lost: fail` forbids running it again."
        failure = Failure(
            code="WORKER_LOST", category=Category.WORKER_LOST, message=message, node_id=path, attempt=state.attempt
        )
        return e.NodeFailed(path=path, attempt=state.attempt, error=failure)


def plan(graph: Graph, events: Iterable[e.Recorded], now: datetime) -> list[Action]:
    """What to do after these events, worked out from the first of them on."""
    return Run(graph, events).plan(now)


# ---- data -----------------------------------------------------------------------------------------------------


def node_input(graph: Graph, nodes: Mapping[str, NodeState], instance_input: Any, id: str) -> Any:
    """What a node gets: an entry node the instance's input, another the outputs of its live sources in edge order.

    It is derived and never stored, so a large output costs nothing more however many nodes it fans out to.
    A node that starts because something failed gets ``{error: …}`` of what failed.
    Raises ExpressionError if a condition or a mapping can't be evaluated.
    """
    edges = graph.incoming[id]
    if not edges:
        return instance_input
    parts: list[tuple[Mapping[str, Any], Any]] = []
    failed: list[tuple[Mapping[str, Any], Any]] = []
    # What a join didn't wait for is no input of its node, and every attempt gets the same.
    started = nodes[id].started_seq if id in nodes else sys.maxsize
    for edge in edges:
        source = nodes.get(edge.source)
        if source is None or not source.status.terminal or source.last_seq > started:
            continue
        match settle(edge, source):
            case Settled.LIVE:
                parts.append((edge.mapping, outcome(source)))
            case Settled.FAILED:
                failed.append((edge.mapping, outcome(source)))
            case Settled.DEAD:
                pass
    return mapping.merged(parts or failed)


def node_scope(run: Run, input: Any, instance: Mapping[str, Any], project: Mapping[str, Any]) -> Any:
    """What a node's expressions see (``flow.expressions.scope``)."""
    return expressions.scope(
        input=input,
        trigger=trigger_view(run.snapshot),
        nodes=views(run.snapshot),
        parameters=run.graph.definition.parameters,
        instance=instance,
        project=project,
    )


def trigger_view(snapshot: Snapshot) -> dict[str, Any]:
    """What ``trigger`` holds: ``date`` (of the start, UTC, ``2026-11-21``), the payload's keys over it, and over all
    of them ``type``, ``id`` and the whole ``payload``.
    """
    if snapshot.created is None or snapshot.created_at is None:
        return {}
    trigger = snapshot.created.trigger
    view: dict[str, Any] = {"date": snapshot.created_at.date().isoformat()}
    if isinstance(trigger.payload, dict):
        view |= trigger.payload
    return view | {"type": trigger.type, "id": trigger.id, "payload": trigger.payload}


def views(snapshot: Snapshot) -> expressions.Nodes:
    """``nodes`` of a scope, each looked up when an expression asks for it."""

    def view(id: str) -> dict[str, Any] | None:
        state = snapshot.nodes.get(id)
        if state is None:
            return None
        found = expressions.node_view(state.output, state.status.value, state.status is NodeStatus.SKIPPED)
        if state.error is not None:
            found["error"] = msgspec.to_builtins(state.error)
        return found

    return expressions.Nodes(snapshot.nodes.keys(), view)


def output(graph: Graph, snapshot: Snapshot) -> Any:
    """The instance's output: by ``output_mapping``, or else the outputs of the terminal nodes by node id.

    Raises ExpressionError if the mapping can't be evaluated.
    """
    if graph.definition.output_mapping:
        created = snapshot.created
        scope = expressions.scope(
            input=created.input if created else None,
            trigger=trigger_view(snapshot),
            nodes=views(snapshot),
            parameters=graph.definition.parameters,
        )
        return mapping.apply(graph.definition.output_mapping, scope)
    return {
        id: state.output
        for id, state in snapshot.nodes.items()
        if not graph.outgoing.get(id) and state.status is NodeStatus.COMPLETED
    }
