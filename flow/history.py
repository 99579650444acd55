"""What an instance is, from its events: ``replay`` folds them into a ``Snapshot``.

Replaying the same events gives the same snapshot, in any process, at any time. Time travel is a replay that
stops early; recovery is a replay that goes on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec

from flow import events as e
from flow import jsonschemas
from flow.errors import Failure, IllegalTransition
from flow.states import INSTANCE_TRANSITIONS, NODE_TRANSITIONS, InstanceStatus, NodeStatus, after

_NODE_ENDS = (e.NodeCompleted, e.NodeFailed, e.NodeSkipped, e.NodeCanceled)

#: What a waiting node got.
Answer = e.SignalReceived | e.ApprovalAnswered | e.ChildEnded


@dataclass(slots=True)
class NodeState:
    """One node's attempts so far.

    ``ordinal`` counts nodes in the order of their first event. ``lost`` counts attempts that don't count as
    failures of the node: they ended with their worker, or were made before a retry by hand; ``deaths`` counts those
    whose worker died, and not those that it handed over. ``started_seq`` and
    ``first_start`` are the sequence number and the instant of the *first* start. ``due`` is when the next attempt
    is made, or when a wait is over. ``offer`` is set while other workers are asked to make the attempt, or one of them
    makes it. ``given_input`` is what a debugger gave it instead of its own input.
    """

    ordinal: int
    status: NodeStatus = NodeStatus.PENDING
    attempt: int = 0
    lost: int = 0
    deaths: int = 0
    output: Any = None
    artifact: e.Artifact | None = None
    error: Failure | None = None
    skip_reason: str | None = None
    due: datetime | None = None
    awaited: e.Awaited | None = None
    offer: e.NodeScheduled | None = None
    answer: Answer | None = None
    given_input: Any = msgspec.UNSET
    cached: bool = False
    first_start: datetime | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    started_seq: int = 0
    last_seq: int = 0
    progress: e.NodeProgress | None = None
    usage: e.Usage | None = None
    worker: str | None = None

    def reset(self) -> None:
        """The node is to run again; its attempts go on counting, its failures start anew."""
        self.lost, self.deaths = self.attempt, 0
        self.started_seq = 0
        self.output = self.artifact = self.error = self.skip_reason = self.due = self.awaited = self.answer = None
        self.offer = None
        self.first_start = self.started_at = self.completed_at = self.progress = self.usage = self.worker = None
        self.cached = False


@dataclass(slots=True)
class Snapshot:
    """An instance as its events say it is. ``apply`` is the only thing that changes it.

    ``pause`` says why it is PAUSED. ``stepping`` and ``breakpoints`` are the debugger's, as they are now;
    ``passed`` are nodes that a resumption let go on, and while ``alone`` is set nothing but that node starts.
    ``signals`` are those that nobody has waited for yet. ``reopened_at``: from then on its timeout counts.
    """

    status: InstanceStatus = InstanceStatus.PENDING
    last_seq: int = 0
    created: e.InstanceCreated | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    reopened_at: datetime | None = None
    cancel: e.CancelRequested | None = None
    cancel_requested_at: datetime | None = None
    pause: e.InstancePaused | None = None
    debugged: bool = False
    stepping: bool = False
    breakpoints: tuple[e.Breakpoint, ...] = ()
    passed: set[str] = field(default_factory=set)
    alone: str | None = None
    output: Any = None
    artifact: e.Artifact | None = None
    error: Failure | None = None
    nodes: dict[str, NodeState] = field(default_factory=dict)
    ordinals: int = 0
    running: set[str] = field(default_factory=set)
    retrying: set[str] = field(default_factory=set)
    #: Attempts that are offered to other workers, or made by them.
    offered: dict[str, None] = field(default_factory=dict)
    #: In the order in which they began to wait.
    waiting: dict[str, None] = field(default_factory=dict)
    #: Those of them that have got what they wait for.
    answered: dict[str, None] = field(default_factory=dict)
    signals: dict[str, list[e.SignalReceived]] = field(default_factory=dict)

    def apply(self, recorded: e.Recorded) -> None:
        """Take one more event in.

        Raises ValueError if it isn't the next one, IllegalTransition if the tables don't allow it.
        """
        if recorded.seq != self.last_seq + 1:
            raise ValueError(f"event {recorded.seq} can't follow event {self.last_seq}")
        event, at = recorded.event, recorded.at
        if isinstance(event, e.NodeEvent):
            self._apply_node(event, recorded)
        else:
            self._apply_instance(event, recorded, at)
        self.last_seq = recorded.seq

    def node(self, path: str) -> NodeState:
        """The node's state, made if this is its first event."""
        state = self.nodes.get(path)
        if state is None:
            self.ordinals += 1
            state = self.nodes[path] = NodeState(ordinal=self.ordinals)
        return state

    def _apply_instance(self, event: e.Event, recorded: e.Recorded, at: datetime) -> None:
        match event:
            case e.InstanceCreated(debug=debug):
                self.created, self.created_at = event, at
                if debug is not None:
                    self._debug(debug)
                return
            case e.CancelRequested():
                if self.cancel is None:
                    self.cancel, self.cancel_requested_at = event, at
                return
            case e.DebugSet(debug=debug):
                self._debug(debug)
                return
            case e.ValueSet():
                self._set_value(event, recorded)
                return
            case e.SignalReceived():
                self._deliver(event)
                return
            case e.ApprovalAnswered(path=path) | e.ChildEnded(path=path):
                if path in self.waiting and self.nodes[path].answer is None:
                    self._answer(path, event)
                return
        self.status = after(INSTANCE_TRANSITIONS, self.status, type(event))
        match event:
            case e.InstanceStarted():
                self.started_at = at
            case e.InstancePaused():
                self.pause = event
                self.alone = None
            case e.InstanceResumed(step=step):
                stopped = self.pause
                self.pause = None
                self.started_at = self.started_at or at
                self.stepping = step
                at_node = stopped.path if stopped is not None and stopped.phase is e.Phase.BEFORE else None
                # Meanwhile a debugger may have given the node its output: then it does not start any more.
                if at_node is not None and (
                    at_node not in self.nodes or self.nodes[at_node].status is NodeStatus.PENDING
                ):
                    self.passed.add(at_node)
                    self.alone = at_node if step else None
            case e.InstanceReopened(reset=reset):
                self.completed_at = self.error = None
                self.reopened_at = at
                for path in reset:
                    state = self.nodes[path]
                    state.status = after(NODE_TRANSITIONS, state.status, type(event))
                    state.last_seq = recorded.seq
                    state.reset()
            case e.InstanceCompleted(output=output, artifact=artifact):
                self.output, self.artifact = output, artifact
            case e.InstanceFailed(error=error) | e.InstanceTimedOut(error=error):
                self.error = error
        if self.status.terminal:
            self.completed_at = at
            self.pause = None

    def _debug(self, debug: e.Debug) -> None:
        self.debugged = True
        self.stepping, self.breakpoints = debug.stepping, debug.breakpoints

    def _set_value(self, event: e.ValueSet, recorded: e.Recorded) -> None:
        node = self.node(event.path)
        if event.what == "input":
            node.given_input = event.value
            return
        node.status = after(NODE_TRANSITIONS, node.status, type(event))
        self._leave(event.path)
        node.output, node.artifact, node.error, node.due = event.value, None, None, None
        node.completed_at = recorded.at
        node.last_seq = recorded.seq
        self._pass(event.path)

    def _leave(self, path: str) -> None:
        self.running.discard(path)
        self.retrying.discard(path)
        self.waiting.pop(path, None)
        self.answered.pop(path, None)

    def _answer(self, path: str, answer: Answer) -> None:
        self.nodes[path].answer = answer
        self.answered[path] = None

    def _deliver(self, signal: e.SignalReceived) -> None:
        for path in self.waiting:
            node = self.nodes[path]
            match node.awaited:
                case e.ForSignal(name=name, schema=schema) if name == signal.name and node.answer is None:
                    if fits(signal.payload, schema):
                        self._answer(path, signal)
                        return
        self.signals.setdefault(signal.name, []).append(signal)

    def _take_signal(self, wanted: e.ForSignal) -> e.SignalReceived | None:
        kept = self.signals.get(wanted.name, [])
        for place, signal in enumerate(kept):
            if fits(signal.payload, wanted.schema):
                del kept[place]
                if not kept:
                    del self.signals[wanted.name]
                return signal
        return None

    def _apply_node(self, event: e.NodeEvent, recorded: e.Recorded) -> None:
        path, at = event.path, recorded.at
        node = self.node(path)
        node.last_seq = recorded.seq
        match event:
            case e.NodeLog():
                return
            case e.NodeProgress():
                node.progress = event
                return
            case e.NodeScheduled(attempt=attempt):
                self._offer(path, node, event, recorded.seq)
                return
        node.status = after(NODE_TRANSITIONS, node.status, type(event))
        self._leave(path)
        if not isinstance(event, e.NodeStarted):
            node.offer = None
            self.offered.pop(path, None)
        match event:
            case e.NodeStarted(attempt=attempt, worker=worker):
                node.attempt, node.worker, node.started_at = attempt, worker, at
                node.first_start = node.first_start or at
                node.started_seq = node.started_seq or recorded.seq
                node.due = node.error = node.progress = None
                self.running.add(path)
                self._pass(path)
            case e.NodeWaiting(awaited=awaited):
                node.awaited, node.answer = awaited, None
                node.due = None if isinstance(awaited, e.ForChild) else awaited.until
                self.waiting[path] = None
                if isinstance(awaited, e.ForSignal) and (signal := self._take_signal(awaited)) is not None:
                    self._answer(path, signal)
            case e.NodeRetrying(error=error, due=due):
                node.error, node.due = error, due
                self.retrying.add(path)
            case e.NodeLost(handed_over=handed_over):
                node.lost += 1
                node.deaths += not handed_over
                node.due = at
                self.retrying.add(path)
            case e.NodeCompleted(output=output, artifact=artifact, usage=usage, cached=cached):
                node.output, node.artifact, node.usage, node.error = output, artifact, usage, None
                node.cached, node.due = cached, None
            case e.NodeFailed(error=error, usage=usage):
                node.error, node.usage, node.due = error, usage, None
            case e.NodeSkipped(reason=reason):
                node.skip_reason = reason
            case e.NodeCanceled():
                node.due = None
        if isinstance(event, _NODE_ENDS):
            node.completed_at = at
            self._pass(path)

    def _offer(self, path: str, node: NodeState, event: e.NodeScheduled, seq: int) -> None:
        if node.status not in (NodeStatus.PENDING, NodeStatus.RETRYING) or path in self.offered:
            raise IllegalTransition(f"A node that is {node.status} can't be offered.", status=node.status.value)
        node.attempt, node.offer, node.due = event.attempt, event, None
        # From here on it counts as begun: a failure elsewhere that comes later stops it.
        node.started_seq = node.started_seq or seq
        self.retrying.discard(path)
        self.offered[path] = None
        self._pass(path)

    def _pass(self, path: str) -> None:
        self.passed.discard(path)
        if path == self.alone:
            self.alone = None


def fits(value: Any, schema: dict[str, Any] | None) -> bool:
    """Whether the value is what a wait takes; without a schema it takes anything."""
    return schema is None or not jsonschemas.mismatches(jsonschemas.validator(schema), value)


def replay(events: Iterable[e.Recorded], *, upto: int | None = None) -> Snapshot:
    """The snapshot after these events, or after those with ``seq <= upto``."""
    snapshot = Snapshot()
    for recorded in events:
        if upto is not None and recorded.seq > upto:
            break
        snapshot.apply(recorded)
    return snapshot
