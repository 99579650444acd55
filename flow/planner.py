"""What to do next: the decisions of a run, and nothing else.

``Run`` is one instance under way: it takes events in and keeps, for each node, how its incoming edges have settled, so
that planning costs what *changed*, not what *is*. ``plan(graph, events, now)`` asks the same from scratch; tests hold
the two against each other.

A run ends in one of four modes. Only the first starts ordinary nodes; in the others every node that would have
started is skipped instead (INSTANCE_ENDED), so that all edges settle, by the same table, and the run drains:

* none      — work as usual, then COMPLETED
* failing   — a ``fail_on_error`` node failed: siblings are cancelled, clean-up nodes still run, then FAILED
* canceling — then CANCELED
* late      — the deadline passed: then TIMED_OUT

An iteration of a loop is a run in small (``flow.scopes``): it fails and drains in the same way, by itself. Iterations
are opened and closed while events are taken in, never by an event of their own, so that a replay does the same.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from itertools import chain, islice
from typing import Any, assert_never

import msgspec

from flow import control, controls, expressions, mapping, retry
from flow import events as e
from flow.actions import Action, Begin, Cancel, Complete, End, Fail, Pause, Skip, Start
from flow.definition import Join, Node
from flow.errors import Category, Failure
from flow.expressions import ExpressionError
from flow.graph import Graph, prepare, split
from flow.history import NodeState, Snapshot
from flow.joins import Tally, Verdict, skip_reason, verdict
from flow.scopes import Loop, Scope
from flow.states import InstanceStatus, NodeStatus, SkipReason
from flow.timers import Timers
from flow.views import last_outputs, node_input, node_views, parameters_view, trigger_view

__all__ = ["MAX_EVENTS", "Action", "Graph", "Mode", "Names", "Run", "node_input", "plan", "prepare"]

#: An instance with more events than this fails: its history would no longer fit where it is replayed.
MAX_EVENTS = 50_000
_TOO_MANY_EVENTS = Failure(
    code="EVENT_LIMIT",
    category=Category.RESOURCE,
    message=f"The instance has more than {MAX_EVENTS:,} events. Split the work over several workflows, or log less.",
)

Changed = list[tuple[str, NodeState]]


class Mode(Enum):
    """How a run is going to end, see the module's header."""

    NONE = "none"
    FAILING = "failing"
    CANCELING = "canceling"
    LATE = "late"


@dataclass(frozen=True, slots=True)
class Names:
    """What a run is called outside of it, for the expressions that ask."""

    instance_id: str = ""
    workflow_name: str = ""
    project_id: str = ""


class Run:
    """One instance under way. Feed it every event (``apply``), ask it what to do (``plan``).

    ``plan`` changes nothing: until an event answers an action, the action is planned again.
    """

    __slots__ = (
        "_aborted",
        "_begun",
        "_broken",
        "_due",
        "_ending",
        "_finished",
        "_halts",
        "_loops",
        "_pinned",
        "_pins",
        "_ready",
        "_root",
        "_scopes",
        "_stopping",
        "_timers",
        "_undecided",
        "called",
        "executing",
        "graph",
        "snapshot",
    )

    def __init__(self, graph: Graph, events: Iterable[e.Recorded] = (), called: Names = Names()) -> None:
        self.graph = graph
        self.snapshot = Snapshot()
        self.called = called
        #: Nodes whose handlers are at work.
        self.executing: set[str] = set()
        #: Not even clean-up nodes are started any more.
        self._aborted = False
        #: Some node was started, so that the queue timeout is met.
        self._begun = False
        #: By prefix.
        self._scopes: dict[str, Scope] = {}
        #: By path, from the loop's start until it is completed, or its run is over.
        self._loops: dict[str, Loop] = {}
        #: Pending nodes that may start, in the order in which that fell; by lane.
        self._ready: dict[str, dict[str, None]] = {lane: {} for lane in sorted(graph.every_lane() | {controls.LANE})}
        #: The same with a pin.
        self._pinned: dict[str, None] = {}
        self._pins: dict[str, Any] = {}
        #: Pending nodes that are to be skipped or failed.
        self._due: dict[str, None] = {}
        #: Control nodes that have started and not said what they do; loops with nothing more to open; and those that
        #: can't do it.
        self._undecided: dict[str, None] = {}
        self._finished: dict[str, None] = {}
        self._broken: dict[str, Failure] = {}
        #: Scopes with a failure of their own (prefixes), and loops that a failed iteration stops (paths).
        self._ending: dict[str, None] = {}
        self._stopping: dict[str, None] = {}
        #: Nodes that have ended at a breakpoint.
        self._halts: dict[str, None] = {}
        self._timers = Timers()
        self._root = Scope(graph)
        self._open_scope(self._root)
        for recorded in events:
            self.apply(recorded)

    # ---- events

    def apply(self, recorded: e.Recorded) -> Changed:
        """Take one more event in, and settle what follows from it. Gives the nodes that it changed: their states are
        to be kept by whoever needs them, an iteration's are dropped with it. Raises as ``Snapshot.apply`` does.
        """
        event, seq = recorded.event, recorded.seq
        before = self._status(event.path) if isinstance(event, e.ValueSet) else None
        self.snapshot.apply(recorded)
        if seq == MAX_EVENTS:
            self.abort(_TOO_MANY_EVENTS)
        match event:
            case e.NodeEvent(path=path):
                state = self.snapshot.nodes[path]
                self._follow(event, path, state, seq)
                return [(path, state)]
            case e.InstanceCreated(pins=pins):
                self._pins = {pin.path: pin.output for pin in pins}
                self._ask_for_pins()
            case e.InstancePaused(path=str(path), phase=e.Phase.AFTER):
                self._halts.pop(path, None)
            case e.ApprovalAnswered(path=path) | e.ChildEnded(path=path):
                return [(path, self.snapshot.nodes[path])] if path in self.snapshot.nodes else []
            case e.ValueSet(path=path, what=what):
                state = self.snapshot.nodes[path]
                if what == "output":
                    self._output_set(path, state, before, seq)
                return [(path, state)]
            case e.InstanceReopened(reset=reset):
                self._reopen()
                return [(path, self.snapshot.nodes[path]) for path in reset]
            case _:
                pass
        return []

    def _follow(self, event: e.NodeEvent, path: str, state: NodeState, seq: int) -> None:
        match event:
            case e.NodeStarted():
                self._started(path)
            case e.NodeWaiting():
                self._undecided.pop(path, None)
                if state.due is not None:
                    self._timers.add(path, state.due)
            case e.NodeRetrying() | e.NodeLost():
                self.executing.discard(path)
                assert state.due is not None
                self._timers.add(path, state.due)
            case e.NodeCompleted() | e.NodeFailed() | e.NodeSkipped() | e.NodeCanceled():
                self._ended(path, state, seq)
            case _:
                pass

    def abort(self, failure: Failure) -> None:
        """The run fails now, with this failure, and nothing is started any more."""
        if not self.snapshot.status.terminal:
            root = self._root
            root.failure, self._aborted, root.failed_seq = root.failure or failure, True, sys.maxsize

    def _started(self, path: str) -> None:
        self._begun = True
        scope, id = self._locate(path)
        self._unready(scope, id)
        self._timers.discard(path)
        scope.active[id] = None
        node = scope.graph.nodes[id]
        if node.type == controls.LOOP:
            self._enter(scope, id)
        elif node.type in controls.PARAMETERS:
            self._undecided[path] = None
        else:
            self.executing.add(path)

    def _ended(self, path: str, state: NodeState, seq: int) -> None:
        scope, id = self._locate(path)
        self._begun |= state.status is not NodeStatus.SKIPPED
        self._leave(scope, id)
        scope.open -= 1
        match state.status:
            case NodeStatus.FAILED if scope.failure is None and scope.graph.nodes[id].fail_on_error:
                assert state.error is not None
                scope.failure, scope.failed_seq = state.error, seq
                if scope.loop is not None:
                    self._ending[scope.prefix] = None
            case NodeStatus.CANCELED:
                scope.interrupted = True
            case NodeStatus.SKIPPED if state.skip_reason == SkipReason.INSTANCE_ENDED:
                scope.interrupted = True
            case _:
                pass
        if path in self._loops and state.status is NodeStatus.COMPLETED:
            self._forget(path)
        ran = state.status in (NodeStatus.COMPLETED, NodeStatus.FAILED)
        if ran and self.snapshot.breakpoints and self._breaks(scope, id, e.Phase.AFTER):
            self._halts[path] = None
        for edge in scope.graph.outgoing[id]:
            scope.tallies[edge.target].count(edge, state)
            self._judge(scope, edge.target)
        if scope.open == 0 and scope.loop is not None:
            self._iteration_ended(scope, scope.loop)

    def _leave(self, scope: Scope, id: str) -> None:
        """The node is nowhere any more where something could be done with it."""
        path = scope.prefix + id
        self._unready(scope, id)
        scope.active.pop(id, None)
        scope.due.pop(id, None)
        self.executing.discard(path)
        self._timers.discard(path)
        for places in (self._due, self._undecided, self._finished, self._broken, self._stopping):
            places.pop(path, None)

    def _unready(self, scope: Scope, id: str) -> None:
        path = scope.prefix + id
        scope.ready.pop(id, None)
        self._ready[scope.graph.lanes[id]].pop(path, None)
        self._pinned.pop(path, None)

    def _judge(self, scope: Scope, id: str) -> None:
        """Ask the join of a pending node."""
        path = scope.prefix + id
        if (state := self.snapshot.nodes.get(path)) is not None and state.status is not NodeStatus.PENDING:
            return
        match verdict(scope.graph.nodes[id].join, scope.tallies[id]):
            case Verdict.START:
                scope.ready[id] = None
                if path in self._pins:
                    self._pinned[path] = None
                else:
                    self._ready[scope.graph.lanes[id]][path] = None
            case Verdict.SKIP | Verdict.FAIL:
                scope.due[id] = None
                self._due[path] = None
            case Verdict.WAIT:
                pass

    def _ask_for_pins(self) -> None:
        for id in list(self._root.ready):
            self._unready(self._root, id)
            self._judge(self._root, id)

    # ---- scopes

    def _open_scope(self, scope: Scope) -> None:
        """Begin with what the nodes' states say, so that a scope that was kept goes on where it was."""
        self._scopes[scope.prefix] = scope
        scope.failure, scope.failed_seq, scope.interrupted = None, 0, False
        scope.open = 0
        scope.ready.clear()
        scope.due.clear()
        scope.tallies = {id: Tally(total=len(edges)) for id, edges in scope.graph.incoming.items()}
        nodes, prefix = self.snapshot.nodes, scope.prefix
        for id, tally in scope.tallies.items():
            state = nodes.get(prefix + id)
            scope.open += state is None or not state.status.terminal
            if state is not None and state.status.terminal:
                for edge in scope.graph.outgoing[id]:
                    scope.tallies[edge.target].count(edge, state)
            elif tally.total == 0:
                self._judge(scope, id)
        if nodes:
            for id, tally in scope.tallies.items():
                if tally.total:
                    self._judge(scope, id)

    def _enter(self, scope: Scope, id: str) -> None:
        path = scope.prefix + id
        loop = self._loops.get(path)
        if loop is None:
            try:
                loop = self._loops[path] = control.enter(self, scope, id)
            except ExpressionError as error:
                self._broken[path] = error.failure(path)
                return
            except control.Refused as refused:
                self._broken[path] = msgspec.structs.replace(refused.failure, node_id=path)
                return
        else:  # failed, and runs again by hand
            loop.scope, loop.failure, loop.interrupted = scope, None, False
            loop.open, loop.kept = dict(sorted(loop.kept.items())), {}
            for iteration in loop.open.values():
                self._open_scope(iteration)
        self._advance(loop)

    def _advance(self, loop: Loop) -> None:
        """Open as many iterations as may be open; with none left, the loop is finished."""
        while (
            loop.failure is None and not loop.interrupted and len(loop.open) < loop.concurrency and self._has_next(loop)
        ):
            index = loop.next
            loop.next += 1
            scope = loop.open[index] = Scope(
                loop.body, f"{loop.path}[{index}]/", loop, index, control.names_of(loop, index)
            )
            self._open_scope(scope)
        if not loop.open:
            self._stopping.pop(loop.path, None)
            self._finished[loop.path] = None

    def _has_next(self, loop: Loop) -> bool:
        if loop.items is not None:
            return loop.next < len(loop.items)
        if loop.exhausted:
            return False
        try:
            if not control.goes_on(self, loop):
                loop.exhausted = True
            elif loop.next >= loop.max_iterations:
                what = f"The condition was still true after {loop.next:,} iterations"
                loop.failure = control.limit_reached(loop.path, loop.max_iterations, what)
        except ExpressionError as error:
            loop.failure = error.failure(loop.path)
        return not loop.exhausted and loop.failure is None

    def _iteration_ended(self, scope: Scope, loop: Loop) -> None:
        index = scope.index
        del loop.open[index]
        del self._scopes[scope.prefix]
        self._ending.pop(scope.prefix, None)
        failure = scope.failure
        if failure is None and not scope.interrupted:
            try:
                loop.last = loop.outputs[index] = control.iteration_output(self, scope)
            except ExpressionError as error:
                failure = error.failure(loop.path)
        if failure is not None and loop.collect:
            loop.failed[index] = failure
            loop.last = None
            self._drop(scope)
        elif failure is not None or scope.interrupted:
            loop.kept[index] = scope
            if failure is None:
                loop.interrupted = True
            elif loop.failure is None:
                loop.failure = control.iteration_failed(loop, index, failure)
                self._stopping[loop.path] = None
        else:
            self._drop(scope)
        self._advance(loop)

    def _drop(self, scope: Scope) -> None:
        """Nothing of the iteration is needed any more."""
        for id in scope.graph.nodes:
            path = scope.prefix + id
            self.snapshot.nodes.pop(path, None)
            if path in self._loops:
                self._forget(path)

    def _forget(self, path: str) -> None:
        for scope in self._loops.pop(path).kept.values():
            self._drop(scope)

    # ---- by hand

    def _output_set(self, path: str, state: NodeState, before: NodeStatus | None, seq: int) -> None:
        """A node has got its output from a debugger."""
        if before not in (NodeStatus.COMPLETED, NodeStatus.FAILED):
            self._ended(path, state, seq)
            return
        scope, id = self._locate(path)
        if path in self._loops:
            self._forget(path)
        if before is NodeStatus.FAILED:
            self._find_failure(scope)
        # Its edges settle anew: nothing behind it has started, or the value would have been refused.
        for target in dict.fromkeys(edge.target for edge in scope.graph.outgoing[id]):
            self._unready(scope, target)
            scope.due.pop(target, None)
            self._due.pop(scope.prefix + target, None)
            tally = scope.tallies[target] = Tally(total=len(scope.graph.incoming[target]))
            for edge in scope.graph.incoming[target]:
                source = self.snapshot.nodes.get(scope.prefix + edge.source)
                if source is not None and source.status.terminal:
                    tally.count(edge, source)
            self._judge(scope, target)

    def _find_failure(self, scope: Scope) -> None:
        failed = [
            (state.last_seq, state.error)
            for id, node in scope.graph.nodes.items()
            if node.fail_on_error and (state := self.snapshot.nodes.get(scope.prefix + id)) is not None
            if state.status is NodeStatus.FAILED and state.error is not None
        ]
        scope.failed_seq, scope.failure = min(failed, key=lambda found: found[0], default=(0, None))
        if scope.failure is None:
            self._ending.pop(scope.prefix, None)

    def reopening(self, asked: e.InstanceReopened) -> e.InstanceReopened:
        """The event by which a FAILED instance goes on: ``asked``, with every node that is PENDING again.

        Those are the named ones, every other failed node that the run could only fail by again, what was cancelled or
        skipped because the run ended, and what was skipped behind any of them. Of a loop, the iterations that were not
        completed go on.
        """
        reset: list[str] = []
        self._gather(self._root, asked.paths, reset)
        return msgspec.structs.replace(asked, reset=tuple(reset))

    def _gather(self, scope: Scope, named: tuple[str, ...], reset: list[str]) -> None:
        nodes, prefix = self.snapshot.nodes, scope.prefix
        again: dict[str, None] = {}
        for id, node in scope.graph.nodes.items():
            path = prefix + id
            if (state := nodes.get(path)) is None:
                continue
            match state.status:
                case NodeStatus.FAILED:
                    meant = any(name == path or name.startswith(f"{path}[") for name in named)
                    anew = node.fail_on_error or meant
                case NodeStatus.CANCELED:
                    anew = True
                case _:
                    anew = state.skip_reason == SkipReason.INSTANCE_ENDED
            if anew:
                again[id] = None
        behind = list(again)
        while behind:
            for edge in scope.graph.outgoing[behind.pop()]:
                target = nodes.get(prefix + edge.target)
                if target is not None and target.status is NodeStatus.SKIPPED and edge.target not in again:
                    again[edge.target] = None
                    behind.append(edge.target)
        for id in again:
            reset.append(prefix + id)
            if (loop := self._loops.get(prefix + id)) is not None:
                for kept in loop.kept.values():
                    self._gather(kept, named, reset)

    def _reopen(self) -> None:
        self._aborted = False
        self._halts.clear()
        self._due.clear()
        self._pinned.clear()
        for ready in self._ready.values():
            ready.clear()
        self._open_scope(self._root)

    def accepts(self, letter: e.AnyEvent) -> bool:
        """Whether this letter still means something; otherwise it is to be dropped, not recorded."""
        snapshot = self.snapshot
        if snapshot.status.terminal or snapshot.created is None:
            return isinstance(letter, e.InstanceReopened) and snapshot.status is InstanceStatus.FAILED
        match letter:
            case e.CancelRequested():
                return snapshot.cancel is None
            case e.InstancePaused():
                return snapshot.status is not InstanceStatus.PAUSED
            case e.InstanceResumed():
                return snapshot.status is InstanceStatus.PAUSED
            case e.InstanceReopened():
                return False
            case e.ApprovalAnswered(path=path):
                state = snapshot.nodes.get(path)
                return (
                    path in snapshot.waiting
                    and state is not None
                    and state.answer is None
                    and (isinstance(state.awaited, e.ForApproval))
                )
            case e.ChildEnded(path=path, instance_id=id):
                state = snapshot.nodes.get(path)
                return (
                    path in snapshot.waiting
                    and state is not None
                    and state.answer is None
                    and (state.awaited == e.ForChild(id))
                )
            case e.ValueSet(path=path, what=what):
                return self._may_set(path, what)
            case _:
                return True

    def _may_set(self, path: str, what: str) -> bool:
        prefix, id = split(path)
        scope = self._scopes.get(prefix)
        if scope is None or id not in scope.graph.nodes:
            return False
        status = self._status(path)
        if status in (NodeStatus.PENDING, NodeStatus.RETRYING):
            return True
        if what == "input" or status not in (NodeStatus.WAITING, NodeStatus.COMPLETED, NodeStatus.FAILED):
            return False
        if status is NodeStatus.WAITING:
            return True
        paused = self.snapshot.pause
        if status is NodeStatus.FAILED and (paused is None or (paused.path, paused.phase) != (path, e.Phase.AFTER)):
            return False
        return all(
            self._status(prefix + edge.target) is NodeStatus.PENDING for edge in scope.graph.outgoing[id]
        ) and not (scope.loop is None and self.snapshot.status.terminal)

    # ---- questions

    @property
    def failure(self) -> Failure | None:
        """Why the run is going to fail, if it is."""
        return self._root.failure

    def node(self, path: str) -> Node:
        """The node of this path."""
        return self.graph.node(path)

    def lane(self, path: str) -> str:
        """The pool of places that the node runs in."""
        prefix, id = split(path)
        return self.graph.within(prefix).lanes[id]

    def is_control(self, path: str) -> bool:
        """Whether the flow decides the node by itself: it is started, and no attempt is made of it."""
        return self.node(path).type in controls.PARAMETERS

    def scope_of(self, path: str) -> Scope | None:
        """The graph under way that the path is in; None for an iteration that isn't open."""
        return self._scopes.get(split(path)[0])

    def tally(self, path: str) -> Tally | None:
        """How the edges into the node have settled; None for an iteration that isn't open."""
        scope, (_, id) = self.scope_of(path), split(path)
        return scope.tallies[id] if scope is not None else None

    def loop(self, path: str) -> Loop | None:
        """The loop under way at this path."""
        return self._loops.get(path)

    def input(self, path: str) -> Any:
        """What the node gets. Raises ExpressionError if a condition or a mapping can't be evaluated."""
        state = self.snapshot.nodes.get(path)
        if state is not None and state.given_input is not msgspec.UNSET:
            return state.given_input
        scope, id = self._locate(path)
        created = self.snapshot.created
        if scope.loop is None:
            entry = created.input if created is not None else None
        else:
            entry = {name: value for name, value in scope.names.items() if name != "outer"}
        return node_input(scope.graph, self.snapshot.nodes, entry, id, scope.prefix)

    def names(self, path: str, input: Any) -> dict[str, Any]:
        """What the node's expressions see (``flow.expressions.scope``)."""
        return self.scope_names(self._locate(path)[0], input)

    def scope_names(self, scope: Scope, input: Any) -> dict[str, Any]:
        """What expressions see in a scope whose input this is. In an iteration: also what they see around the loop."""
        around: dict[str, Any] = {}
        if scope.loop is not None and isinstance(scope.loop.input, dict):
            around = scope.loop.input
        found = expressions.scope(
            input=input,
            trigger=trigger_view(self.snapshot),
            nodes=node_views(self.snapshot, scope),
            parameters=parameters_view(self.graph, self.snapshot),
            instance=self._instance_view(),
            project={"id": self.called.project_id},
        )
        return {**around, **found, **scope.names} if scope.loop is not None else found

    def _instance_view(self) -> dict[str, Any]:
        snapshot = self.snapshot
        if snapshot.created is None or snapshot.created_at is None:
            return {}
        return {
            "id": self.called.instance_id,
            "workflow": self.called.workflow_name,
            "workflow_id": snapshot.created.workflow_id,
            "version_id": snapshot.created.version_id,
            "created_at": snapshot.created_at.isoformat(),
            "labels": snapshot.created.labels,
        }

    def mode(self, now: datetime) -> Mode:
        """How the run is going to end, as far as is known now."""
        if self.snapshot.cancel is not None:
            return Mode.CANCELING
        if self._root.failure is not None:
            return Mode.FAILING
        return Mode.LATE if self._late(now) else Mode.NONE

    def wake_at(self, after: datetime | None = None) -> datetime | None:
        """When to plan again if nothing happens before: the next retry, end of a wait, or deadline. None: only an
        event can help.

        ``after`` is when was planned last: what was due by then has been planned and is waited for otherwise.
        """
        if self.snapshot.status.terminal:
            return None
        instants: list[datetime] = []
        if self.snapshot.status is not InstanceStatus.PAUSED and (due := self._timers.after(after)) is not None:
            instants.append(due)
        if (deadline := self._deadline()) is not None and (after is None or deadline[0] > after):
            instants.append(deadline[0])
        return min(instants, default=None)

    def held_up(self, now: datetime) -> set[str]:
        """The lanes whose room keeps a node from starting: to be asked when all that was planned is history."""
        if self.snapshot.status.terminal or self.snapshot.status is InstanceStatus.PAUSED:
            return set()
        alone = self.snapshot.alone
        lanes = {lane for lane, ready in self._ready.items() if (alone in ready if alone is not None else ready)}
        lanes |= {self.lane(path) for path in self._timers.due(now) if path in self.snapshot.retrying}
        return lanes - {controls.LANE}

    def _late(self, now: datetime) -> bool:
        deadline = self._deadline()
        return deadline is not None and now >= deadline[0]

    def _deadline(self) -> tuple[datetime, Failure] | None:
        created, since = self.snapshot.created, self.snapshot.reopened_at or self.snapshot.created_at
        if created is None or since is None:
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
        return since + limit, failure

    # ---- the plan

    def plan(self, now: datetime, room: Mapping[str, int] | None = None) -> list[Action]:
        """Everything to be done now; empty when there is nothing but to wait (or nothing any more).

        ``room`` bounds how many nodes may be started per lane; there is always some for control nodes, unless there
        is none at all (an empty mapping). The order of siblings carries no meaning.
        """
        snapshot = self.snapshot
        if snapshot.created is None or snapshot.status.terminal:
            return []
        mode = self.mode(now)
        if snapshot.status is InstanceStatus.PENDING and mode is Mode.NONE:
            return [Begin()]
        goes_on = mode in (Mode.NONE, Mode.FAILING) and not self._aborted
        if goes_on and snapshot.status is InstanceStatus.PAUSED and not self._late(now):
            return list(self._decisions(mode, now, paused=True))
        if goes_on and self._halts:
            halt = Pause(e.PauseReason.BREAKPOINT, next(iter(self._halts)), e.Phase.AFTER)
            return [*self._decisions(mode, now, paused=False), halt]
        if self._root.open == 0:
            return [End(self._end(mode))]
        actions: list[Action] = []
        for path in self._due:
            tally = self.tally(path)
            assert tally is not None
            actions.append(Fail(path, tally.error) if tally.error is not None else Skip(path, skip_reason(tally)))
        actions.extend(self._decisions(mode, now, paused=False))
        actions.extend(self._draining(mode))
        for path in self._pinned:
            if self._may_start(mode, path):
                actions.append(Complete(path, self._pins[path], cached=True))
        actions.extend(self._starts(mode, now, room))
        return actions

    def _decisions(self, mode: Mode, now: datetime, *, paused: bool) -> Iterator[Action]:
        """What control nodes do that are neither stopped nor wait any more."""
        snapshot = self.snapshot
        for path, failure in self._broken.items():
            if self._lives(mode, path):
                yield Fail(path, failure)
        for path in self._undecided:
            if self._lives(mode, path):
                yield control.decide(self, path, now)
        for path in self._finished:
            if self._lives(mode, path):
                yield self._loop_end(self._loops[path])
        for path in snapshot.answered:
            if self._lives(mode, path):
                yield control.answered(path, snapshot.nodes[path])
        if not paused:
            for path in self._timers.due(now):
                if path in snapshot.waiting and path not in snapshot.answered and self._lives(mode, path):
                    yield control.expired(self, path, snapshot.nodes[path])

    def _loop_end(self, loop: Loop) -> Action:
        if loop.failure is not None:
            return Fail(loop.path, loop.failure)
        return Cancel(loop.path) if loop.interrupted else Complete(loop.path, loop.result())

    def _draining(self, mode: Mode) -> Iterator[Action]:
        """Stop what runs, and skip what would have started, wherever something ends early."""
        if mode is not Mode.NONE:
            yield from self._drain(self._root, mode)
        for prefix in self._ending:
            if self._mode(mode, scope := self._scopes[prefix]) is Mode.FAILING:
                yield from self._drain(scope, Mode.FAILING)
        for path in self._stopping:
            if self._lives(mode, path):
                for scope in self._loops[path].open.values():
                    yield from self._drain(scope, Mode.CANCELING)

    def _drain(self, scope: Scope, mode: Mode) -> Iterator[Action]:
        for id in scope.active:
            path = scope.prefix + id
            if self._stops(mode, scope, self.snapshot.nodes[path]):
                loop = self._loops.get(path)
                if loop is not None and loop.open:
                    for iteration in loop.open.values():
                        yield from self._drain(iteration, Mode.CANCELING)
                else:
                    yield Cancel(path)
        for id in scope.ready:
            if not self._cleans_up(mode, scope, id):
                yield Skip(scope.prefix + id, SkipReason.INSTANCE_ENDED)

    def _starts(self, mode: Mode, now: datetime, room: Mapping[str, int] | None) -> list[Action]:
        again: dict[str, list[Start]] = {}
        for path in self._timers.due(now):
            if path in self.snapshot.retrying and self._lives(mode, path):
                again.setdefault(self.lane(path), []).append(self._start(path))
        found: list[Action] = []
        alone = self.snapshot.alone
        for lane, ready in self._ready.items():
            unbounded = room is None or (room and lane == controls.LANE)
            free = None if unbounded or room is None else max(0, room.get(lane, 0))
            wanted: Iterable[str] = ready
            if alone is not None:
                wanted = (alone,) if alone in ready else ()
            first = (self._start(path) for path in wanted if self._may_start(mode, path))
            found.extend(islice(chain(again.get(lane, ()), first), free))
        return self._debugged(found) if self.snapshot.stepping or self.snapshot.breakpoints else found

    def _start(self, path: str) -> Start:
        state = self.snapshot.nodes.get(path)
        return Start(path, state.attempt + 1 if state is not None else 1)

    def _debugged(self, starts: list[Action]) -> list[Action]:
        """The starts up to the first at which a debugger stops."""
        for place, start in enumerate(starts):
            assert isinstance(start, Start)
            path = start.path
            if path in self.snapshot.retrying or path in self.snapshot.passed:
                continue
            scope, id = self._locate(path)
            if self._breaks(scope, id, e.Phase.BEFORE):
                return [*starts[:place], Pause(e.PauseReason.BREAKPOINT, path, e.Phase.BEFORE)]
            if self.snapshot.stepping:
                return [*starts[:place], Pause(e.PauseReason.STEP, path, e.Phase.BEFORE)]
        return starts

    def _breaks(self, scope: Scope, id: str, phase: e.Phase) -> bool:
        """Whether a breakpoint stops here. One whose condition can't be evaluated does: somebody wants to look."""
        for point in self.snapshot.breakpoints:
            if point.node_id != id or point.phase is not phase:
                continue
            if point.when is None:
                return True
            path = scope.prefix + id
            try:
                names = self.scope_names(scope, self.input(path))
                if phase is e.Phase.AFTER:
                    names["output"] = self.snapshot.nodes[path].output
                if expressions.truthy(expressions.search(point.when, names)):
                    return True
            except ExpressionError:
                return True
        return False

    # ---- how things stand

    def _locate(self, path: str) -> tuple[Scope, str]:
        prefix, id = split(path)
        return self._scopes[prefix], id

    def _status(self, path: str) -> NodeStatus:
        state = self.snapshot.nodes.get(path)
        return state.status if state is not None else NodeStatus.PENDING

    def _mode(self, mode: Mode, scope: Scope) -> Mode:
        """How the scope is going to end; ``mode`` is the run's."""
        if scope.loop is None:
            return mode
        if mode is Mode.NONE and not self._ending and not self._stopping:
            return Mode.NONE
        if scope.loop.failure is not None or not self._lives(mode, scope.loop.path):
            return Mode.CANCELING
        return Mode.FAILING if scope.failure is not None else Mode.NONE

    def _lives(self, mode: Mode, path: str) -> bool:
        """Whether the node, which has started, is not being stopped."""
        scope, _ = self._locate(path)
        return not self._stops(self._mode(mode, scope), scope, self.snapshot.nodes[path])

    def _stops(self, mode: Mode, scope: Scope, state: NodeState) -> bool:
        """A failing run stops what began before the failure; what began after it is cleaning up."""
        return mode in (Mode.CANCELING, Mode.LATE) or (mode is Mode.FAILING and state.started_seq < scope.failed_seq)

    def _may_start(self, mode: Mode, path: str) -> bool:
        scope, id = self._locate(path)
        mode = self._mode(mode, scope)
        return mode is Mode.NONE or self._cleans_up(mode, scope, id)

    def _cleans_up(self, mode: Mode, scope: Scope, id: str) -> bool:
        """A failing run still starts what is there for the bad case: by its join, or reached from a failed node."""
        join = scope.graph.nodes[id].join
        return (
            mode is Mode.FAILING
            and not self._aborted
            and (join in (Join.ONE_FAILED, Join.ALL_DONE) or scope.tallies[id].rescued)
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
                    return e.InstanceCompleted(output=self._output())
                except ExpressionError as error:
                    return e.InstanceFailed(error=error.failure())
            case _:
                assert_never(mode)

    def _output(self) -> Any:
        """The instance's output: by ``output_mapping``, or else the outputs of the terminal nodes by node id."""
        if rules := self.graph.definition.output_mapping:
            created = self.snapshot.created
            return mapping.apply(rules, self.scope_names(self._root, created.input if created else None))
        return last_outputs(self.graph, self.snapshot)

    # ---- attempts

    def conclude(self, path: str, failure: Failure, usage: e.Usage | None, now: datetime, draw: float) -> e.AnyEvent:
        """What a failed attempt becomes: a retry with its due time, or the node's failure. ``draw``: [-1, 1]."""
        state, node = self.snapshot.nodes[path], self.node(path)
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
        if self.node(path).on_lost == "retry":
            return e.NodeLost(path=path, attempt=state.attempt, worker=state.worker)
        message = "The worker died in the middle of this node, and `on_lost: fail` forbids running it again."
        failure = Failure(
            code="WORKER_LOST", category=Category.WORKER_LOST, message=message, node_id=path, attempt=state.attempt
        )
        return e.NodeFailed(path=path, attempt=state.attempt, error=failure)


def plan(graph: Graph, events: Iterable[e.Recorded], now: datetime) -> list[Action]:
    """What to do after these events, worked out from the first of them on."""
    return Run(graph, events).plan(now)
