"""Branches, waits, pauses, the debugger, pins and retries by hand, as the flow decides them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from flow import events as e
from flow.actions import Cancel, Complete, Fail, Pause, Spawn, Start, Wait
from flow.definition import Definition, Join
from flow.events import PauseReason, Phase
from tests.flow.runs import T0, Run, definition, node


def controlled(picture: str, **nodes: dict[str, Any]) -> Definition:
    """The picture, with these nodes' types and parameters: ``x={"type": "core/delay", "duration": 5}``."""
    return definition(picture, {id: node(**given) for id, given in nodes.items()})


def test_a_condition_takes_the_first_case_that_is_true() -> None:
    """The input goes on with the branch's name; the other branches are skipped."""
    cases = [{"name": "big", "when": "size > `10`"}, {"name": "any", "when": "`true`"}]
    picture = controlled("if>a?branch=='big' if>b?branch=='any'", **{"if": {"type": "core/condition", "cases": cases}})
    run = Run(picture, created={"input": {"size": 20}}).control()
    assert run.output("if") == {"size": 20, "branch": "big"}
    assert run.starts() == {"a"}
    assert run.status("b") == "SKIPPED"


def test_a_condition_without_a_true_case_takes_its_default_or_none() -> None:
    """No case, no default: the branch is null and nothing hangs on it."""
    cases = [{"name": "big", "when": "size > `10`"}]
    without = controlled("if>a?branch=='big'", **{"if": {"type": "core/condition", "cases": cases}})
    assert Run(without, created={"input": {"size": 1}}).control().status() == "COMPLETED"
    default = controlled("if", **{"if": {"type": "core/condition", "cases": cases, "default": "small"}})
    assert Run(default, created={"input": {"size": 1}}).control().output("if")["branch"] == "small"


def test_a_case_that_cannot_be_evaluated_fails_the_node() -> None:
    """It isn't silently another branch."""
    cases = [{"name": "big", "when": "length(size)"}]
    run = Run(controlled("if", **{"if": {"type": "core/condition", "cases": cases}}), created={"input": {"size": 1}})
    assert run.control().status() == "FAILED"


def test_a_delay_waits_until_its_time_and_gives_its_input_on() -> None:
    """Nothing is to be done meanwhile; wake_at says when."""
    run = Run(controlled("d>a", d={"type": "core/delay", "duration": "1h"}), created={"input": {"x": 1}}).control()
    assert run.status("d") == "WAITING"
    assert run.plan() == []
    wake_at = run.run.wake_at()
    assert wake_at is not None
    assert T0 + timedelta(hours=1) <= wake_at <= T0 + timedelta(hours=1, seconds=5)
    run.now = wake_at
    assert run.plan() == [Complete("d", {"x": 1})]
    assert run.control().starts() == {"a"}


def test_a_delay_until_an_instant_that_has_passed_is_none() -> None:
    """And one that is no instant fails the node."""
    run = Run(controlled("d", d={"type": "core/delay", "until": "2020-01-01T00:00:00Z"})).control()
    assert run.status() == "COMPLETED"
    run = Run(controlled("d", d={"type": "core/delay", "until": "{{ when }}"}), created={"input": {"when": "soon"}})
    run.control()
    assert run.error("d").code == "BAD_PARAMETERS"


def test_a_signal_completes_the_node_that_waits_for_it() -> None:
    """The oldest waiting node of that name gets the payload."""
    wait = {"type": "core/wait-signal", "name": "paid"}
    run = Run(controlled("a b", a=wait, b=wait)).control()
    run.record(e.SignalReceived("other", 0)).control()
    assert run.status("a") == "WAITING"
    run.record(e.SignalReceived("paid", {"sum": 1})).control()
    assert (run.output("a"), run.status("b")) == ({"sum": 1}, "WAITING")
    assert run.record(e.SignalReceived("paid", {"sum": 2})).control().output("b") == {"sum": 2}


def test_a_signal_before_its_wait_is_kept_and_used_once() -> None:
    """The first wait takes it, the second waits for another."""
    wait = {"type": "core/wait-signal", "name": "paid"}
    run = Run(controlled("x>a a>b", a=wait, b=wait)).record(e.SignalReceived("paid", 1)).finish("x").control()
    assert (run.output("a"), run.status("b")) == (1, "WAITING")


def test_a_signal_that_does_not_fit_is_not_taken() -> None:
    """It stays for a wait that takes it."""
    wait = {"type": "core/wait-signal", "name": "paid", "schema": {"type": "object"}}
    run = Run(controlled("a", a=wait)).control().record(e.SignalReceived("paid", 1)).control()
    assert run.status("a") == "WAITING"
    assert run.record(e.SignalReceived("paid", {})).control().status() == "COMPLETED"


def test_a_signal_that_does_not_come_fails_the_node_at_its_deadline() -> None:
    """WAIT_TIMEOUT; the node's own timeout doesn't count while it waits."""
    wait = {"type": "core/wait-signal", "name": "paid", "deadline": "2d"}
    run = Run(controlled("a", a=wait)).control()
    run.now += timedelta(hours=47)
    assert run.plan() == []
    run.now += timedelta(hours=2)
    assert run.control().error("a").code == "WAIT_TIMEOUT"


def test_an_approval_completes_with_the_answer() -> None:
    """A rejection completes the node too: an edge asks for `approved`."""
    picture = controlled("ask>go?approved", ask={"type": "core/approval", "title": "{{ what }}?", "who": ["ann"]})
    run = Run(picture, created={"input": {"what": "Ship"}})
    run.control(lambda action: isinstance(action, Start))
    assert run.plan() == [Wait("ask", e.ForApproval("Ship?", who=("ann",)))]
    run.control().record(e.ApprovalAnswered("ask", False, comment="no", by="ann")).control()
    assert run.output("ask") == {"approved": False, "answer": None, "comment": "no", "by": "ann", "timed_out": False}
    assert run.status("go") == "SKIPPED"


def test_an_approval_is_answered_once() -> None:
    """The second answer means nothing any more, and neither does one for a node that doesn't wait."""
    run = Run(controlled("ask", ask={"type": "core/approval", "title": "?"})).control()
    answer = e.ApprovalAnswered("ask", True)
    assert run.run.accepts(answer)
    run.record(answer)
    assert not run.run.accepts(answer)
    assert not run.run.accepts(e.ApprovalAnswered("nobody", True))


def test_no_answer_counts_as_the_approval_says() -> None:
    """fail, approve or reject, at the deadline."""
    ended = {}
    for then in ("fail", "approve", "reject"):
        ask = {"type": "core/approval", "title": "?", "deadline": "1h", "on_timeout": then}
        run = Run(controlled("ask", ask=ask)).control()
        run.now += timedelta(hours=2)
        run.control()
        ended[then] = run.output("ask")["approved"] if run.status("ask") == "COMPLETED" else run.error("ask").code
    assert ended == {"fail": "WAIT_TIMEOUT", "approve": True, "reject": False}


def test_a_child_ends_the_node_that_waits_for_it() -> None:
    """With its output, or failed with why it failed."""
    picture = controlled("c", c={"type": "core/workflow", "workflow": "other", "input": {"n": "{{ n }}"}})
    run = Run(picture, created={"input": {"n": 1}}).control(lambda action: isinstance(action, Start))
    assert run.plan() == [Spawn("c", "other", None, {"n": 1}, True, "cancel")]
    run.control()
    assert not run.run.accepts(e.ChildEnded("c", "inst-another", "COMPLETED"))
    good = e.ChildEnded("c", "inst-c", "COMPLETED", output=7)
    assert run.run.accepts(good)
    assert run.record(good).control().output("c") == 7
    bad = Run(picture, created={"input": {"n": 1}}).control().record(e.ChildEnded("c", "inst-c", "CANCELED")).control()
    assert bad.error("c").code == "CHILD_FAILED"


def test_a_cancel_ends_every_wait() -> None:
    """Whatever is waited for."""
    waits: dict[str, dict[str, Any]] = {
        "a": {"type": "core/delay", "duration": "1h"},
        "b": {"type": "core/wait-signal", "name": "x"},
        "c": {"type": "core/approval", "title": "?"},
        "d": {"type": "core/workflow", "workflow": "w"},
    }
    run = Run(controlled("a b c d", **waits)).control().record(e.CancelRequested())
    assert {action.path for action in run.plan() if isinstance(action, Cancel)} == set(waits)
    assert run.settle().status() == "CANCELED"


# ---- pause and debug ------------------------------------------------------------------------------------------


def test_a_paused_run_starts_nothing_and_goes_on_when_resumed() -> None:
    """Running nodes finish; a timer that comes due waits for the resumption."""
    run = Run(controlled("a>b d>c", d={"type": "core/delay", "duration": 5})).start("a").control()
    run.record(e.InstancePaused(PauseReason.USER)).finish("a")
    run.now += timedelta(hours=1)
    assert run.plan() == []
    assert run.run.wake_at() is None
    assert run.run.held_up(run.now) == set()
    run.record(e.InstanceResumed())
    assert run.control().starts() == {"b", "c"}


def test_a_paused_run_can_be_cancelled_and_times_out() -> None:
    """Neither waits for the resumption."""
    paused = e.InstancePaused(PauseReason.USER)
    cancelled = Run("a>b").start("a").record(paused).record(e.CancelRequested()).settle()
    assert cancelled.status() == "CANCELED"
    late = Run("a>b", created={"timeout": timedelta(minutes=1)}).record(paused)
    assert late.run.wake_at() == T0 + timedelta(minutes=1)
    late.now += timedelta(minutes=2)
    assert late.settle().status() == "TIMED_OUT"


def test_a_run_paused_before_its_first_node_goes_on_when_resumed() -> None:
    """PENDING → PAUSED → RUNNING."""
    run = Run("a", begin=False).record(e.InstancePaused(PauseReason.USER))
    assert run.plan() == []
    assert run.record(e.InstanceResumed()).starts() == {"a"}


def test_stepping_stops_before_every_node() -> None:
    """A step lets exactly one node go on; continuing ends it."""
    run = Run("a b>c", created={"debug": e.Debug(stepping=True)})
    assert run.plan() == [Pause(PauseReason.STEP, "a", Phase.BEFORE)]
    run.answer(run.plan()[0]).record(e.InstanceResumed(step=True))
    assert run.plan() == [Start("a", 1)]
    run.start("a")
    assert run.plan() == [Pause(PauseReason.STEP, "b", Phase.BEFORE)]
    run.answer(run.plan()[0]).record(e.InstanceResumed())
    assert run.plan() == [Start("b", 1)]
    assert run.finish("b").starts() == {"c"}


def test_a_breakpoint_stops_where_its_condition_is_true() -> None:
    """BEFORE on the node's scope; one that can't be evaluated stops as well."""
    point = e.Breakpoint("b", Phase.BEFORE, "n > `1`")
    for n, stops in ((1, False), (2, True)):
        run = Run("a>b", created={"debug": e.Debug(breakpoints=(point,))}).finish("a", {"n": n})
        assert (run.plan() == [Pause(PauseReason.BREAKPOINT, "b", Phase.BEFORE)]) is stops
    broken = e.Debug(breakpoints=(e.Breakpoint("a", Phase.BEFORE, "length(`1`)"),))
    run = Run("a", created={"debug": broken})
    assert run.plan() == [Pause(PauseReason.BREAKPOINT, "a", Phase.BEFORE)]
    assert run.answer(run.plan()[0]).record(e.InstanceResumed()).starts() == {"a"}


def test_a_breakpoint_after_a_node_stops_before_its_successors() -> None:
    """Its output can be changed there, and the edges go by the new one."""
    debug = e.Debug(breakpoints=(e.Breakpoint("a", Phase.AFTER, "output.n == `1`"),))
    run = Run("a>b?go a>c?!go", created={"debug": debug}).finish("a", {"n": 1, "go": False})
    assert run.plan() == [Pause(PauseReason.BREAKPOINT, "a", Phase.AFTER)]
    run.answer(run.plan()[0])
    assert run.plan() == []
    assert run.run.accepts(e.ValueSet("a", "output", {}))
    run.record(e.ValueSet("a", "output", {"n": 2, "go": True})).record(e.InstanceResumed())
    assert run.settle().starts() == {"b"}
    assert run.skips() == {}
    assert run.status("c") == "SKIPPED"
    assert not run.run.accepts(e.ValueSet("a", "output", {}))


def test_a_failure_is_mended_by_an_output_given_at_the_breakpoint() -> None:
    """The node counts as COMPLETED, and the run no longer fails."""
    run = Run("a>b", created={"debug": e.Debug(breakpoints=(e.Breakpoint("a", Phase.AFTER),))}).fail("a")
    run.answer(run.plan()[0]).record(e.ValueSet("a", "output", 5)).record(e.InstanceResumed())
    assert run.starts() == {"b"}
    assert run.finish("b").settle().status() == "COMPLETED"


def test_an_input_or_output_given_before_a_node_is_used() -> None:
    """A given input takes the place of the sources' outputs; with a given output the node doesn't run."""
    run = Run("a>b b>c").finish("a", {"x": 1}).record(e.ValueSet("b", "input", {"x": 9}))
    assert run.run.input("b") == {"x": 9}
    run.record(e.ValueSet("b", "output", {"y": 2}))
    assert run.starts() == {"c"}
    assert run.run.input("c") == {"y": 2}


def test_a_pinned_node_completes_without_running() -> None:
    """As soon as its join would start it, and not before."""
    run = Run("a>b b>c", created={"pins": (e.Pin("b", {"x": 1}),)})
    assert run.starts() == {"a"}
    assert run.finish("a").plan() == [Complete("b", {"x": 1}, cached=True)]
    assert run.settle().starts() == {"c"}
    entry = Run("a>b", created={"pins": (e.Pin("a", 1),)})
    assert entry.settle().starts() == {"b"}


def test_parameters_given_at_the_start_overlay_the_definitions() -> None:
    """What isn't given stays."""
    run = Run(definition("a", parameters={"x": 1, "y": 1}), created={"parameters": {"y": 2}})
    assert run.run.names("a", None)["parameters"] == {"x": 1, "y": 2}


# ---- retries by hand ------------------------------------------------------------------------------------------


def test_a_failed_run_goes_on_where_it_failed() -> None:
    """The failed node runs again with the next attempt number, what was skipped for it too; what is done stays done."""
    run = Run("a>b b>c x>y").finish("a").start("x").fail("b").settle()
    assert run.status() == "FAILED"
    assert run.status("x") == "CANCELED"
    event = run.run.reopening(e.InstanceReopened(("b",), by="ann"))
    assert set(event.reset) == {"b", "c", "x", "y"}
    run.record(event)
    assert run.status() == "RUNNING"
    assert {(action.path, action.attempt) for action in run.plan() if isinstance(action, Start)} == {("b", 2), ("x", 2)}
    run.finish("b").finish("c").finish("x").finish("y").settle()
    assert run.status() == "COMPLETED"


def test_retries_count_anew_after_a_retry_by_hand() -> None:
    """So does the timeout: it had passed while the run lay there."""
    run = Run("a", created={"timeout": timedelta(hours=1)}).start("a").fail("a").settle()
    run.now += timedelta(hours=3)
    run.record(run.run.reopening(e.InstanceReopened(("a",))))
    assert run.plan() == [Start("a", 2)]


def test_a_clean_up_node_that_ran_is_not_run_again() -> None:
    """A node runs once; the clean-up was done."""
    run = Run("a>b a>tidy", {"tidy": {"join": Join.ONE_FAILED}}).fail("a").settle().finish("tidy").settle()
    run.record(run.run.reopening(e.InstanceReopened(("a",)))).finish("a").finish("b").settle()
    assert run.status() == "COMPLETED"
    assert run.run.snapshot.nodes["tidy"].attempt == 1


def test_a_control_node_with_wrong_parameters_fails_for_good() -> None:
    """BAD_PARAMETERS, and no retry."""
    bad = controlled("l", l={"type": "core/wait-signal", "name": "{{ n }}"})
    run = Run(bad, created={"input": {"n": 7}}).control(lambda action: isinstance(action, Start))
    (action,) = run.plan()
    assert isinstance(action, Fail)
    assert action.error.code == "BAD_PARAMETERS"
