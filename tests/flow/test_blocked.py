"""Why a node isn't running."""

from __future__ import annotations

from datetime import timedelta

from flow import events as e
from flow.blocked import (
    Approval,
    Breakpoint,
    ChildInstance,
    ConcurrencyKey,
    Paused,
    Place,
    Reason,
    RetryDelay,
    Signal,
    Timer,
    UpstreamNodes,
    blocked_by,
)
from flow.errors import Category, Failure
from tests.flow.runs import T0, Run

TIMED_OUT = Failure(code="SLOW", category=Category.TIMEOUT, message="slow")


def reasons(run: Run, path: str) -> tuple[Reason, ...]:
    snapshot = run.run.snapshot
    return blocked_by(run.graph, snapshot.nodes, path, paused=snapshot.pause)


def waiting(awaited: e.Awaited) -> Run:
    return Run("a").start("a").record(e.NodeWaiting("a", 1, awaited))


def test_a_node_waits_for_its_open_sources() -> None:
    """Only those that have not ended are named."""
    run = Run("a>c b>c").finish("a")
    assert reasons(run, "c") == (UpstreamNodes(("b",)),)
    assert reasons(run.start("b"), "c") == (UpstreamNodes(("b",)),)


def test_a_node_that_is_ready_waits_for_a_place() -> None:
    """Nothing else holds it."""
    assert reasons(Run("a"), "a") == (Place("default"),)


def test_what_runs_or_has_ended_is_not_blocked() -> None:
    """There is nothing to tell of a running, a completed or a skipped node."""
    run = Run("a>b?no").start("a")
    assert reasons(run, "a") == ()
    run.finish("a", {"no": False}).settle(lambda action: type(action).__name__ == "Skip")
    assert reasons(run, "a") == reasons(run, "b") == ()


def test_a_retry_has_a_due_time() -> None:
    """The next attempt's number, when it is due, and why the last one failed."""
    run = Run("a").start("a").conclude("a", TIMED_OUT)
    [held] = reasons(run, "a")
    assert isinstance(held, RetryDelay)
    assert held.attempt == 2
    assert held.until == T0 + timedelta(seconds=4)
    assert held.error is not None
    assert held.error.code == "SLOW"


def test_each_wait_is_its_own_reason() -> None:
    """A timer, a signal, an approval, a child: each with what it waits for."""
    signal, approval = e.ForSignal("go"), e.ForApproval("May I?")
    assert reasons(waiting(e.Timer(T0)), "a") == (Timer(T0),)
    assert reasons(waiting(signal), "a") == (Signal(signal),)
    assert reasons(waiting(approval), "a") == (Approval(approval),)
    assert reasons(waiting(e.ForChild("inst-1")), "a") == (ChildInstance("inst-1"),)


def test_a_pause_holds_every_node() -> None:
    """The pause comes first, then what the node would wait for anyway."""
    run = Run("a>b").record(e.InstancePaused(e.PauseReason.USER, by="usr-1"))
    paused = Paused(e.PauseReason.USER, "usr-1", None)
    assert reasons(run, "a") == (paused,)
    assert reasons(run, "b") == (paused, UpstreamNodes(("a",)))


def test_a_breakpoint_holds_the_node_it_is_at() -> None:
    """The others are held by the pause, which says where it is."""
    run = Run("a b").record(e.InstancePaused(e.PauseReason.BREAKPOINT, path="a", phase=e.Phase.BEFORE))
    assert reasons(run, "a") == (Breakpoint(e.PauseReason.BREAKPOINT, e.Phase.BEFORE),)
    assert reasons(run, "b") == (Paused(e.PauseReason.BREAKPOINT, None, "a"),)


def test_a_gate_holds_the_whole_run() -> None:
    """A run that waits for its turn says for which."""
    run = Run("a", begin=False)
    gate = ConcurrencyKey("camera-7", 1)
    assert blocked_by(run.graph, run.run.snapshot.nodes, "a", gate=gate) == (gate,)
