"""A run for tests, in a few words: ``Run("a>c b>c").finish("a").plan()``."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from flow import events as e
from flow.actions import Action, Begin, Cancel, Complete, End, Fail, Pause, Skip, Spawn, Start, Wait
from flow.definition import Definition, Edge, Node, On, TriggerSpec
from flow.errors import Category, Failure
from flow.planner import Graph, plan, prepare
from flow.planner import Run as FlowRun

T0 = datetime(2026, 1, 1, tzinfo=UTC)
BROKEN = Failure(code="BROKEN", category=Category.CODE, message="broken")

ARROWS = {">": On.SUCCESS, "!": On.FAILURE, "~": On.ALWAYS}


def definition(picture: str, nodes: dict[str, dict[str, Any]] | None = None, **fields: Any) -> Definition:
    """``"a>c b>c d"``: nodes and edges; ``a!b`` follows a failure, ``a~b`` either end, ``a>b?x`` has condition x."""
    ids: dict[str, None] = {}
    edges = []
    for word in picture.split():
        for arrow, on in ARROWS.items():
            if arrow in word:
                source, rest = word.split(arrow, 1)
                target, _, condition = rest.partition("?")
                ids |= {source: None, target: None}
                edges.append(Edge(source, target, on, condition or None))
                break
        else:
            ids[word] = None
    given = nodes or {}
    return Definition(
        name="test",
        triggers=(TriggerSpec("by-hand", "manual"),),
        nodes=tuple(Node(id, **{"type": "core/noop"} | given.get(id, {})) for id in ids),
        edges=tuple(edges),
        **fields,
    )


def node(**parameters: Any) -> dict[str, Any]:
    """What ``definition`` takes for a node of this ``type`` with these parameters."""
    return {"type": parameters.pop("type"), "parameters": parameters}


class Run:
    """A ``flow.planner.Run`` that has begun, driven by hand; one second passes with each event."""

    def __init__(
        self,
        picture: str | Definition,
        nodes: dict[str, dict[str, Any]] | None = None,
        created: dict[str, Any] | None = None,
        begin: bool = True,
    ) -> None:
        self.graph: Graph = prepare(picture if isinstance(picture, Definition) else definition(picture, nodes))
        self.run = FlowRun(self.graph)
        self.events: list[e.Recorded] = []
        self.now = T0
        self.record(e.InstanceCreated(workflow_id="wf-1", version_id="wfv-1", **(created or {})))
        if begin:
            self.record(e.InstanceStarted())

    def record(self, event: e.AnyEvent) -> Run:
        recorded = e.Recorded(len(self.events) + 1, self.now, event)
        self.run.apply(recorded)
        self.events.append(recorded)
        self.now += timedelta(seconds=1)
        return self

    def plan(self) -> list[Action]:
        """What to do now; the plan made step by step and the one made from scratch must agree."""
        step_by_step = self.run.plan(self.now)
        assert sorted(map(repr, step_by_step)) == sorted(map(repr, plan(self.graph, self.events, self.now)))
        return step_by_step

    def starts(self) -> set[str]:
        return {action.path for action in self.plan() if isinstance(action, Start)}

    def skips(self) -> dict[str, str]:
        return {action.path: str(action.reason) for action in self.plan() if isinstance(action, Skip)}

    def start(self, *ids: str) -> Run:
        for id in ids:
            attempt = self.run.snapshot.nodes[id].attempt + 1 if id in self.run.snapshot.nodes else 1
            self.record(e.NodeStarted(id, attempt))
        return self

    def finish(self, id: str, output: Any = None) -> Run:
        self._running(id)
        return self.record(e.NodeCompleted(id, self.run.snapshot.nodes[id].attempt, output))

    def fail(self, id: str, failure: Failure = BROKEN) -> Run:
        self._running(id)
        return self.record(e.NodeFailed(id, self.run.snapshot.nodes[id].attempt, failure))

    def conclude(self, id: str, failure: Failure, draw: float = 0.0) -> Run:
        """The running attempt failed: retried or failed for good, as the planner says."""
        return self.record(self.run.conclude(id, failure, None, self.now, draw))

    def _running(self, id: str) -> None:
        if id not in self.run.snapshot.running:
            assert id in self.starts(), f"{id} may not start: {self.plan()}"
            self.start(id)

    def answer(self, action: Action) -> Run:
        """The event that answers a planned action; a Start completes only when told to."""
        match action:
            case Begin():
                return self.record(e.InstanceStarted())
            case Start(path, attempt):
                return self.record(e.NodeStarted(path, attempt))
            case Skip(path, reason):
                return self.record(e.NodeSkipped(path, str(reason)))
            case Complete(path, output, artifact, cached):
                return self.record(e.NodeCompleted(path, self.attempt(path), output, artifact, cached=cached))
            case Fail(path, error):
                return self.record(e.NodeFailed(path, self.attempt(path), error))
            case Wait(path, awaited):
                return self.record(e.NodeWaiting(path, self.attempt(path), awaited))
            case Spawn(path, wait=True):
                return self.record(e.NodeWaiting(path, self.attempt(path), e.ForChild(f"inst-{path}")))
            case Spawn(path):
                return self.record(e.NodeCompleted(path, self.attempt(path), {"instance_id": f"inst-{path}"}))
            case Pause(reason, path, phase):
                return self.record(e.InstancePaused(reason, path=path, phase=phase))
            case Cancel(path):
                return self.record(e.NodeCanceled(path, self.run.snapshot.nodes[path].attempt))
            case End(event):
                return self.record(event)

    def attempt(self, path: str) -> int:
        state = self.run.snapshot.nodes.get(path)
        return state.attempt if state is not None else 0

    def settle(self, wanted: Callable[[Action], bool] = lambda action: not isinstance(action, Start)) -> Run:
        """Answer every planned action that is wanted (all but starts), until none is left."""
        while todo := [action for action in self.plan() if wanted(action)]:
            self.answer(todo[0])
        return self

    def control(self, wanted: Callable[[Action], bool] = lambda action: True) -> Run:
        """Let the flow go on as far as it goes by itself: control nodes are started too."""
        return self.settle(
            lambda action: (
                wanted(action)
                and not isinstance(action, Pause)
                and (not isinstance(action, Start) or self.run.is_control(action.path))
            )
        )

    def output(self, id: str) -> Any:
        return self.run.snapshot.nodes[id].output

    def error(self, id: str) -> Failure:
        error = self.run.snapshot.nodes[id].error
        assert error is not None
        return error

    def status(self, id: str | None = None) -> str:
        if id is None:
            return str(self.run.snapshot.status)
        return str(self.run.snapshot.nodes[id].status) if id in self.run.snapshot.nodes else "PENDING"
