"""Every limit of time, and the code with which it ends what took too long."""

from __future__ import annotations

from datetime import timedelta

import pytest

from engine.access import LOCAL
from flow import events as e
from tests.tour.conftest import Tour

HANGS = "{id: hang, type: test/gate, parameters: {gate: never-opened-GATE}, retry: {max: 0}, LIMIT}"


async def test_the_timeout_of_an_attempt(tour: Tour) -> None:
    """NODE_TIMEOUT: the work is stopped, and by the retry policy tried again or given up."""
    node = HANGS.replace("GATE", "timeout").replace("LIMIT", "timeout: 50ms")
    told = await tour.run(f"nodes: [{node}]")
    assert (told.status, told.code) == ("FAILED", "NODE_TIMEOUT")


async def test_the_heartbeat_timeout(tour: Tour) -> None:
    """HEARTBEAT_TIMEOUT: the handler gave no sign of life for so long."""
    node = HANGS.replace("GATE", "heartbeat").replace("LIMIT", "heartbeat_timeout: 50ms")
    told = await tour.run(f"nodes: [{node}]")
    assert (told.status, told.code) == ("FAILED", "HEARTBEAT_TIMEOUT")


async def test_the_total_timeout_of_all_attempts(tour: Tour) -> None:
    """No attempt is made that would begin later: the last failure stands."""
    told = await tour.run("""
nodes:
  - id: flaky
    type: test/flaky
    parameters: {succeeds_at: 9}
    retry: {max: 9, base: 30ms, factor: 1, jitter: 0, total_timeout: 75ms}
""")
    assert told.status == "FAILED"
    assert told.starts("flaky") <= 3


async def test_the_timeout_of_a_run(tour: Tour) -> None:
    """EXECUTION_TIMEOUT: the whole run took too long, whatever it waited for; it is TIMED_OUT, not FAILED."""
    told = await tour.run(
        "nodes: [{id: rest, type: core/delay, parameters: {duration: 1d}}]", timeout=timedelta(milliseconds=500)
    )
    assert (told.status, told.code) == ("TIMED_OUT", "EXECUTION_TIMEOUT")
    assert told.node("rest") == "CANCELED"


async def test_the_queue_timeout_of_a_run(tour: Tour) -> None:
    """QUEUE_TIMEOUT: no node had been started by then, as in a run that is paused before its first."""
    debug = e.Debug(stepping=True)
    id = await tour.start("nodes: [{id: a, type: core/noop}]", debug=debug, queue_timeout=timedelta(milliseconds=50))
    told = await tour.end(id)
    assert (told.status, told.code) == ("TIMED_OUT", "QUEUE_TIMEOUT")


async def test_the_deadline_of_a_signal(tour: Tour) -> None:
    """WAIT_TIMEOUT: it did not come in time."""
    told = await tour.run("nodes: [{id: listen, type: core/wait-signal, parameters: {name: go, deadline: 50ms}}]")
    assert (told.status, told.code) == ("FAILED", "WAIT_TIMEOUT")


@pytest.mark.parametrize(
    ("on_timeout", "status", "approved"),
    [("fail", "FAILED", None), ("approve", "COMPLETED", True), ("reject", "COMPLETED", False)],
)
async def test_the_deadline_of_an_approval(tour: Tour, on_timeout: str, status: str, approved: bool | None) -> None:
    """What no answer counts as is said by the approval: a failure (WAIT_TIMEOUT), a yes or a no."""
    told = await tour.run(f"""
nodes: [{{id: ask, type: core/approval, parameters: {{title: May I?, deadline: 50ms, on_timeout: {on_timeout}}}}}]
""")
    assert told.status == status
    if approved is None:
        assert told.code == "WAIT_TIMEOUT"
    else:
        assert (told.gave("ask")["approved"], told.gave("ask")["timed_out"]) == (approved, True)


async def test_a_pause_stops_no_clock(tour: Tour) -> None:
    """The run's own timeout goes on while it is paused."""
    id = await tour.start(
        "nodes: [{id: rest, type: core/delay, parameters: {duration: 1d}}]", timeout=timedelta(seconds=1)
    )
    await tour.engine.instances.pause(LOCAL, id)
    assert (await tour.end(id)).code == "EXECUTION_TIMEOUT"
