"""What people do with a run: pause it, retry it, debug it, fork it."""

from __future__ import annotations

import pytest

from engine.access import LOCAL
from flow import events as e
from flow.errors import Conflict, Invalid, NotFound
from tests.engine.nodes import gate
from tests.tour.conftest import Tour

CHAIN = """
nodes:
  - {id: a, type: core/transform, parameters: {output: {n: 1}}}
  - {id: b, type: core/transform, parameters: {output: {n: "{{ n }}", twice: true}}}
  - {id: c, type: core/noop}
edges: [{source: a, target: b}, {source: b, target: c}]
"""


async def test_pause_and_resume(tour: Tour) -> None:
    """What runs finishes; what comes after it waits for the resumption."""
    entered, go = gate("pause-and-resume")
    id = await tour.start("""
nodes: [{id: a, type: test/gate, parameters: {gate: pause-and-resume}}, {id: b, type: core/noop}]
edges: [{source: a, target: b}]
""")
    await entered.wait()
    await tour.engine.instances.pause(LOCAL, id)
    paused = await tour.until(id, e.InstancePaused)
    go.set()
    await tour.until(id, e.NodeCompleted, "a", after=paused.seq)
    await tour.engine.instances.resume(LOCAL, id)
    told = await tour.end(id)
    order = [recorded.type for recorded in told.events if recorded.seq > paused.seq]
    assert order.index("instance.resumed") < order.index("node.started")
    assert told.status == "COMPLETED"


async def test_only_a_paused_run_is_resumed(tour: Tour) -> None:
    """Everything else is a Conflict."""
    told = await tour.run(CHAIN)
    with pytest.raises(Conflict):
        await tour.engine.instances.resume(LOCAL, told.id)


async def test_a_failed_node_is_retried_by_hand(tour: Tour) -> None:
    """The run goes on from there: what was skipped for the failure runs too, what had completed does not run again."""
    id = await tour.start("""
nodes:
  - {id: first, type: core/noop}
  - {id: flaky, type: test/flaky, parameters: {succeeds_at: 2}, retry: {max: 0}}
  - {id: last, type: core/noop}
edges: [{source: first, target: flaky}, {source: flaky, target: last}]
""")
    failed = await tour.end(id)
    assert (failed.status, failed.node("flaky")) == ("FAILED", "FAILED")
    await tour.engine.instances.retry(LOCAL, id, ["flaky"])
    await tour.until(id, e.InstanceCompleted, after=failed.events[-1].seq)
    snapshot = await tour.now(id)
    assert {path: str(node.status) for path, node in snapshot.nodes.items()} == dict.fromkeys(
        ("first", "flaky", "last"), "COMPLETED"
    )
    assert snapshot.nodes["first"].attempt == 1
    assert snapshot.nodes["flaky"].attempt == 2


async def test_stepping(tour: Tour) -> None:
    """Stepping pauses before every node; each step runs one."""
    id = await tour.start(CHAIN, debug=e.Debug(stepping=True))
    seq = 0
    for path in ("a", "b", "c"):
        stop = await tour.until(id, e.InstancePaused, path, after=seq)
        assert isinstance(stop.event, e.InstancePaused)
        assert (stop.event.reason, stop.event.phase) == (e.PauseReason.STEP, e.Phase.BEFORE)
        seq = stop.seq
        await tour.engine.instances.debug_step(LOCAL, id)
    assert (await tour.end(id)).status == "COMPLETED"


async def test_a_conditional_breakpoint(tour: Tour) -> None:
    """It stops only where its expression holds, on what the node sees."""
    for wanted, stops in (("n == `1`", True), ("n == `2`", False)):
        id = await tour.start(CHAIN, debug=e.Debug(breakpoints=(e.Breakpoint("b", when=wanted),)))
        if stops:
            await tour.until(id, e.InstancePaused, "b")
            await tour.engine.instances.debug_continue(LOCAL, id)
        told = await tour.end(id)
        assert told.status == "COMPLETED"
        assert any(isinstance(recorded.event, e.InstancePaused) for recorded in told.events) is stops


async def test_edit_and_continue(tour: Tour) -> None:
    """At a breakpoint AFTER a node its output is changed, and the run goes on with the new one."""
    id = await tour.start(CHAIN, debug=e.Debug(breakpoints=(e.Breakpoint("a", e.Phase.AFTER),)))
    await tour.until(id, e.InstancePaused, "a")
    await tour.engine.instances.debug_value_set(LOCAL, id, "a", "output", {"n": 42})
    await tour.engine.instances.debug_continue(LOCAL, id)
    assert (await tour.end(id)).gave("c") == {"n": 42, "twice": True}


async def test_another_input_for_a_node(tour: Tour) -> None:
    """At a breakpoint BEFORE a node its input is changed."""
    id = await tour.start(CHAIN, debug=e.Debug(breakpoints=(e.Breakpoint("b"),)))
    await tour.until(id, e.InstancePaused, "b")
    await tour.engine.instances.debug_value_set(LOCAL, id, "b", "input", {"n": 7})
    await tour.engine.instances.debug_continue(LOCAL, id)
    assert (await tour.end(id)).gave("b") == {"n": 7, "twice": True}


async def test_a_breakpoint_on_an_unknown_node_is_refused(tour: Tour) -> None:
    """At the start and later."""
    with pytest.raises(Invalid, match="zz"):
        await tour.start(CHAIN, debug=e.Debug(breakpoints=(e.Breakpoint("zz"),)))


async def test_a_fork_does_not_do_again_what_was_done(tour: Tour) -> None:
    """It begins where the old run was before `b`: `a` keeps its output, unless a pin gives another."""
    old = await tour.run(CHAIN)
    for pins, n in (({}, 1), ({"a": {"n": 9}}, 9)):
        forked = await tour.engine.instances.fork(LOCAL, old.id, node="b", pins=pins)
        told = await tour.end(forked.instance_id)
        assert told.starts("a") == 0
        assert told.snapshot.nodes["a"].cached
        assert told.gave("c") == {"n": n, "twice": True}


async def test_a_fork_from_an_event_that_is_not_there(tour: Tour) -> None:
    """It is refused by name."""
    old = await tour.run(CHAIN)
    with pytest.raises(NotFound, match="999"):
        await tour.engine.instances.fork(LOCAL, old.id, seq=999)
