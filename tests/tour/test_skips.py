"""Why a node is not run: each of the four reasons."""

from __future__ import annotations

from engine.access import LOCAL
from flow import events as e
from tests.tour.conftest import Tour

BRANCHES = """
nodes:
  - {id: judge, type: core/condition, parameters: {cases: [{name: high, when: "score > `7`"}], default: low}}
  - {id: praise, type: core/noop}
  - {id: frame, type: core/noop}
  - {id: console, type: core/noop}
edges:
  - {source: judge, target: praise, case: high}
  - {source: praise, target: frame}
  - {source: judge, target: console, case: low}
"""


async def test_condition(tour: Tour) -> None:
    """CONDITION: its source completed, and the edge between them was not to be taken."""
    assert (await tour.run(BRANCHES, {"score": 9})).node("console") == "CONDITION"
    assert (await tour.run(BRANCHES, {"score": 2})).node("praise") == "CONDITION"


async def test_upstream_skipped(tour: Tour) -> None:
    """UPSTREAM_SKIPPED: everything before it was skipped, so a branch that is not taken ends by itself."""
    told = await tour.run(BRANCHES, {"score": 2})
    assert told.status == "COMPLETED"
    assert told.node("frame") == "UPSTREAM_SKIPPED"


async def test_upstream_failed(tour: Tour) -> None:
    """UPSTREAM_FAILED: a node before it failed, and its join does not take that."""
    told = await tour.run("""
nodes:
  - {id: bad, type: core/fail, fail_on_error: false, parameters: {message: broken}}
  - {id: then, type: core/noop}
edges: [{source: bad, target: then}]
""")
    assert told.node("then") == "UPSTREAM_FAILED"


async def test_instance_ended(tour: Tour) -> None:
    """INSTANCE_ENDED: the run was cancelled (or failed, or was late) before its turn came."""
    id = await tour.start("""
nodes:
  - {id: wait, type: core/delay, parameters: {duration: 1d}}
  - {id: then, type: core/noop, join: all_done}
edges: [{source: wait, target: then}]
""")
    await tour.until(id, e.NodeWaiting)
    await tour.engine.instances.cancel(LOCAL, id)
    told = await tour.end(id)
    assert told.status == "CANCELED"
    assert told.nodes() == {"wait": "CANCELED", "then": "INSTANCE_ENDED"}
