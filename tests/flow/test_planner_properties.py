"""What holds for every graph, in any order of completion, with a crash after any event."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from flow import events as e
from flow.actions import Cancel, Start
from flow.definition import Definition, Edge, Join, Node, On, RetryPolicy, TriggerSpec
from flow.errors import Category, Failure
from flow.history import replay
from flow.planner import Mode
from flow.planner import Run as FlowRun
from flow.states import NodeStatus, SkipReason
from tests.flow.runs import Run

FLAKY = Failure(code="DOWN", category=Category.CONNECTION, message="down")


@st.composite
def definitions(draw: st.DrawFn) -> Definition:
    """Any DAG of up to eight nodes with any joins, edges, conditions and failure policies."""
    count = draw(st.integers(1, 8))
    nodes = tuple(
        Node(
            f"n{i}",
            "core/noop",
            join=draw(st.sampled_from(Join)),
            fail_on_error=draw(st.booleans()),
            retry=RetryPolicy(max=draw(st.integers(0, 2)), base=timedelta(seconds=5), jitter=0.0),
            on_lost=draw(st.sampled_from(["retry", "fail"])),
        )
        for i in range(count)
    )
    edges = tuple(
        Edge(
            f"n{i}",
            f"n{j}",
            draw(st.sampled_from(On)),
            draw(st.sampled_from([None, None, "even", "!even", "length(number)"])),
        )
        for j in range(count)
        for i in range(j)
        if draw(st.booleans())
    )
    return Definition(name="any", triggers=(TriggerSpec("t", "manual"),), nodes=nodes, edges=edges)


class World:
    """Answers a run's plans as the draws say, and checks what must hold after every event."""

    def __init__(self, definition: Definition, data: st.DataObject) -> None:
        self.data = data
        self.run = Run(definition, begin=False)
        self.started: dict[str, list[int]] = {}
        #: Attempts that may still die with their worker: a world that always crashes never ends.
        self.deaths = 4

    def live(self) -> None:
        """To the end, however the draws go."""
        for _ in range(500):
            self.crash_perhaps()
            actions = self.run.plan()
            running = sorted(self.run.run.snapshot.running)
            choices: list[Any] = [action for action in actions if not isinstance(action, Cancel) or action.path]
            choices += [("ends", id) for id in running]
            choices += [("taken", id) for id in sorted(self.run.run.snapshot.offered) if id not in running]
            if not choices:
                wake_at = self.run.run.wake_at()
                if self.run.run.snapshot.status.terminal or wake_at is None:
                    break
                self.run.now = max(self.run.now, wake_at)
                continue
            self.answer(self.data.draw(st.sampled_from(choices)))
        assert self.run.run.snapshot.status.terminal, "the run never ended"

    def answer(self, choice: Any) -> None:
        run = self.run
        match choice:
            case Start(path, attempt):
                assert attempt not in self.started.setdefault(path, []), f"{path} was started twice"
                self.started[path].append(attempt)
                assert run.status(path) in ("PENDING", "RETRYING")
                assert path not in run.run.snapshot.offered, f"{path} was offered twice"
                if self.data.draw(st.integers(0, 2)) == 0:
                    run.record(e.NodeScheduled(path, attempt))
                else:
                    run.answer(choice)
            case ("taken", id):
                run.record(e.NodeStarted(id, run.run.snapshot.nodes[id].attempt, "another worker"))
            case Cancel(path) if path in run.run.snapshot.offered and run.status(path) == "PENDING":
                run.record(e.NodeSkipped(path, SkipReason.INSTANCE_ENDED.value))
            case ("ends", id):
                how = self.data.draw(st.sampled_from(["completes", "fails", *(["lost"] if self.deaths else [])]))
                attempt = run.run.snapshot.nodes[id].attempt
                if how == "completes":
                    run.record(e.NodeCompleted(id, attempt, {"even": int(id[1:]) % 2 == 0, "number": 3}))
                elif how == "fails":
                    run.conclude(id, FLAKY)
                else:
                    self.deaths -= 1
                    run.record(run.run.lost(id))
            case _:
                run.answer(choice)

    def crash_perhaps(self) -> None:
        """A new process replays the events, finds what ran lost, and must be where the old one was."""
        if self.deaths == 0 or self.data.draw(st.integers(0, 5)) != 0:
            return
        self.deaths -= 1
        old = self.run.run
        new = FlowRun(self.run.graph, self.run.events)
        assert new.snapshot == old.snapshot
        assert replay(self.run.events) == replay(self.run.events)
        self.run.run = new
        assert new.executing == new.snapshot.running - set(new.snapshot.offered), "what others run is not lost with us"
        for id in sorted(new.executing):
            self.run.record(new.lost(id))


@settings(max_examples=200, deadline=None)
@given(definitions(), st.data())
def test_every_run_ends_and_every_node_with_it(definition: Definition, data: st.DataObject) -> None:
    """No node starts twice in an attempt, every node ends, a terminal run has nothing to do."""
    world = World(definition, data)
    world.live()
    run = world.run
    assert run.plan() == []
    assert set(run.run.snapshot.nodes) == {node.id for node in definition.nodes}
    assert all(state.status.terminal for state in run.run.snapshot.nodes.values())
    failed = [node.id for node in definition.nodes if node.fail_on_error and run.status(node.id) == "FAILED"]
    assert run.status() == ("FAILED" if failed else "COMPLETED")


@settings(max_examples=200, deadline=None)
@given(definitions(), st.data(), st.integers(1, 12))
def test_a_cancel_at_any_moment_ends_the_run(definition: Definition, data: st.DataObject, after: int) -> None:
    """Cancelled after any event, a run ends CANCELED, or as it had ended already."""
    world = World(definition, data)
    for _ in range(after):
        snapshot = world.run.run.snapshot
        choices = [*world.run.plan(), *(("ends", id) for id in sorted(snapshot.running))]
        choices += [("taken", id) for id in sorted(snapshot.offered) if id not in snapshot.running]
        if not choices:
            break
        world.answer(data.draw(st.sampled_from(choices)))
    ended = world.run.status() if world.run.run.snapshot.status.terminal else None
    if ended is None:
        world.run.record(e.CancelRequested())
        world.live()
    assert world.run.status() == (ended or "CANCELED")


@settings(max_examples=200, deadline=None)
@given(definitions(), st.randoms(use_true_random=False))
def test_the_order_of_siblings_does_not_matter(definition: Definition, chance: Any) -> None:
    """Whatever runs first, the same nodes complete and the same are skipped for the same reason."""
    ends = [finished(definition, lambda actions: actions[0]), finished(definition, chance.choice)]
    assert ends[0] == ends[1]


def finished(definition: Definition, choose: Any) -> dict[str, tuple[str, str | None]]:
    """How every node ended when each attempt completes and ``choose`` picks what happens next."""
    nodes = tuple(Node(node.id, node.type, join=node.join, fail_on_error=False) for node in definition.nodes)
    run = Run(Definition(name="any", triggers=definition.triggers, nodes=nodes, edges=definition.edges))
    while not run.run.snapshot.status.terminal:
        actions = run.plan()
        choices: list[Any] = [*actions, *(("ends", id) for id in sorted(run.run.snapshot.running))]
        choice = choose(choices)
        if isinstance(choice, tuple):
            run.record(e.NodeCompleted(choice[1], 1, {"even": int(choice[1][1:]) % 2 == 0, "number": 3}))
        else:
            run.answer(choice)
    return {id: (str(state.status), state.skip_reason) for id, state in run.run.snapshot.nodes.items()}


@settings(max_examples=200, deadline=None)
@given(definitions(), st.data())
def test_a_cleaning_run_starts_only_what_cleans_up(definition: Definition, data: st.DataObject) -> None:
    """Once a run fails, ordinary nodes are not started any more."""
    world = World(definition, data)
    run = world.run
    for _ in range(300):
        if run.run.snapshot.status.terminal:
            break
        actions = run.plan()
        if run.run.mode(run.now) is Mode.FAILING:
            for action in actions:
                if isinstance(action, Start) and action.attempt == 1:
                    node = run.graph.nodes[action.path]
                    sources = [edge.source for edge in run.graph.incoming[node.id] if edge.on is not On.SUCCESS]
                    failed = any(run.status(source) == NodeStatus.FAILED for source in sources)
                    assert node.join in (Join.ALL_DONE, Join.ONE_FAILED) or failed
        snapshot = run.run.snapshot
        choices: list[Any] = [*actions, *(("ends", id) for id in sorted(snapshot.running))]
        choices += [("taken", id) for id in sorted(snapshot.offered) if id not in snapshot.running]
        if not choices:
            wake_at = run.run.wake_at()
            assert wake_at is not None
            run.now = max(run.now, wake_at)
            continue
        world.answer(data.draw(st.sampled_from(choices)))
