"""What is done to a run under way: every operation once as it should go, and each refusal."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest

from db.store.keyset import All, Compare
from engine.access import LOCAL, ROLES, Actor
from engine.engine import Engine
from flow import events as e
from flow.errors import Conflict, Denied, Invalid, NotFound
from flow.states import WorkflowStatus
from tests.engine.conftest import chain, document, engine_on, history, started, types
from tests.engine.following import resting, row, statuses, until
from tests.engine.nodes import gate

FORM = {"type": "object", "required": ["reason"]}
APPROVAL = {
    "id": "ok",
    "type": "core/approval",
    "parameters": {"title": "Publish?", "form": FORM},
}
SIGNAL = {
    "id": "paid",
    "type": "core/wait-signal",
    "parameters": {"name": "payment", "schema": {"type": "object", "required": ["amount"]}},
}
SOMEBODY = Actor("usr-somebody", "somebody", LOCAL.project_id, ROLES["viewer"])


def gated(name: str, *after: str) -> dict[str, Any]:
    """A gate, then nodes of these types."""
    definition = chain("test/gate", *after)
    definition["nodes"][0]["parameters"] = {"gate": name}
    return definition


async def test_pause_lets_running_nodes_finish_and_starts_no_other(engine: Engine) -> None:
    """The run is PAUSED until it is resumed; pausing twice is pausing once."""
    entered, go = gate("paused")
    id = await started(engine, gated("paused", "core/noop"))
    await entered.wait()
    await asyncio.gather(engine.instances.pause(LOCAL, id), engine.instances.pause(LOCAL, id))
    await until(engine, id, e.InstancePaused)
    go.set()
    await until(engine, id, e.NodeCompleted, "n1")
    await resting(engine, id)
    assert (await row(engine, id))["pause_reason"] == "USER"
    await engine.instances.resume(LOCAL, id)
    assert types(await history(engine, id))[3:] == [
        "instance.paused",
        "node.completed n1",
        "instance.resumed",
        "node.started n2",
        "node.completed n2",
        "instance.completed",
    ]


async def test_resume_needs_a_pause(engine: Engine) -> None:
    """A run that isn't paused can't be resumed, nor stepped; one whose pause is still a letter can."""
    entered, go = gate("resumed")
    id = await started(engine, gated("resumed"))
    await entered.wait()
    for act in (engine.instances.resume, engine.instances.debug_step, engine.instances.debug_continue):
        with pytest.raises(Conflict, match="not paused"):
            await act(LOCAL, id)
    await engine.instances.pause(LOCAL, id)
    await engine.instances.resume(LOCAL, id)
    go.set()
    assert types(await history(engine, id))[-1] == "instance.completed"


async def test_a_pause_survives_a_restart(tmp_path: Path) -> None:
    """The next process finds the run paused, and resumes it when it is told to."""
    async with engine_on(tmp_path) as engine:
        id = await started(engine, document([APPROVAL]))
        await until(engine, id, e.NodeWaiting)
        await engine.instances.pause(LOCAL, id)
        await until(engine, id, e.InstancePaused)
        await engine.instances.answer(LOCAL, id, "ok", True, {"reason": "fine"})
        await until(engine, id, e.ApprovalAnswered)
    async with engine_on(tmp_path) as engine:
        assert await statuses(engine, [id]) == ["PAUSED"]
        await engine.instances.resume(LOCAL, id)
        happened = types(await history(engine, id))
        assert happened[-1] == "instance.completed"
        assert "node.completed ok" in happened


async def test_an_approval_is_answered_once(engine: Engine) -> None:
    """While it waits the run holds no lease; the first answer counts, every other one is refused, then and later."""
    id = await started(engine, document([APPROVAL]))
    await until(engine, id, e.NodeWaiting)
    await resting(engine, id)
    results = await asyncio.gather(
        *(engine.instances.answer(LOCAL, id, "ok", True, {"reason": str(i)}) for i in range(10)),
        return_exceptions=True,
    )
    assert sum(isinstance(result, int) for result in results) == 1
    assert all(isinstance(result, int | Conflict) for result in results)
    events = await history(engine, id)
    assert types(events)[-2:] == ["node.completed ok", "instance.completed"]
    assert sum(isinstance(recorded.event, e.ApprovalAnswered) for recorded in events) == 1
    with pytest.raises(Conflict, match="COMPLETED"):
        await engine.instances.answer(LOCAL, id, "ok", False)


async def test_only_who_may_answers_and_only_what_fits(engine: Engine) -> None:
    """Denied for somebody else, Invalid for an answer that isn't as the form says, NotFound for no such node."""
    node = {**APPROVAL, "parameters": {"title": "Publish?", "form": FORM, "who": ["somebody"]}}
    id = await started(engine, document([node]))
    await until(engine, id, e.NodeWaiting)
    with pytest.raises(Denied, match="somebody"):
        await engine.instances.answer(LOCAL, id, "ok", True, {"reason": "x"})
    with pytest.raises(Invalid) as refusal:
        await engine.instances.answer(SOMEBODY, id, "ok", True, {})
    assert refusal.value.problems[0].pointer.startswith("/answer")
    with pytest.raises(NotFound):
        await engine.instances.answer(SOMEBODY, id, "nowhere", True)
    await engine.instances.answer(SOMEBODY, id, "ok", True, {"reason": "x"}, "good")
    answered = await until(engine, id, e.ApprovalAnswered)
    assert (answered.by, answered.comment) == ("usr-somebody", "good")


async def test_a_viewer_may_not_answer_an_approval_for_anybody(engine: Engine) -> None:
    """Without ``who`` it takes the permission to run instances."""
    id = await started(engine, document([APPROVAL]))
    await until(engine, id, e.NodeWaiting)
    with pytest.raises(Denied):
        await engine.instances.answer(SOMEBODY, id, "ok", True, {"reason": "x"})


async def test_a_node_that_does_not_wait_takes_no_answer(engine: Engine) -> None:
    """Conflict, with what the node is doing instead."""
    entered, _ = gate("no-approval")
    id = await started(engine, gated("no-approval"))
    await entered.wait()
    await until(engine, id, e.NodeStarted)
    with pytest.raises(Conflict, match="RUNNING"):
        await engine.instances.answer(LOCAL, id, "n1", True)


async def test_a_signal_reaches_its_wait_before_and_after(engine: Engine) -> None:
    """One that waits gets it; one that comes later finds it kept."""
    early, late = {**SIGNAL, "id": "first"}, {**SIGNAL, "id": "second"}
    definition = document([early, late], [{"source": "first", "target": "second"}])
    id = await started(engine, definition)
    await until(engine, id, e.NodeWaiting, "first")
    for amount in (1, 2):
        await engine.instances.signal(LOCAL, id, "payment", {"amount": amount})
    events = await history(engine, id)
    assert events[-1].event == e.InstanceCompleted(output={"second": {"amount": 2}})


async def test_a_signal_must_fit_and_find_a_run(engine: Engine) -> None:
    """Invalid if what waits can't use it; Conflict for a finished run; NotFound for none."""
    id = await started(engine, document([SIGNAL]))
    await until(engine, id, e.NodeWaiting)
    with pytest.raises(Invalid) as refusal:
        await engine.instances.signal(LOCAL, id, "payment", {"amounts": 1})
    assert refusal.value.problems[0].pointer.startswith("/payload")
    with pytest.raises(Invalid):
        await engine.instances.signal(LOCAL, id, "", {})
    await engine.instances.signal(LOCAL, id, "payment", {"amount": 1})
    await history(engine, id)
    with pytest.raises(Conflict, match="COMPLETED"):
        await engine.instances.signal(LOCAL, id, "payment", {"amount": 1})
    with pytest.raises(NotFound):
        await engine.instances.signal(LOCAL, "inst-none", "payment")


async def test_a_letter_wakes_a_run_though_nobody_was_told(tmp_path: Path) -> None:
    """What was posted just before the process died is found by the next one."""
    async with engine_on(tmp_path) as engine:
        id = await started(engine, document([SIGNAL]))
        await until(engine, id, e.NodeWaiting)
        await resting(engine, id)
        engine.executor.wake = lambda *_, **__: None  # type: ignore[method-assign]
        await engine.instances.signal(LOCAL, id, "payment", {"amount": 1})
    async with engine_on(tmp_path) as engine:
        assert types(await history(engine, id))[-1] == "instance.completed"


async def test_a_failed_run_goes_on_from_its_failed_node(engine: Engine) -> None:
    """The failed node runs again, what was completed does not, and what was skipped for it runs at last."""
    definition = document(
        [
            {"id": "a", "type": "core/noop"},
            {"id": "b", "type": "test/flaky", "parameters": {"succeeds_at": 2}, "retry": {"max": 0}},
            {"id": "c", "type": "core/noop"},
        ],
        [{"source": "a", "target": "b"}, {"source": "b", "target": "c"}],
    )
    id = await started(engine, definition)
    failed = await history(engine, id)
    assert types(failed)[-1] == "instance.failed"
    await engine.instances.retry(LOCAL, id, ["b"])
    events = await history(engine, id)
    assert types(events)[len(failed) :] == [
        "instance.reopened",
        "node.started b",
        "node.completed b",
        "node.started c",
        "node.completed c",
        "instance.completed",
    ]
    found = await row(engine, id)
    assert (found["status"], found["error"]) == ("COMPLETED", None)


async def test_retry_refuses_what_did_not_fail(engine: Engine) -> None:
    """Conflict for a run or node that isn't FAILED, NotFound for an unknown one; nobody holds the run afterwards."""
    node = {"id": "b", "type": "test/flaky", "parameters": {"succeeds_at": 3}, "retry": {"max": 0}}
    definition = document([{"id": "a", "type": "core/noop"}, node], [{"source": "a", "target": "b"}])
    id = await started(engine, definition)
    await history(engine, id)
    with pytest.raises(Conflict, match="COMPLETED"):
        await engine.instances.retry(LOCAL, id, ["a"])
    with pytest.raises(NotFound):
        await engine.instances.retry(LOCAL, id, ["z"])
    with pytest.raises(NotFound):
        await engine.instances.retry(LOCAL, "inst-none")
    results = await asyncio.gather(*(engine.instances.retry(LOCAL, id) for _ in range(5)), return_exceptions=True)
    assert sum(isinstance(result, int) for result in results) == 1
    assert all(isinstance(result, int | Conflict) for result in results)
    other = await started(engine, document([{"id": "x", "type": "core/noop"}], name="other"))
    await history(engine, other)
    with pytest.raises(Conflict, match="COMPLETED"):
        await engine.instances.retry(LOCAL, other)


async def test_many_are_cancelled_and_retried_with_a_row_each(engine: Engine) -> None:
    """Those that can't be get a row that says why not."""
    waiting = [await started(engine, document([APPROVAL], name="waits")) for _ in range(3)]
    failing = {"id": "b", "type": "test/flaky", "parameters": {"succeeds_at": 2}, "retry": {"max": 0}}
    failed = [await started(engine, document([failing], name="fails")) for _ in range(2)]
    for id in failed:
        await history(engine, id)
    done = await engine.instances.cancel_many(LOCAL, All(), "enough")
    assert {row.instance_id: row.refusal is None for row in done.rows} == (
        dict.fromkeys(waiting, True) | dict.fromkeys(failed, False)
    )
    for id in waiting:
        assert types(await history(engine, id))[-1] == "instance.canceled"
    again = await engine.instances.retry_many(LOCAL, Compare("status", "in", ("FAILED", "CANCELED")))
    assert {row.instance_id: row.refusal is None for row in again.rows} == {
        **dict.fromkeys(waiting, False),
        **dict.fromkeys(failed, True),
    }
    for id in failed:
        assert types(await history(engine, id))[-1] == "instance.completed"


async def test_a_debugger_stops_before_a_node_changes_its_input_and_goes_on(engine: Engine) -> None:
    """At a breakpoint the run is PAUSED; a value set there is what the node gets."""
    definition = document(
        [{"id": "a", "type": "core/noop"}, {"id": "b", "type": "core/noop"}], [{"source": "a", "target": "b"}]
    )
    debug = e.Debug(breakpoints=(e.Breakpoint("b", when="input.n > `1`"),))
    id = await started(engine, definition, input={"n": 2}, debug=debug)
    stopped = await until(engine, id, e.InstancePaused)
    assert (stopped.reason, stopped.path, stopped.phase) == (e.PauseReason.BREAKPOINT, "b", e.Phase.BEFORE)
    await engine.instances.debug_value_set(LOCAL, id, "b", "input", {"n": 5})
    with pytest.raises(Conflict, match="COMPLETED"):
        await engine.instances.debug_value_set(LOCAL, id, "a", "input", {})
    with pytest.raises(NotFound):
        await engine.instances.debug_value_set(LOCAL, id, "z", "input", {})
    await engine.instances.debug_continue(LOCAL, id)
    assert (await history(engine, id))[-1].event == e.InstanceCompleted(output={"b": {"n": 5}})
    with pytest.raises(Conflict):
        await engine.instances.debug_value_set(LOCAL, id, "b", "output", {})


async def test_stepping_stops_before_every_node(engine: Engine) -> None:
    """Each step runs one node."""
    id = await started(engine, chain("core/noop", "core/noop", "core/noop"), debug=e.Debug(stepping=True))
    seen = []
    async with asyncio.timeout(20):
        async for recorded in engine.streams.events(LOCAL, id):
            if isinstance(recorded.event, e.InstancePaused):
                seen.append(recorded.event.path)
                await engine.instances.debug_step(LOCAL, id)
    assert seen == ["n1", "n2", "n3"]


async def test_a_breakpoint_on_an_unknown_node_is_refused(engine: Engine) -> None:
    """At the start and later, with the place in the input, and so is an expression that can't be read."""
    wrong = (e.Breakpoint("b1"), e.Breakpoint("ok", when="1 +"))
    with pytest.raises(Invalid) as refusal:
        await started(engine, document([APPROVAL]), debug=e.Debug(breakpoints=wrong))
    assert [problem.code for problem in refusal.value.problems] == ["UNKNOWN_NODE", "BAD_EXPRESSION"]
    id = await started(engine, document([APPROVAL]))
    with pytest.raises(Invalid) as refusal:
        await engine.instances.debug_set(LOCAL, id, wrong)
    assert refusal.value.problems[0].pointer == "/breakpoints/0/nodeId"
    await engine.instances.debug_set(LOCAL, id, (e.Breakpoint("ok"),))
    assert (await until(engine, id, e.DebugSet)).debug.breakpoints == (e.Breakpoint("ok"),)


async def test_a_draft_runs_only_as_a_debug_run(engine: Engine) -> None:
    """Conflict without ``debug``."""
    created = await engine.workflows.create(LOCAL, chain("core/noop"), status=WorkflowStatus.DRAFT)
    with pytest.raises(Conflict, match="DRAFT"):
        await engine.instances.start(LOCAL, workflow_id=created.workflow_id, input=None)
    run = await engine.instances.start(LOCAL, workflow_id=created.workflow_id, input=None, debug=e.Debug())
    assert types(await history(engine, run.instance_id))[-1] == "instance.completed"


async def test_cancel_against_completion_a_thousand_times(engine: Engine) -> None:
    """Whoever is faster, a run has exactly one end, and its row says the same as its events."""
    await engine.workflows.create(LOCAL, chain("core/noop", "core/noop", "core/noop"))

    async def race(place: int) -> str:
        run = await engine.instances.start(LOCAL, workflow_name="test", input=None)
        for _ in range(place % 7):
            await asyncio.sleep(0)
        with contextlib.suppress(Conflict):
            await engine.instances.cancel(LOCAL, run.instance_id)
        return run.instance_id

    ids = []
    for start in range(0, 1_000, 100):
        ids += await asyncio.gather(*(race(place) for place in range(start, start + 100)))
    ends = []
    for id in ids:
        events = await history(engine, id)
        terminal = [recorded.type for recorded in events if recorded.type in ENDS]
        assert terminal == [events[-1].type]
        ends.append(ENDS[terminal[0]])
    assert await statuses(engine, ids) == ends
    assert set(ends) <= {"COMPLETED", "CANCELED"}
    assert "CANCELED" in ends


ENDS = {
    "instance.completed": "COMPLETED",
    "instance.canceled": "CANCELED",
    "instance.failed": "FAILED",
    "instance.timed_out": "TIMED_OUT",
}


async def test_two_parents_of_a_join_together_a_thousand_times(engine: Engine) -> None:
    """The join starts once."""
    definition = document(
        [{"id": id, "type": "core/noop"} for id in ("a", "b", "join")],
        [{"source": "a", "target": "join"}, {"source": "b", "target": "join"}],
        name="joined",
    )
    await engine.workflows.create(LOCAL, definition)
    for _ in range(10):
        runs = await asyncio.gather(
            *(engine.instances.start(LOCAL, workflow_name="joined", input=None) for _ in range(100))
        )
        for run in runs:
            happened = types(await history(engine, run.instance_id))
            assert happened.count("node.started join") == 1
            assert happened[-1] == "instance.completed"
