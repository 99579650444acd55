"""Loops: over lists and while a condition holds, side by side, nested, failing, cancelled, and run again by hand."""

from __future__ import annotations

import itertools
from typing import Any

from flow import documents
from flow import events as e
from flow.actions import Cancel, Complete, Start
from flow.definition import Definition, Join, Node, TypeInfo
from flow.events import PauseReason, Phase
from tests.flow.runs import Run, node

NOOP = {"type": "core/noop"}


def body(picture: str, **nodes: dict[str, Any]) -> dict[str, Any]:
    """``"a>b"``: a body of these nodes and edges."""
    ids: dict[str, None] = {}
    edges = []
    for word in picture.split():
        names = word.split(">")
        ids |= dict.fromkeys(names)
        edges += [{"source": source, "target": target} for source, target in itertools.pairwise(names)]
    return {"nodes": [{"id": id, **NOOP, **nodes.get(id, {})} for id in ids], "edges": edges}


def looping(parameters: dict[str, Any], before: str = "", after: str = "", **nodes: dict[str, Any]) -> Definition:
    """A definition of one loop, with these parameters, between these nodes."""
    ids = [*before.split(), "loop", *after.split()]
    document = {
        "name": "test",
        "triggers": [{"type": "manual"}],
        "nodes": [
            {"id": id, **NOOP, **nodes.get(id, {}), **(node(type="core/loop", **parameters) if id == "loop" else {})}
            for id in ids
        ],
        "edges": [{"source": a, "target": b} for a, b in itertools.pairwise(ids)],
    }
    types = {name: TypeInfo(name, {"type": "object"}) for name in ("core/noop", "core/loop", "core/delay")}
    found, problems = documents.read(document, types)
    assert found is not None, problems
    return found


def over(items: list[Any], picture: str = "a", nodes: dict[str, Any] | None = None, **more: Any) -> Run:
    """A run in which a loop goes through these items."""
    parameters = {"items": "input.list", "body": body(picture, **(nodes or {})), **more}
    return Run(looping(parameters), created={"input": {"list": items}}).control()


def test_a_loop_runs_its_body_for_each_item_in_turn() -> None:
    """One after the other by default; its output is what the last node of each iteration gave, in order."""
    run = over([10, 20], "a>b")
    assert run.starts() == {"loop[0]/a"}
    assert run.run.input("loop[0]/a") == {"index": 0, "item": 10}
    run.finish("loop[0]/a", {"x": 1}).finish("loop[0]/b", "first").control()
    assert run.starts() == {"loop[1]/a"}
    run.finish("loop[1]/a").finish("loop[1]/b", "second").control()
    assert run.output("loop") == {"items": ["first", "second"], "failed": []}
    assert run.status() == "COMPLETED"


def test_an_iteration_that_has_ended_leaves_only_its_output() -> None:
    """Its nodes are in no dictionary any more."""
    run = over([1, 2, 3]).finish("loop[0]/a", "x")
    assert set(run.run.snapshot.nodes) == {"loop"}
    assert run.run.scope_of("loop[0]/a") is None


def test_as_many_iterations_are_open_as_the_loop_allows() -> None:
    """The next one opens when one has ended; results stay in the order of the items."""
    run = over(["a", "b", "c"], concurrency=2)
    assert run.starts() == {"loop[0]/a", "loop[1]/a"}
    run.finish("loop[1]/a", 1)
    assert run.starts() == {"loop[0]/a", "loop[2]/a"}
    run.finish("loop[2]/a", 2).finish("loop[0]/a", 0).control()
    assert run.output("loop")["items"] == [0, 1, 2]


def test_a_loop_over_nothing_completes_at_once() -> None:
    """With empty lists."""
    assert over([]).output("loop") == {"items": [], "failed": []}


def test_a_loop_over_no_list_fails() -> None:
    """NOT_A_LIST, naming the expression."""
    run = Run(looping({"items": "input.list", "body": body("a")}), created={"input": {"list": "abc"}}).control()
    assert run.error("loop").code == "NOT_A_LIST"
    assert "input.list" in run.error("loop").message


def test_several_last_nodes_give_their_outputs_by_id() -> None:
    """And `output` picks from the iteration's nodes instead."""
    run = over([1], "a>b a>c").finish("loop[0]/a").finish("loop[0]/b", 1).finish("loop[0]/c", 2).control()
    assert run.output("loop")["items"] == [{"b": 1, "c": 2}]
    picked = over([7], "a>b", output={"n": "$.nodes.a.n", "item": "$.item"})
    picked.finish("loop[0]/a", {"n": 1}).finish("loop[0]/b", 2).control()
    assert picked.output("loop")["items"] == [{"n": 1, "item": 7}]


def test_expressions_in_a_body_see_the_iteration_and_what_is_around_it() -> None:
    """item, index, the loop's input, the nodes around the loop and before in the body."""
    parameters = {"items": "list", "body": body("a>b")}
    run = Run(looping(parameters, before="pre"), created={"input": 1}).finish("pre", {"list": [5], "who": "ann"})
    run.control().finish("loop[0]/a", {"x": 3})
    names = run.run.names("loop[0]/b", run.run.input("loop[0]/b"))
    assert (names["item"], names["index"], names["who"], names["x"]) == (5, 0, "ann", 3)
    assert names["nodes"]["a"]["output"] == {"x": 3}
    assert names["nodes"]["pre"]["status"] == "COMPLETED"


def test_a_failed_iteration_fails_the_loop_and_stops_the_others() -> None:
    """fail_fast: the running sibling is cancelled, no further iteration opens, the loop's error names the place."""
    run = over([1, 2, 3], concurrency=2).start("loop[0]/a", "loop[1]/a").fail("loop[1]/a")
    assert run.plan() == [Cancel("loop[0]/a")]
    run.settle()
    assert run.status("loop") == "FAILED"
    assert run.error("loop").details["index"] == 1
    assert run.status() == "FAILED"


def test_collected_failures_are_listed() -> None:
    """collect: the others go on, the failed item is null, and `failed` tells why."""
    run = over([1, 2], on_error="collect").fail("loop[0]/a").control().finish("loop[1]/a", "ok").control()
    output = run.output("loop")
    assert output["items"] == [None, "ok"]
    assert [(failed["index"], failed["error"]["code"]) for failed in output["failed"]] == [(0, "BROKEN")]
    assert run.status() == "COMPLETED"


def test_an_iteration_cleans_up_after_its_own_failure() -> None:
    """Within the body the same table holds: clean-up nodes run, the rest is skipped."""
    tidy = {"tidy": {"join": Join.ONE_FAILED.value}}
    run = over([1, 2], "a>b a>tidy", nodes=tidy, on_error="collect").fail("loop[0]/a").control()
    assert run.starts() == {"loop[0]/tidy"}
    run.finish("loop[0]/tidy").control()
    assert run.starts() == {"loop[1]/a"}


def test_a_while_loop_goes_on_as_long_as_its_condition_holds() -> None:
    """It sees `last`, the last iteration's output, and `index`."""
    run = Run(looping({"while": "index == `0` || last.more", "body": body("a")})).control()
    run.finish("loop[0]/a", {"more": True}).control()
    assert run.run.input("loop[1]/a") == {"index": 1, "last": {"more": True}}
    run.finish("loop[1]/a", {"more": False}).control()
    assert run.output("loop")["items"] == [{"more": True}, {"more": False}]


def test_a_while_loop_that_never_ends_is_ended() -> None:
    """LOOP_LIMIT after max_iterations."""
    run = Run(looping({"while": "`true`", "max_iterations": 2, "body": body("a")})).control()
    run.finish("loop[0]/a").finish("loop[1]/a").control()
    assert run.error("loop").code == "LOOP_LIMIT"


def test_a_list_that_is_too_long_is_not_begun() -> None:
    """max_iterations bounds lists as well."""
    assert over([1, 2, 3], max_iterations=2).error("loop").code == "LOOP_LIMIT"


def test_loops_nest() -> None:
    """The inner loop goes through what the outer item brings, and sees it as `outer`."""
    inner = node(type="core/loop", items="item.parts", body=body("x"))
    run = over([{"parts": [1, 2]}, {"parts": []}], "in", nodes={"in": inner})
    assert run.starts() == {"loop[0]/in[0]/x"}
    names = run.run.names("loop[0]/in[0]/x", None)
    assert (names["item"], names["outer"]["index"]) == (1, 0)
    run.finish("loop[0]/in[0]/x", "a").finish("loop[0]/in[1]/x", "b").control()
    assert [item["items"] for item in run.output("loop")["items"]] == [["a", "b"], []]
    assert set(run.run.snapshot.nodes) == {"loop"}


def test_a_cancel_stops_a_loop_without_opening_more() -> None:
    """What runs is cancelled, what would start is skipped, then the loop is CANCELED; no further iteration opens."""
    run = over([1, 2, 3], "a>b", concurrency=2).start("loop[0]/a").record(e.CancelRequested())
    run.settle()
    assert run.status("loop") == "CANCELED"
    assert run.status() == "CANCELED"
    assert not any(
        event.event.path.startswith("loop[2]") for event in run.events if isinstance(event.event, e.NodeEvent)
    )


def test_a_failure_beside_a_loop_stops_it() -> None:
    """As any other running sibling."""
    document = looping({"items": "input.list", "body": body("a")})
    nodes = (document.nodes[0], Node("x", "core/noop"))
    run = Run(Definition("test", document.triggers, nodes), created={"input": {"list": [1, 2]}}).control()
    run.start("loop[0]/a").fail("x").settle()
    assert (run.status("loop"), run.status()) == ("CANCELED", "FAILED")


def test_a_failed_loop_goes_on_by_hand_where_it_failed() -> None:
    """Iterations that were completed stay so; of the failed one only what failed runs again."""
    run = over(["x", "y", "z"], "a>b").finish("loop[0]/a").finish("loop[0]/b", "x")
    run.finish("loop[1]/a", {"n": 1}).fail("loop[1]/b").settle()
    assert run.status() == "FAILED"
    event = run.run.reopening(e.InstanceReopened(("loop[1]/b",)))
    assert set(event.reset) == {"loop", "loop[1]/b"}
    run.record(event).control()
    assert run.plan() == [Start("loop[1]/b", 2)]
    assert run.run.input("loop[1]/b") == {"n": 1}
    run.finish("loop[1]/b", "y").finish("loop[2]/a").finish("loop[2]/b", "z").control()
    assert run.output("loop")["items"] == ["x", "y", "z"]
    assert run.status() == "COMPLETED"


def test_pins_and_breakpoints_reach_into_iterations() -> None:
    """A pin by its path, a breakpoint by the node's id and a condition on the item."""
    debug = e.Debug(breakpoints=(e.Breakpoint("a", Phase.BEFORE, "item == `2`"),))
    created = {"input": {"list": [1, 2]}, "pins": (e.Pin("loop[0]/a", "pinned"),), "debug": debug}
    run = Run(looping({"items": "input.list", "body": body("a")}), created=created)
    run.settle(lambda action: isinstance(action, Complete) or (isinstance(action, Start) and action.path == "loop"))
    (pause,) = run.plan()
    assert (pause.path, pause.reason) == ("loop[1]/a", PauseReason.BREAKPOINT)  # type: ignore[union-attr]
    run.answer(pause).record(e.InstanceResumed()).finish("loop[1]/a", "run").control()
    assert run.output("loop")["items"] == ["pinned", "run"]


def test_problems_of_a_body_are_told_where_they_are() -> None:
    """Unknown types, cycles, unknown and later nodes, in nested bodies too."""
    types = {name: TypeInfo(name, {"type": "object"}) for name in ("core/noop", "core/loop")}
    inner = {"nodes": [{"id": "x", "type": "core/what", "parameters": {"v": "{{ nodes.post.output }}"}}], "edges": []}
    outer = {
        "nodes": [
            {"id": "a", **NOOP, "parameters": {"v": "{{ nodes.pre.output }} {{ nodes.b.output }}"}},
            {"id": "b", **NOOP},
            {"id": "in", "type": "core/loop", "parameters": {"items": "x", "body": inner}},
        ],
        "edges": [{"from": "a", "to": "b"}, {"source": "b", "target": "a"}],
    }
    document = {
        "name": "test",
        "triggers": [{"type": "manual"}],
        "nodes": [
            {"id": "pre", **NOOP},
            {"id": "loop", "type": "core/loop", "parameters": {"items": "a ==", "while": "x", "body": outer}},
            {"id": "post", **NOOP},
        ],
        "edges": [{"source": "pre", "target": "loop"}, {"source": "loop", "target": "post"}],
    }
    _, problems = documents.read(document, types)
    at = "/nodes/1/parameters"
    assert {(problem.pointer, problem.code) for problem in problems} == {
        (at, "BAD_PARAMETERS"),
        (f"{at}/items", "BAD_EXPRESSION"),
        (f"{at}/body/edges/1", "CYCLE"),
        (f"{at}/body/nodes/0", "UNREACHABLE_NODE"),
        (f"{at}/body/nodes/1", "UNREACHABLE_NODE"),
        (f"{at}/body/nodes/2/parameters/body/nodes/0/type", "UNKNOWN_TYPE"),
        (f"{at}/body/nodes/2/parameters/body/nodes/0/parameters/v", "TEMPLATE_LATER_NODE"),
    }


def test_an_edge_follows_a_branch_by_its_case() -> None:
    """`case: name` is short for the condition that asks for the branch, in a body as well."""
    types = {"core/noop": TypeInfo("core/noop", {"type": "object"})}
    document = {
        "name": "test",
        "triggers": [{"type": "manual"}],
        "nodes": [{"id": "a", **NOOP}, {"id": "b", **NOOP}],
        "edges": [{"source": "a", "target": "b", "case": "it's"}],
    }
    found, problems = documents.read(document, types)
    assert problems == []
    assert found is not None
    assert found.edges[0].condition == "branch == 'it\\'s'"
    run = Run(found).finish("a", {"branch": "it's"})
    assert run.starts() == {"b"}


def test_an_edge_that_asks_for_a_branch_that_is_none_is_a_problem() -> None:
    """It would never be followed."""
    types = {name: TypeInfo(name, {"type": "object"}) for name in ("core/noop", "core/condition")}
    cases = [{"name": "big", "when": "size > `1`"}]
    document = {
        "name": "test",
        "triggers": [{"type": "manual"}],
        "nodes": [{"id": "if", "type": "core/condition", "parameters": {"cases": cases}}, {"id": "b", **NOOP}],
        "edges": [{"source": "if", "target": "b", "case": "bigg"}],
    }
    _, (problem,) = documents.read(document, types)
    assert (problem.pointer, problem.code) == ("/edges/0/case", "UNKNOWN_VALUE")
    assert "Did you mean 'big'?" in problem.message
