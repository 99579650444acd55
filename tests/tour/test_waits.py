"""What a run can wait for. Nothing runs meanwhile: no worker, no task, no memory, only its rows."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

import pytest

from engine.access import LOCAL, ROLES
from flow import events as e
from flow.errors import Conflict, Denied, Invalid
from tests.tour.conftest import Tour

APPROVAL = """
nodes:
  - id: ask
    type: core/approval
    parameters: {title: "Pay {{ amount }}?", DEADLINE}
  - {id: pay, type: core/noop}
  - {id: refuse, type: core/noop}
edges:
  - {source: ask, target: pay, condition: approved}
  - {source: ask, target: refuse, condition: "!approved"}
"""


async def test_a_delay_of_a_duration(tour: Tour) -> None:
    """It gives its input on when the time has come."""
    told = await tour.run("nodes: [{id: rest, type: core/delay, parameters: {duration: 50ms}}]", {"x": 1})
    assert told.gave("rest") == {"x": 1}
    started = next(r.at for r in told.events if isinstance(r.event, e.NodeStarted))
    ended = next(r.at for r in told.events if isinstance(r.event, e.NodeCompleted))
    assert ended - started >= timedelta(milliseconds=50)


async def test_a_delay_until_an_instant(tour: Tour) -> None:
    """An instant that has passed is no wait at all."""
    told = await tour.run("nodes: [{id: rest, type: core/delay, parameters: {until: '2020-01-01T00:00:00Z'}}]")
    assert told.status == "COMPLETED"
    assert not any(isinstance(recorded.event, e.NodeWaiting) for recorded in told.events)


SIGNAL = """
nodes:
  - id: listen
    type: core/wait-signal
    parameters: {name: paid, schema: {type: object, required: [amount]}}
  - {id: thank, type: core/noop}
edges: [{source: listen, target: thank}]
"""


async def test_a_signal(tour: Tour) -> None:
    """Its payload is the node's output."""
    id = await tour.start(SIGNAL)
    await tour.until(id, e.NodeWaiting)
    await tour.engine.instances.signal(LOCAL, id, "paid", {"amount": 5})
    assert (await tour.end(id)).gave("thank") == {"amount": 5}


async def test_a_signal_that_comes_before_its_wait_is_kept(tour: Tour) -> None:
    """The first node that waits for its name takes it."""
    id = await tour.start("""
nodes:
  - {id: first, type: core/wait-signal, parameters: {name: go}}
  - {id: second, type: core/wait-signal, parameters: {name: paid}}
edges: [{source: first, target: second}]
""")
    await tour.until(id, e.NodeWaiting)
    await tour.engine.instances.signal(LOCAL, id, "paid", {"amount": 5})
    await tour.engine.instances.signal(LOCAL, id, "go")
    assert (await tour.end(id)).gave("second") == {"amount": 5}


async def test_a_payload_that_does_not_fit_is_refused(tour: Tour) -> None:
    """Whoever sends it is told, and the node waits on."""
    id = await tour.start(SIGNAL)
    await tour.until(id, e.NodeWaiting)
    with pytest.raises(Invalid, match="amount"):
        await tour.engine.instances.signal(LOCAL, id, "paid", {"sum": 5})


async def test_a_signal_for_a_run_that_has_ended_is_refused(tour: Tour) -> None:
    """There is nobody left to take it."""
    told = await tour.run("nodes: [{id: a, type: core/noop}]")
    with pytest.raises(Conflict, match="ended"):
        await tour.engine.instances.signal(LOCAL, told.id, "paid")


async def test_an_approval_goes_either_way(tour: Tour) -> None:
    """The answer is the node's output: edges go by `approved`."""
    for approved, taken in ((True, "pay"), (False, "refuse")):
        id = await tour.start(APPROVAL.replace(", DEADLINE", ""), {"amount": 5})
        waiting = await tour.until(id, e.NodeWaiting)
        assert isinstance(waiting.event, e.NodeWaiting)
        assert isinstance(waiting.event.awaited, e.ForApproval)
        assert waiting.event.awaited.title == "Pay 5?"
        await tour.engine.instances.answer(LOCAL, id, "ask", approved, comment="as you wish")
        told = await tour.end(id)
        assert told.gave("ask") == {
            "approved": approved, "answer": None, "comment": "as you wish", "by": LOCAL.user_id, "timed_out": False,
        }  # fmt: skip
        assert told.node(taken) == "COMPLETED"


async def test_an_approval_takes_one_answer(tour: Tour) -> None:
    """The second is refused, whether the first has been read yet or not."""
    id = await tour.start(APPROVAL.replace(", DEADLINE", ""), {"amount": 5})
    await tour.until(id, e.NodeWaiting)
    await tour.engine.instances.answer(LOCAL, id, "ask", True)
    with pytest.raises(Conflict):
        await tour.engine.instances.answer(LOCAL, id, "ask", False)
    assert (await tour.end(id)).node("pay") == "COMPLETED"


async def test_an_approval_asks_those_it_names(tour: Tour) -> None:
    """Others are refused, whatever else they may do."""
    id = await tour.start("nodes: [{id: ask, type: core/approval, parameters: {title: May I?, who: [ada]}}]")
    await tour.until(id, e.NodeWaiting)
    with pytest.raises(Denied):
        await tour.engine.instances.answer(LOCAL, id, "ask", True)
    ada = dataclasses.replace(LOCAL, user_id="usr-ada", name="ada", permissions=ROLES["viewer"])
    await tour.engine.instances.answer(ada, id, "ask", True)
    assert (await tour.end(id)).gave("ask")["by"] == "usr-ada"


async def test_a_child_runs_in_its_stead(tour: Tour) -> None:
    """`core/workflow` starts another workflow, waits for it, and gives its output."""
    await tour.store("nodes: [{id: a, type: core/transform, parameters: {output: {said: 'Hello {{ who }}'}}}]", "greet")
    told = await tour.run(
        """
nodes: [{id: child, type: core/workflow, parameters: {workflow: greet, input: {who: "{{ name }}"}}}]
""",
        {"name": "Ada"},
    )
    assert told.gave("child") == {"a": {"said": "Hello Ada"}}


async def test_a_child_that_fails_fails_its_node(tour: Tour) -> None:
    """With the child's error in the details."""
    await tour.store("nodes: [{id: a, type: core/fail, parameters: {message: broken}}]", "breaks")
    told = await tour.run("nodes: [{id: child, type: core/workflow, parameters: {workflow: breaks}}]")
    assert (told.status, told.code) == ("FAILED", "CHILD_FAILED")


async def test_a_child_that_is_not_waited_for(tour: Tour) -> None:
    """`wait: false` gives the child's id at once."""
    await tour.store("nodes: [{id: rest, type: core/delay, parameters: {duration: 1d}}]", "slow")
    told = await tour.run("""
nodes:
  - {id: child, type: core/workflow, parameters: {workflow: slow, wait: false, on_parent_end: abandon}}
""")
    assert told.status == "COMPLETED"
    assert told.gave("child")["instance_id"].startswith("inst-")


async def test_a_retry_waits_for_its_time(tour: Tour) -> None:
    """A failed attempt is made again after a delay, which is an event with a due time and not a sleeping task."""
    told = await tour.run("""
nodes:
  - id: flaky
    type: test/flaky
    parameters: {succeeds_at: 3}
    retry: {max: 5, base: 10ms, factor: 2, jitter: 0}
""")
    due = [r.event.due - r.at for r in told.events if isinstance(r.event, e.NodeRetrying)]
    assert [round(wait.total_seconds(), 2) for wait in due] == [0.01, 0.02]
    assert told.gave("flaky")["attempt"] == 3


async def test_a_child_that_starts_its_parent_is_refused(tour: Tour) -> None:
    """WORKFLOW_CYCLE: a workflow among its own ancestors would never end."""
    text = "nodes: [{id: child, type: core/workflow, parameters: {workflow: ouroboros}}]"
    started = await tour.engine.instances.start(LOCAL, workflow_id=await tour.store(text, "ouroboros"))
    assert (await tour.end(started.instance_id)).code == "WORKFLOW_CYCLE"


async def test_children_are_cancelled_with_their_parent(tour: Tour) -> None:
    """Unless `on_parent_end: abandon` says otherwise."""
    await tour.store("nodes: [{id: rest, type: core/delay, parameters: {duration: 1d}}]", "slow")
    id = await tour.start("nodes: [{id: child, type: core/workflow, parameters: {workflow: slow}}]")
    waiting = (await tour.until(id, e.NodeWaiting)).event
    assert isinstance(waiting, e.NodeWaiting)
    assert isinstance(waiting.awaited, e.ForChild)
    await tour.engine.instances.cancel(LOCAL, id)
    assert (await tour.end(id)).status == "CANCELED"
    assert (await tour.end(waiting.awaited.instance_id)).status == "CANCELED"
