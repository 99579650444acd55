"""What holds for every graph with loops, waits, failures, retries, pauses and retries by hand, and a crash anywhere.

The worlds of ``test_planner_properties``, with control nodes in them. The tests' ``Run.plan`` holds every plan that is
made step by step against the one that is made from scratch.
"""

from __future__ import annotations

import os
import re
from datetime import timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from flow import events as e
from flow.actions import Action, Spawn, Start
from flow.definition import Definition, Edge, Join, Node, On, RetryPolicy, TriggerSpec
from flow.errors import Category, Failure
from flow.planner import Run as FlowRun
from flow.states import InstanceStatus, NodeStatus
from tests.flow.runs import Run

#: Thousands find more, and take minutes: MIRRORFLOW_TEST_EXAMPLES=2000.
EXAMPLES = int(os.environ.get("MIRRORFLOW_TEST_EXAMPLES", "40"))
FLAKY = Failure(code="DOWN", category=Category.CONNECTION, message="down")
OUTPUT = {"even": True, "number": 3, "list": [1, 2], "approved": True}


def parameters(draw: st.DrawFn, kind: str, depth: int) -> dict[str, Any]:
    match kind:
        case "core/delay":
            return {"duration": draw(st.sampled_from([0, 5]))}
        case "core/wait-signal":
            return {"name": draw(st.sampled_from(["s", "t"])), "deadline": 60}
        case "core/approval":
            return {"title": "?", "deadline": 60, "on_timeout": draw(st.sampled_from(["fail", "approve"]))}
        case "core/condition":
            return {"cases": [{"name": "yes", "when": draw(st.sampled_from(["even", "length(number)"]))}]}
        case "core/workflow":
            return {"workflow": "other", "wait": draw(st.booleans())}
        case "core/loop":
            nodes, edges = graph(draw, depth + 1, 3)
            ways: list[dict[str, Any]] = [{"items": [7, 8, 9]}, {"items": []}, {"items": "x"}, {"while": "index < `2`"}]
            over = draw(st.sampled_from(ways))
            return {
                **over,
                "concurrency": draw(st.integers(1, 3)),
                "on_error": draw(st.sampled_from(["fail_fast", "collect"])),
                "body": {"nodes": nodes, "edges": edges},
            }
        case _:
            return {}


KINDS = ["core/noop"] * 4 + [
    "core/loop", "core/loop", "core/delay", "core/wait-signal", "core/approval", "core/condition", "core/workflow",
]  # fmt: skip


def graph(draw: st.DrawFn, depth: int, most: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Any DAG, as in a document; loops in loops, but not deeper than that."""
    count = draw(st.integers(1, most))
    nodes = []
    for i in range(count):
        kind = draw(st.sampled_from([kind for kind in KINDS if depth < 2 or kind != "core/loop"]))
        nodes.append(
            {
                "id": f"n{i}",
                "type": kind,
                "parameters": parameters(draw, kind, depth),
                "join": draw(st.sampled_from(Join)).value,
                "fail_on_error": draw(st.booleans()),
                "retry": {"max": draw(st.integers(0, 1)), "base": 5, "jitter": 0},
                "on_lost": draw(st.sampled_from(["retry", "fail"])),
            }
        )
    edges = [
        {
            "source": f"n{i}",
            "target": f"n{j}",
            "on": draw(st.sampled_from(On)).value,
            "condition": draw(st.sampled_from([None, None, "even", "length(number)"])),
        }
        for j in range(count)
        for i in range(j)
        if draw(st.booleans())
    ]
    return nodes, edges


@st.composite
def definitions(draw: st.DrawFn) -> Definition:
    nodes, edges = graph(draw, 0, 5)
    return Definition(
        name="any",
        triggers=(TriggerSpec("t", "manual"),),
        nodes=tuple(
            Node(
                node["id"],
                node["type"],
                parameters=node["parameters"],
                join=Join(node["join"]),
                fail_on_error=node["fail_on_error"],
                retry=RetryPolicy(max=node["retry"]["max"], base=timedelta(seconds=5), jitter=0.0),
                on_lost=node["on_lost"],
            )
            for node in nodes
        ),
        edges=tuple(Edge(edge["source"], edge["target"], On(edge["on"]), edge["condition"]) for edge in edges),
    )


class World:
    """Answers a run's plans as the draws say, and meddles with it; checks what must hold after every event."""

    def __init__(self, definition: Definition, data: st.DataObject, debug: e.Debug | None = None) -> None:
        self.data = data
        created = {"input": OUTPUT, "debug": debug}
        self.run = Run(definition, created=created, begin=False)
        self.started: set[tuple[str, int]] = set()
        #: How often the world still crashes, pauses, and lets a failed run go on.
        self.mischief = 6
        self.reopenings = 2

    @property
    def flow(self) -> FlowRun:
        return self.run.run

    def live(self) -> None:
        for _ in range(2_000):
            self.meddle()
            choices: list[Any] = [*self.run.plan(), *(("ends", path) for path in sorted(self.flow.executing))]
            choices += [("answer", path) for path in self.flow.snapshot.waiting if self.unanswered(path)]
            if self.flow.snapshot.status is InstanceStatus.PAUSED:
                choices.append(("resume", None))
            if not self.flow.snapshot.status.terminal and (wake_at := self.flow.wake_at(self.run.now)) is not None:
                choices.append(("time", wake_at))
            if choices:
                self.answer(self.data.draw(st.sampled_from(choices)))
            elif not self.reopen_perhaps():
                break
        assert self.flow.snapshot.status.terminal, "the run never ended"

    def unanswered(self, path: str) -> bool:
        state = self.flow.snapshot.nodes[path]
        return state.answer is None and not isinstance(state.awaited, e.Timer)

    def answer(self, choice: Any) -> None:
        match choice:
            case Start(path, attempt):
                assert (path, attempt) not in self.started, f"{path} was started twice"
                self.started.add((path, attempt))
                self.run.answer(choice)
            case ("ends", path):
                how = self.data.draw(st.sampled_from(["completes", "completes", "fails", "lost"]))
                if how == "completes" or (how == "lost" and self.mischief == 0):
                    self.run.record(e.NodeCompleted(path, self.run.attempt(path), OUTPUT))
                elif how == "fails":
                    self.run.conclude(path, FLAKY)
                else:
                    self.mischief -= 1
                    self.run.record(self.flow.lost(path))
            case ("answer", path):
                self.letter(self.reply(path))
            case ("resume", _):
                self.letter(e.InstanceResumed(step=self.data.draw(st.booleans())))
            case ("time", wake_at):
                self.run.now = max(self.run.now, wake_at)
            case _:
                assert isinstance(choice, Action)
                if not isinstance(choice, Spawn):
                    assert getattr(choice, "path", None) not in self.flow.executing or type(choice).__name__ == "Cancel"
                self.run.answer(choice)

    def reply(self, path: str) -> e.AnyEvent:
        match self.flow.snapshot.nodes[path].awaited:
            case e.ForSignal(name=name):
                return e.SignalReceived(name, OUTPUT)
            case e.ForApproval():
                return e.ApprovalAnswered(path, self.data.draw(st.booleans()))
            case e.ForChild(instance_id=id):
                return e.ChildEnded(path, id, self.data.draw(st.sampled_from(["COMPLETED", "FAILED"])), OUTPUT)
            case awaited:
                raise AssertionError(awaited)

    def letter(self, event: e.AnyEvent) -> None:
        if self.flow.accepts(event):
            self.run.record(event)

    def meddle(self) -> None:
        if self.mischief == 0 or self.flow.snapshot.status.terminal:
            return
        match self.data.draw(st.integers(0, 15)):
            case 0 | 1:
                self.crash()
            case 2:
                self.letter(e.InstancePaused(e.PauseReason.USER))
            case 3:
                self.letter(e.SignalReceived("s", OUTPUT))
            case 4:
                path = self.data.draw(st.sampled_from(sorted(self.flow.snapshot.nodes) or ["n0"]))
                self.letter(e.ValueSet(path, "output", OUTPUT))
            case _:
                return
        self.mischief -= 1

    def crash(self) -> None:
        """A new process replays the events, finds what ran lost, and must be where the old one was."""
        old, new = self.flow, FlowRun(self.run.graph, self.run.events)
        assert new.snapshot == old.snapshot
        assert new.executing == old.executing
        self.run.run = new
        for path in sorted(new.executing):
            self.run.record(new.lost(path))

    def reopen_perhaps(self) -> bool:
        if self.reopenings == 0 or self.flow.snapshot.status is not InstanceStatus.FAILED:
            return False
        self.reopenings -= 1
        failed = [path for path, state in self.flow.snapshot.nodes.items() if state.status is NodeStatus.FAILED]
        event = self.flow.reopening(e.InstanceReopened(tuple(failed)))
        if not event.reset:
            return False
        self.run.record(event)
        return True


def check_ended(world: World) -> None:
    run, flow = world.run, world.flow
    assert run.plan() == []
    assert flow.executing == set()
    assert flow.snapshot.waiting == {}
    assert {path for path in flow.snapshot.nodes if "/" not in path} == set(flow.graph.nodes)
    for path, state in flow.snapshot.nodes.items():
        # A loop that was to go on by hand, and then was not started, leaves its iterations as they were to begin.
        loops = [path[: place.start()] for place in re.finditer(r"\[", path)]
        assert state.status.terminal or any(flow.snapshot.nodes[loop].started_seq == 0 for loop in loops)


@settings(max_examples=EXAMPLES, deadline=None)
@given(definitions(), st.data())
def test_every_run_ends_and_every_node_with_it(definition: Definition, data: st.DataObject) -> None:
    """Whatever it has in it, whoever meddles: it ends, nothing is started twice, a crash changes nothing."""
    world = World(definition, data)
    world.live()
    check_ended(world)
    failed = [
        id for id, node in world.flow.graph.nodes.items() if node.fail_on_error and world.run.status(id) == "FAILED"
    ]
    assert world.run.status() == ("FAILED" if failed else "COMPLETED")


@settings(max_examples=EXAMPLES, deadline=None)
@given(definitions(), st.data(), st.integers(1, 30))
def test_a_cancel_at_any_moment_ends_the_run(definition: Definition, data: st.DataObject, after: int) -> None:
    """Cancelled after any event, also while it is paused or waits, a run ends CANCELED, or as it had ended already."""
    world = World(definition, data)
    world.reopenings = 0
    for _ in range(after):
        world.meddle()
        choices: list[Any] = [*world.run.plan(), *(("ends", path) for path in sorted(world.flow.executing))]
        if not choices:
            break
        world.answer(data.draw(st.sampled_from(choices)))
    ended = world.run.status() if world.flow.snapshot.status.terminal else None
    if ended is None:
        world.letter(e.CancelRequested())
        world.live()
    check_ended(world)
    assert world.run.status() == (ended or "CANCELED")


@settings(max_examples=EXAMPLES, deadline=None)
@given(definitions(), st.data())
def test_a_debugged_run_ends(definition: Definition, data: st.DataObject) -> None:
    """Stepping and breakpoints stop it, and steps take it to its end."""
    points = (e.Breakpoint("n0"), e.Breakpoint("n1", e.Phase.AFTER, "even"))
    world = World(definition, data, e.Debug(stepping=data.draw(st.booleans()), breakpoints=points))
    world.live()
    check_ended(world)
