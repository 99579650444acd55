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

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from enum import Enum
from itertools import chain, islice
from typing import Any, assert_never

import msgspec

from flow import control, controls, letters, mapping, placing, retry
from flow import events as e
from flow.actions import Action, Begin, Cancel, Complete, End, Fail, Pause, Skip, Start
from flow.books import MAX_EVENTS, Books, Names
from flow.definition import Join
from flow.errors import Category, Failure
from flow.expressions import ExpressionError
from flow.graph import Graph, prepare
from flow.history import NodeState
from flow.joins import skip_reason
from flow.scopes import Loop, Scope
from flow.states import InstanceStatus, SkipReason
from flow.views import last_outputs, node_input

__all__ = ["MAX_EVENTS", "Action", "Graph", "Mode", "Names", "Run", "node_input", "plan", "prepare"]


class Mode(Enum):
    """How a run is going to end, see the module's header."""

    NONE = "none"
    FAILING = "failing"
    CANCELING = "canceling"
    LATE = "late"


class Run(Books):
    """One instance under way. Feed it every event (``apply``), ask it what to do (``plan``).

    ``plan`` changes nothing: until an event answers an action, the action is planned again.
    """

    __slots__ = ()

    def reopening(self, asked: e.InstanceReopened) -> e.InstanceReopened:
        """The event by which a FAILED instance goes on: ``asked``, with every node that is PENDING again."""
        return letters.reopening(self, asked)

    def accepts(self, letter: e.AnyEvent) -> bool:
        """Whether this letter still means something; otherwise it is to be dropped, not recorded."""
        return letters.accepts(self, letter)

    # ---- questions

    @property
    def failure(self) -> Failure | None:
        """Why the run is going to fail, if it is."""
        return self.root.failure

    def mode(self, now: datetime) -> Mode:
        """How the run is going to end, as far as is known now."""
        if self.snapshot.cancel is not None:
            return Mode.CANCELING
        if self.root.failure is not None:
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

    def ready(self, lane: str) -> int:
        """How many nodes of the lane could start if there were room."""
        return len(self._ready.get(lane, ()))

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
        if self.root.open == 0:
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
                yield self._loop_end(self.loops[path])
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
            yield from self._drain(self.root, mode)
        for prefix in self._ending:
            if self._mode(mode, scope := self.scopes[prefix]) is Mode.FAILING:
                yield from self._drain(scope, Mode.FAILING)
        for path in self._stopping:
            if self._lives(mode, path):
                for scope in self.loops[path].open.values():
                    yield from self._drain(scope, Mode.CANCELING)

    def _drain(self, scope: Scope, mode: Mode) -> Iterator[Action]:
        for id in scope.active:
            path = scope.prefix + id
            if self._stops(mode, scope, self.snapshot.nodes[path]):
                loop = self.loops.get(path)
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

    # ---- how things stand

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
            return mapping.apply(rules, self.scope_names(self.root, created.input if created else None))
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

    def lost(self, path: str, *, handed_over: bool = False) -> e.AnyEvent:
        """What becomes of a node whose worker died in the middle of it, or handed it over, by its ``on_lost``.

        An offered one that several workers died of is given up: only it fails, and no more workers die.
        """
        state = self.snapshot.nodes[path]
        if state.offer is not None and not handed_over and state.deaths + 1 >= placing.MAX_DEATHS:
            message = (
                f"{placing.MAX_DEATHS} workers died in the middle of this node, so it is not tried again. Look whether "
                "it takes too much memory or ends its process."
            )
            poison = Failure("POISON", Category.WORKER_LOST, message, node_id=path, attempt=state.attempt)
            return e.NodeFailed(path=path, attempt=state.attempt, error=poison)
        if self.node(path).on_lost == "retry":
            return e.NodeLost(path=path, attempt=state.attempt, worker=state.worker, handed_over=handed_over)
        message = "The worker died in the middle of this node, and `on_lost: fail` forbids running it again."
        failure = Failure(
            code="WORKER_LOST", category=Category.WORKER_LOST, message=message, node_id=path, attempt=state.attempt
        )
        return e.NodeFailed(path=path, attempt=state.attempt, error=failure)


def plan(graph: Graph, events: Iterable[e.Recorded], now: datetime) -> list[Action]:
    """What to do after these events, worked out from the first of them on."""
    return Run(graph, events).plan(now)
