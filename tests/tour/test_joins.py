"""When a node starts: its join, asked when its incoming edges have settled.

An edge is *live* when its source completed and its condition holds, *dead* when the condition does not hold or the
source was skipped, *failed* when the source failed and the edge does not wait for that.
"""

from __future__ import annotations

from tests.tour.conftest import Ended, Tour

#: ``good`` completes, ``bad`` fails (which fails no run here), ``left`` is behind an edge that is never taken.
SOURCES = """
nodes:
  - {id: start, type: core/noop}
  - {id: good, type: core/transform, parameters: {output: {from: good}}}
  - {id: fine, type: core/transform, parameters: {output: {also: fine}}}
  - {id: bad, type: core/fail, fail_on_error: false, parameters: {message: broken}}
  - {id: left, type: core/noop}
  - {id: then, type: core/noop, join: JOIN}
edges:
  - {source: start, target: good}
  - {source: start, target: fine}
  - {source: start, target: bad}
  - {source: start, target: left, condition: "`false`"}
"""


async def joined(tour: Tour, join: str, *sources: str) -> Ended:
    """The run of a node ``then`` with this join behind these sources."""
    edges = "".join(f"  - {{source: {source}, target: then}}\n" for source in sources)
    return await tour.run(SOURCES.replace("JOIN", join) + edges)


async def test_all_starts_when_every_edge_has_settled_and_none_failed(tour: Tour) -> None:
    """The default. One live edge is enough, a branch that was not taken does not block; inputs are merged."""
    told = await joined(tour, "all", "good", "fine", "left")
    assert told.gave("then") == {"from": "good", "also": "fine"}
    assert (await joined(tour, "all", "good", "bad")).node("then") == "UPSTREAM_FAILED"
    assert (await joined(tour, "all", "left")).node("then") == "UPSTREAM_SKIPPED"


async def test_all_live_wants_every_edge(tour: Tour) -> None:
    """One branch that was not taken is enough to skip it."""
    assert (await joined(tour, "all_live", "good", "fine")).node("then") == "COMPLETED"
    assert (await joined(tour, "all_live", "good", "left")).node("then") == "UPSTREAM_SKIPPED"
    assert (await joined(tour, "all_live", "good", "bad")).node("then") == "UPSTREAM_FAILED"


async def test_any_starts_at_the_first_live_edge_and_once(tour: Tour) -> None:
    """It does not wait for the others, and a second live edge does not start it again."""
    told = await joined(tour, "any", "good", "bad", "left", "fine")
    assert told.node("then") == "COMPLETED"
    assert told.starts("then") == 1
    assert (await joined(tour, "any", "bad", "left")).node("then") == "UPSTREAM_FAILED"


async def test_all_done_starts_whatever_came_of_its_sources(tour: Tour) -> None:
    """Completed, failed, skipped: it is never skipped for them."""
    assert (await joined(tour, "all_done", "good", "bad", "left")).node("then") == "COMPLETED"
    assert (await joined(tour, "all_done", "bad")).node("then") == "COMPLETED"


async def test_none_failed_starts_even_if_nothing_came(tour: Tour) -> None:
    """It asks for no live edge, only for no failed one."""
    assert (await joined(tour, "none_failed", "left")).node("then") == "COMPLETED"
    assert (await joined(tour, "none_failed", "good", "bad")).node("then") == "UPSTREAM_FAILED"


async def test_one_failed_is_for_cleaning_up(tour: Tour) -> None:
    """It starts at the first failure, with what went wrong as its input, and is skipped if nothing does."""
    told = await joined(tour, "one_failed", "left", "bad")
    assert told.gave("then")["error"]["message"] == "broken"
    assert (await joined(tour, "one_failed", "good", "fine")).node("then") == "CONDITION"


async def test_a_failure_edge_is_live_when_its_source_fails(tour: Tour) -> None:
    """`on: failure` goes on from a failure, `on: always` from either end; neither is followed otherwise."""
    told = await tour.run("""
nodes:
  - {id: bad, type: core/fail, fail_on_error: false, parameters: {message: broken}}
  - {id: mend, type: core/noop}
  - {id: rejoice, type: core/noop}
  - {id: note, type: core/noop}
edges:
  - {source: bad, target: mend, on: failure}
  - {source: bad, target: rejoice}
  - {source: bad, target: note, on: always}
""")
    assert told.status == "COMPLETED"
    assert told.nodes() == {"bad": "FAILED", "mend": "COMPLETED", "note": "COMPLETED", "rejoice": "UPSTREAM_FAILED"}
