"""What a run keeps: how edges have settled, what may start, which iterations are open.

``Books`` takes events in, one by one, and works out from each what it changes and nothing else. Iterations are opened
and closed in passing, never by an event of their own, so that a replay does the same. ``flow.planner`` asks the books.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from flow import control, controls, expressions
from flow import events as e
from flow.definition import Node
from flow.errors import Category, Failure
from flow.expressions import ExpressionError
from flow.graph import Graph, split
from flow.history import NodeState, Snapshot
from flow.joins import Tally, Verdict, verdict
from flow.scopes import Loop, Scope
from flow.states import NodeStatus, SkipReason
from flow.timers import Timers
from flow.views import node_input, node_views, parameters_view, trigger_view

#: An instance with more events than this fails: its history would no longer fit where it is replayed.
MAX_EVENTS = 50_000
_TOO_MANY_EVENTS = Failure(
    code="EVENT_LIMIT",
    category=Category.RESOURCE,
    message=f"The instance has more than {MAX_EVENTS:,} events. Split the work over several workflows, or log less.",
)

Changed = list[tuple[str, NodeState]]


@dataclass(frozen=True, slots=True)
class Names:
    """What a run is called outside of it, for the expressions that ask."""

    instance_id: str = ""
    workflow_name: str = ""
    project_id: str = ""


class Books:
    """One instance under way, as its events say it is. Feed it every one of them (``apply``)."""

    __slots__ = (
        "_aborted",
        "_begun",
        "_broken",
        "_due",
        "_ending",
        "_finished",
        "_halts",
        "_pinned",
        "_pins",
        "_ready",
        "_stopping",
        "_timers",
        "_undecided",
        "called",
        "executing",
        "graph",
        "loops",
        "root",
        "scopes",
        "snapshot",
    )

    def __init__(self, graph: Graph, events: Iterable[e.Recorded] = (), called: Names = Names()) -> None:
        self.graph = graph
        self.snapshot = Snapshot()
        self.called = called
        #: Nodes whose handlers are at work here.
        self.executing: set[str] = set()
        #: Not even clean-up nodes are started any more.
        self._aborted = False
        #: Some node was started, so that the queue timeout is met.
        self._begun = False
        #: By prefix.
        self.scopes: dict[str, Scope] = {}
        #: By path, from the loop's start until it is completed, or its run is over.
        self.loops: dict[str, Loop] = {}
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
        self.root = Scope(graph)
        self._open_scope(self.root)
        for recorded in events:
            self.apply(recorded)

    # ---- events

    def apply(self, recorded: e.Recorded) -> Changed:
        """Take one more event in, and settle what follows from it. Gives the nodes that it changed: their states are
        to be kept by whoever needs them, an iteration's are dropped with it. Raises as ``Snapshot.apply`` does.
        """
        event, seq = recorded.event, recorded.seq
        before = self.status_of(event.path) if isinstance(event, e.ValueSet) else None
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
            case e.NodeScheduled():
                self._offered(path)
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
            root = self.root
            root.failure, self._aborted, root.failed_seq = root.failure or failure, True, sys.maxsize

    def _offered(self, path: str) -> None:
        scope, id = self._locate(path)
        self._unready(scope, id)
        self._timers.discard(path)
        scope.active[id] = None

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
        elif path not in self.snapshot.offered:
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
        if path in self.loops and state.status is NodeStatus.COMPLETED:
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
        state = self.snapshot.nodes.get(path)
        if state is not None and (state.status is not NodeStatus.PENDING or state.offer is not None):
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
        for id in list(self.root.ready):
            self._unready(self.root, id)
            self._judge(self.root, id)

    # ---- scopes

    def _open_scope(self, scope: Scope) -> None:
        """Begin with what the nodes' states say, so that a scope that was kept goes on where it was."""
        self.scopes[scope.prefix] = scope
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
        loop = self.loops.get(path)
        if loop is None:
            try:
                loop = self.loops[path] = control.enter(self, scope, id)
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
        del self.scopes[scope.prefix]
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
            if path in self.loops:
                self._forget(path)

    def _forget(self, path: str) -> None:
        for scope in self.loops.pop(path).kept.values():
            self._drop(scope)

    # ---- by hand

    def _output_set(self, path: str, state: NodeState, before: NodeStatus | None, seq: int) -> None:
        """A node has got its output from a debugger."""
        if before not in (NodeStatus.COMPLETED, NodeStatus.FAILED):
            self._ended(path, state, seq)
            return
        scope, id = self._locate(path)
        if path in self.loops:
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

    def _reopen(self) -> None:
        self._aborted = False
        self._halts.clear()
        self._due.clear()
        self._pinned.clear()
        for ready in self._ready.values():
            ready.clear()
        self._open_scope(self.root)

    # ---- data

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
        return self.scopes.get(split(path)[0])

    def tally(self, path: str) -> Tally | None:
        """How the edges into the node have settled; None for an iteration that isn't open."""
        scope, (_, id) = self.scope_of(path), split(path)
        return scope.tallies[id] if scope is not None else None

    def loop(self, path: str) -> Loop | None:
        """The loop under way at this path."""
        return self.loops.get(path)

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

    # ---- how things stand

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

    def _locate(self, path: str) -> tuple[Scope, str]:
        prefix, id = split(path)
        return self.scopes[prefix], id

    def status_of(self, path: str) -> NodeStatus:
        state = self.snapshot.nodes.get(path)
        return state.status if state is not None else NodeStatus.PENDING
