"""Which node starts when, which never will, and how a run ends."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from flow import events as e
from flow.actions import Begin, Cancel, End, Fail, Start
from flow.definition import Join, RetryPolicy
from flow.errors import Category, Failure
from flow.joins import Tally, Verdict, verdict
from flow.planner import node_input
from tests.flow.runs import Run, definition


def test_a_created_instance_begins_before_anything_starts() -> None:
    """A PENDING instance is begun first; its entry nodes start when it runs."""
    run = Run("a>b", begin=False)
    assert run.plan() == [Begin()]
    assert run.answer(Begin()).plan() == [Start("a", 1)]


def test_join_waits_for_every_parent() -> None:
    """A node starts only when all its incoming edges are settled."""
    run = Run("a>c b>c").finish("a")
    assert "c" not in run.starts()
    assert run.finish("b").plan() == [Start("c", 1)]


JOINS = [
    # join, live, dead, failed of 2 edges, expected
    (Join.ALL, 1, 0, 0, Verdict.WAIT),
    (Join.ALL, 2, 0, 0, Verdict.START),
    (Join.ALL, 1, 1, 0, Verdict.START),
    (Join.ALL, 0, 2, 0, Verdict.SKIP),
    (Join.ALL, 1, 0, 1, Verdict.SKIP),
    (Join.ALL, 0, 0, 1, Verdict.WAIT),
    (Join.ALL, 0, 1, 1, Verdict.SKIP),
    (Join.ALL_LIVE, 1, 0, 0, Verdict.WAIT),
    (Join.ALL_LIVE, 2, 0, 0, Verdict.START),
    (Join.ALL_LIVE, 1, 1, 0, Verdict.SKIP),
    (Join.ALL_LIVE, 1, 0, 1, Verdict.SKIP),
    (Join.ANY, 1, 0, 0, Verdict.START),
    (Join.ANY, 0, 1, 0, Verdict.WAIT),
    (Join.ANY, 0, 1, 1, Verdict.SKIP),
    (Join.ANY, 1, 0, 1, Verdict.START),
    (Join.ALL_DONE, 0, 1, 0, Verdict.WAIT),
    (Join.ALL_DONE, 0, 1, 1, Verdict.START),
    (Join.ALL_DONE, 0, 2, 0, Verdict.START),
    (Join.NONE_FAILED, 0, 2, 0, Verdict.START),
    (Join.NONE_FAILED, 1, 0, 0, Verdict.WAIT),
    (Join.NONE_FAILED, 1, 0, 1, Verdict.SKIP),
    (Join.ONE_FAILED, 0, 0, 1, Verdict.START),
    (Join.ONE_FAILED, 1, 0, 0, Verdict.WAIT),
    (Join.ONE_FAILED, 1, 1, 0, Verdict.SKIP),
]


@pytest.mark.parametrize(("join", "live", "dead", "failed", "expected"), JOINS)
def test_each_join_follows_its_row_of_the_table(
    join: Join, live: int, dead: int, failed: int, expected: Verdict
) -> None:
    """The table of engine semantics, row by row."""
    assert verdict(join, Tally(total=2, live=live, dead=dead, failed=failed)) is expected


def test_a_condition_not_met_skips_what_hangs_on_it_alone() -> None:
    """A dead edge skips its target with CONDITION, and what follows from it with UPSTREAM_SKIPPED."""
    run = Run("a>b?go b>c a>d").finish("a", {"go": False})
    assert run.skips() == {"b": "CONDITION"}
    run.settle()
    assert run.run.snapshot.nodes["c"].skip_reason == "UPSTREAM_SKIPPED"
    assert run.starts() == {"d"}


def test_a_branch_not_taken_never_blocks_a_join() -> None:
    """A join with one live and one skipped parent starts."""
    run = Run("a>b?left a>c?!left b>d c>d").finish("a", {"left": True}).settle().finish("b")
    assert run.starts() == {"d"}


def test_a_failure_skips_what_needed_it_and_runs_what_was_there_for_it() -> None:
    """on: failure leads on from a failed node that may fail, on: success does not, on: always follows both ends."""
    run = Run("a>ok a!mend a~note", {"a": {"fail_on_error": False}}).fail("a")
    assert run.skips() == {"ok": "UPSTREAM_FAILED"}
    assert run.starts() == {"mend", "note"}
    run.finish("mend").finish("note").settle()
    assert run.status() == "COMPLETED"


def test_a_final_failure_stops_siblings_and_ends_failed() -> None:
    """Running siblings are cancelled, waiting ones skipped, and the first failure is the instance's."""
    run = Run("a b c>d").start("a", "b").fail("a")
    actions = run.plan()
    assert Cancel("b") in actions
    assert {"c": "INSTANCE_ENDED"}.items() <= run.skips().items()
    run.settle()
    assert run.status() == "FAILED"
    assert run.run.snapshot.error is not None
    assert run.run.snapshot.error.code == "BROKEN"


def test_clean_up_runs_in_a_failing_run() -> None:
    """one_failed and all_done nodes, and those reached by a failure edge, still run; they are not cancelled."""
    nodes: dict[str, dict[str, Any]] = {"tidy": {"join": Join.ALL_DONE}, "tell": {"join": Join.ONE_FAILED}}
    run = Run("a>b a>tell b>tidy a!mend", nodes).fail("a")
    run.settle()
    assert run.starts() == {"tidy", "tell", "mend"}
    run.start("tidy", "tell", "mend")
    assert run.plan() == []
    run.finish("tidy").finish("tell").finish("mend").settle()
    assert run.status() == "FAILED"


def test_clean_up_waits_for_cancelled_siblings() -> None:
    """An all_done node downstream of a cancelled sibling starts when the sibling has stopped."""
    run = Run("a x>y y>tidy a>tidy", {"tidy": {"join": Join.ALL_DONE}}).start("a", "x").fail("a")
    assert run.starts() == set()
    run.settle()
    assert run.status("y") == "SKIPPED"
    assert run.starts() == {"tidy"}


def test_a_cancelled_run_starts_nothing_more() -> None:
    """Cancel stops running nodes and skips the others; the instance is CANCELED when they have stopped."""
    run = Run("a>b tidy", {"tidy": {"join": Join.ALL_DONE}}).start("a").record(e.CancelRequested())
    assert Cancel("a") in run.plan()
    assert run.settle().status() == "CANCELED"
    assert run.status("tidy") == "SKIPPED"


def test_a_pending_instance_can_be_cancelled() -> None:
    """Cancelled before its first node, an instance never runs."""
    assert Run("a>b", begin=False).record(e.CancelRequested()).settle().status() == "CANCELED"


def test_cancelling_twice_is_one_cancellation() -> None:
    """The second request changes nothing."""
    run = Run("a").record(e.CancelRequested(reason="first")).record(e.CancelRequested(reason="second"))
    assert run.run.snapshot.cancel == e.CancelRequested(reason="first")


def test_the_total_timeout_ends_the_run() -> None:
    """Past its deadline a run stops its nodes and is TIMED_OUT with EXECUTION_TIMEOUT."""
    run = Run("a>b", created={"timeout": timedelta(seconds=60)}).start("a")
    assert run.run.wake_at() == run.events[0].at + timedelta(seconds=60)
    run.now += timedelta(seconds=60)
    run.settle()
    assert run.status() == "TIMED_OUT"
    assert run.run.snapshot.error is not None
    assert run.run.snapshot.error.code == "EXECUTION_TIMEOUT"


def test_the_queue_timeout_counts_only_until_a_node_starts() -> None:
    """queue_timeout ends a run that starts no node in time, and says nothing to one that did."""
    waiting = Run("a>b", created={"queue_timeout": timedelta(seconds=5)}, begin=False)
    started = Run("a>b", created={"queue_timeout": timedelta(seconds=5)}).start("a")
    waiting.now = started.now = waiting.now + timedelta(seconds=10)
    assert waiting.settle().status() == "TIMED_OUT"
    assert started.plan() == []


def test_room_bounds_starts_and_holds_nothing_back_for_ever() -> None:
    """No more nodes are planned to start than there is room for; the others follow."""
    run = Run("a b c")
    assert len(run.run.plan(run.now, {"default": 2})) == 2
    assert run.run.plan(run.now, {"default": 0}) == []
    run.start("a", "b")
    assert run.run.plan(run.now, {"default": 2}) == [Start("c", 1)]


def test_a_retry_is_due_after_its_delay_and_gives_up_after_its_last() -> None:
    """base × factor^(n-1) apart, max times, then the failure stands."""
    flaky = Failure(code="DOWN", category=Category.CONNECTION, message="down")
    run = Run("a", {"a": {"retry": RetryPolicy(max=2, jitter=0.0, base=timedelta(seconds=10))}}).start("a")
    failed_at = run.now
    run.conclude("a", flaky)
    assert run.plan() == []
    assert run.run.wake_at() == failed_at + timedelta(seconds=10)
    run.now = failed_at + timedelta(seconds=10)
    assert run.plan() == [Start("a", 2)]
    run.start("a")
    failed_at = run.now
    run.conclude("a", flaky)
    assert run.run.wake_at() == failed_at + timedelta(seconds=20)
    run.now = failed_at + timedelta(seconds=20)
    run.start("a").conclude("a", flaky)
    assert run.status("a") == "FAILED"


def test_a_lost_worker_is_not_a_failure_of_the_node() -> None:
    """A lost attempt is made again at once and doesn't use up a retry; on_lost: fail fails it with WORKER_LOST."""
    run = Run("a b", {"b": {"on_lost": "fail"}}).start("a", "b")
    run.record(run.run.lost("a"))
    assert Start("a", 2) in run.plan()
    run.record(run.run.lost("b"))
    assert run.status("b") == "FAILED"
    assert run.run.failure is not None
    assert run.run.failure.category is Category.WORKER_LOST


def test_a_condition_that_cannot_be_evaluated_fails_the_node_behind_it() -> None:
    """The target fails with EXPRESSION and the edge's name; it is not silently skipped."""
    run = Run("a>b?length(n)").finish("a", {"n": 3})
    (action,) = run.plan()
    assert isinstance(action, Fail)
    assert action.error.category is Category.EXPRESSION
    assert "a → b" in action.error.message
    assert run.settle().status() == "FAILED"


def test_too_many_events_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the cap the run fails with EVENT_LIMIT and advice, and starts nothing more."""
    monkeypatch.setattr("flow.books.MAX_EVENTS", 6)
    run = Run("a>b").start("a")
    for _ in range(3):
        run.record(e.NodeLog("a", 1, "again"))
    run.finish("a").settle()
    assert run.status() == "FAILED"
    assert run.run.snapshot.error is not None
    assert run.run.snapshot.error.code == "EVENT_LIMIT"


def test_input_is_the_live_sources_outputs_in_edge_order() -> None:
    """An entry gets the instance's input, a join the outputs of its live sources merged, each through its mapping."""
    graph = definition("a>c b>c d>c?no")
    edges = (replace_mapping(graph.edges[0], {"left.x": "$.x", "kind": "pair"}), *graph.edges[1:])
    run = Run(type(graph)(name="t", triggers=graph.triggers, nodes=graph.nodes, edges=edges), created={"input": 7})
    assert node_input(run.graph, run.run.snapshot.nodes, 7, "a") == 7
    run.finish("a", {"x": 1}).finish("b", {"y": 2}).finish("d", {"z": 3, "no": False})
    assert node_input(run.graph, run.run.snapshot.nodes, 7, "c") == {"left": {"x": 1}, "kind": "pair", "y": 2}


def replace_mapping(edge: Any, mapping: dict[str, Any]) -> Any:
    return type(edge)(edge.source, edge.target, edge.on, edge.condition, mapping)


def test_input_of_an_any_join_is_what_it_started_with() -> None:
    """What an `any` join didn't wait for is not part of its input, on a later attempt neither."""
    run = Run("a>c b>c", {"c": {"join": Join.ANY}}).finish("a", {"x": 1}).start("c").finish("b", {"y": 2})
    assert node_input(run.graph, run.run.snapshot.nodes, None, "c") == {"x": 1}


def test_a_clean_up_node_is_told_what_failed() -> None:
    """A one_failed node gets {error: …} of what failed as its input."""
    run = Run("a>c", {"c": {"join": Join.ONE_FAILED}, "a": {"fail_on_error": False}}).fail("a")
    assert node_input(run.graph, run.run.snapshot.nodes, None, "c")["error"]["code"] == "BROKEN"


def test_output_is_the_mapping_or_the_last_nodes_outputs() -> None:
    """output_mapping speaks of nodes.<id>; without one, the terminal nodes' outputs go by node id."""
    plain = Run("a>b a>c").finish("a").finish("b", 1).finish("c", 2)
    (action,) = plain.plan()
    assert isinstance(action, End)
    assert action.event == e.InstanceCompleted(output={"b": 1, "c": 2})
    mapped = Run(
        definition("a", output_mapping={"where": "$.nodes.a.location", "n": "$.input.n"}), created={"input": {"n": 4}}
    )
    (action,) = mapped.finish("a", {"location": "/x"}).plan()
    assert isinstance(action, End)
    assert action.event == e.InstanceCompleted(output={"where": "/x", "n": 4})


def test_terminal_means_no_actions() -> None:
    """Nothing is planned for an instance that has ended."""
    run = Run("a").finish("a").settle()
    assert run.status() == "COMPLETED"
    assert run.plan() == []


def test_an_event_out_of_order_is_refused() -> None:
    """A snapshot takes events 1, 2, 3 …, and nothing else."""
    run = Run("a")
    with pytest.raises(ValueError, match="can't follow"):
        run.run.apply(replace_seq(run.events[-1], 9))


def replace_seq(recorded: e.Recorded, seq: int) -> e.Recorded:
    return e.Recorded(seq, recorded.at, recorded.event)
