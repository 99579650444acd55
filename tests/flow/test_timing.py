"""Where a run's time went, and how far it has come."""

from __future__ import annotations

from datetime import timedelta

import pytest

from flow import events as e
from flow.timing import critical_path, progress
from tests.flow.runs import T0, Run


def path(run: Run) -> list[str]:
    return [step.path for step in critical_path(run.graph, run.run.snapshot.nodes, T0, run.now)]


def done(run: Run, **past_s: float) -> float:
    return progress(run.graph, run.run.snapshot.nodes, past_s, run.now)


def test_the_critical_path_goes_through_the_parent_that_ended_last() -> None:
    """Of two parents, the one that the join had to wait for is on the path; the quicker one is not."""
    run = Run("a>c b>c c>d").start("a", "b").finish("b").finish("a").finish("c").finish("d")
    assert path(run) == ["a", "c", "d"]


def test_a_join_of_any_was_released_by_its_first_parent() -> None:
    """What ended after the start of a node did not hold it up."""
    run = Run("a>c b>c", {"c": {"join": "any"}}).start("a", "b").finish("b").start("c").finish("a").finish("c")
    assert path(run) == ["b", "c"]


def test_a_critical_path_tells_work_from_waiting() -> None:
    """Each step says how long the node took, and how long it stood ready before."""
    run = Run("a>b").start("a").finish("a")
    run.now += timedelta(seconds=10)
    run.start("b").finish("b")
    _, second = critical_path(run.graph, run.run.snapshot.nodes, T0, run.now)
    assert (second.waited, second.duration) == (timedelta(seconds=11), timedelta(seconds=1))


def test_a_run_under_way_has_a_path_to_what_runs() -> None:
    """Of the nodes that run the one that began first is at the end of the path, and its time goes on."""
    run = Run("a>b a>c").start("a").finish("a").start("b", "c")
    steps = critical_path(run.graph, run.run.snapshot.nodes, T0, run.now + timedelta(seconds=60))
    assert [step.path for step in steps] == ["a", "b"]
    assert steps[-1].completed_at is None
    assert steps[-1].duration > timedelta(seconds=60)


def test_a_path_leads_through_skipped_nodes() -> None:
    """A skipped node takes no time and is not on the path; what released it is."""
    run = Run("a>b?no a>c b>d c>d", {"d": {"join": "all_done"}})
    run.finish("a", {"no": False}).finish("c").settle().finish("d")
    assert path(run) == ["a", "d"]


def test_nothing_has_begun() -> None:
    """A run without a started node has no path and no progress."""
    run = Run("a>b")
    assert path(run) == []
    assert done(run) == 0.0


def test_progress_is_weighted_by_the_past() -> None:
    """Half of the nodes are a tenth of the work, if they used to take a tenth of the time."""
    run = Run("a>b").finish("a")
    assert done(run) == 0.5
    assert done(run, a=1.0, b=9.0) == pytest.approx(0.1)
    assert done(run.finish("b"), a=1.0, b=9.0) == 1.0


def test_a_node_without_a_past_weighs_what_others_do() -> None:
    """The mean of the known ones stands in."""
    assert done(Run("a>b b>c").finish("a"), a=2.0, b=4.0) == pytest.approx(2 / 9)


def test_a_running_node_counts_by_its_word_or_its_time() -> None:
    """What a node says of itself comes before what the clock says; neither makes it done."""
    run = Run("a").start("a")
    assert done(run, a=10.0) == pytest.approx(0.1)
    assert done(run, a=0.5) == 0.95
    run.record(e.NodeProgress("a", 1, done=3.0, total=4.0))
    assert done(run, a=100.0) == 0.75


def test_a_skipped_node_is_done() -> None:
    """What will not run is not waited for."""
    run = Run("a>b?no").finish("a", {"no": False}).settle(lambda action: type(action).__name__ == "Skip")
    assert done(run) == 1.0
