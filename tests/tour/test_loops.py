"""Loops: a graph of its own, run for each item, or as long as something holds."""

from __future__ import annotations

from tests.tour.conftest import Tour


async def test_a_loop_over_items(tour: Tour) -> None:
    """Each iteration sees `item` and `index`; the outputs come in the order of the items, however many run at once."""
    told = await tour.run(
        """
nodes:
  - id: resize
    type: core/loop
    parameters:
      items: input.files
      concurrency: 3
      body:
        nodes:
          - {id: encode, type: core/transform, parameters: {output: "{{ index }}: {{ item.name }}"}}
  - {id: count, type: core/transform, parameters: {output: "{{ length(items) }}"}}
edges: [{source: resize, target: count}]
""",
        {"files": [{"name": name} for name in ("a", "b", "c", "d")]},
    )
    assert told.gave("resize") == {"items": ["0: a", "1: b", "2: c", "3: d"], "failed": []}
    assert told.gave("count") == 4
    assert told.gave("resize[2]/encode") == "2: c"


async def test_a_loop_while_something_holds(tour: Tour) -> None:
    """`last` is what the iteration before gave."""
    told = await tour.run("""
nodes:
  - id: grow
    type: core/loop
    parameters:
      while: "index < `3`"
      body: {nodes: [{id: add, type: core/transform, parameters: {output: {n: "{{ index }}", was: "{{ last.n }}"}}}]}
""")
    assert told.gave("grow")["items"] == [{"n": 0, "was": None}, {"n": 1, "was": 0}, {"n": 2, "was": 1}]


async def test_loops_within_loops(tour: Tour) -> None:
    """A path names every iteration around a node: `rows[1]/cells[0]/cell`."""
    told = await tour.run(
        """
nodes:
  - id: rows
    type: core/loop
    parameters:
      items: input.rows
      body:
        nodes:
          - id: cells
            type: core/loop
            parameters:
              items: item
              body: {nodes: [{id: cell, type: core/transform, parameters: {output: "{{ item }}!"}}]}
""",
        {"rows": [["a", "b"], ["c"]]},
    )
    assert told.gave("rows[1]/cells[0]/cell") == "c!"
    assert [row["items"] for row in told.gave("rows")["items"]] == [["a!", "b!"], ["c!"]]


FAILING = """
nodes:
  - id: each
    type: core/loop
    parameters:
      items: [1, 0, 2]
      on_error: MODE
      body:
        nodes:
          - {id: check, type: core/validate, parameters: {value: "{{ item }}", schema: {minimum: 1}}}
"""


async def test_a_failed_iteration_fails_the_loop_at_once(tour: Tour) -> None:
    """`fail_fast`, the default: what has not begun does not begin."""
    told = await tour.run(FAILING.replace("MODE", "fail_fast"))
    assert told.status == "FAILED"
    assert "each[2]/check" not in told.nodes()


async def test_failed_iterations_can_be_collected(tour: Tour) -> None:
    """`collect`: the others go on, and the output lists what failed, by index."""
    told = await tour.run(FAILING.replace("MODE", "collect"))
    assert told.status == "COMPLETED"
    assert [failed["index"] for failed in told.gave("each")["failed"]] == [1]
    assert told.node("each[2]/check") == "COMPLETED"


async def test_a_loop_that_would_never_end(tour: Tour) -> None:
    """`max_iterations` ends it: LOOP_LIMIT."""
    told = await tour.run("""
nodes:
  - id: forever
    type: core/loop
    parameters: {while: "`true`", max_iterations: 3, body: {nodes: [{id: turn, type: core/noop}]}}
""")
    assert (told.status, told.code) == ("FAILED", "LOOP_LIMIT")
    assert told.node("forever[2]/turn") == "COMPLETED"


async def test_a_loop_over_what_is_no_list(tour: Tour) -> None:
    """A clear failure that says what was there instead."""
    told = await tour.run(
        """
nodes:
  - {id: each, type: core/loop, parameters: {items: input.files, body: {nodes: [{id: a, type: core/noop}]}}}
""",
        {"files": "a.jpg"},
    )
    assert told.status == "FAILED"
    assert told.snapshot.error is not None
    assert "list" in told.snapshot.error.message


async def test_a_loop_over_nothing(tour: Tour) -> None:
    """No iteration, an empty output, and the run goes on."""
    told = await tour.run("""
nodes: [{id: each, type: core/loop, parameters: {items: [], body: {nodes: [{id: a, type: core/noop}]}}}]
""")
    assert told.gave("each") == {"items": [], "failed": []}
