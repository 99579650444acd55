"""Why a node isn't running, how far a run has come, where its time went, and what differs between two."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from engine.access import LOCAL
from tests.engine.conftest import chain, document, history, started
from tests.engine.nodes import gate
from tests.graph.conftest import Asker

NODES = """
  query($id: ID!, $where: NodeExecutionWhere, $first: Int, $after: String, $last: Int) { instance(id: $id) {
    nodeExecutions(where: $where, first: $first, after: $after, last: $last) {
      totalCount pageInfo { hasNextPage endCursor }
      nodes { nodeId status attempt blockedBy {
        __typename
        ... on UpstreamNodes { paths }
        ... on RetryDelay { until attempt lastError { code } }
        ... on Place { lane }
      } }
    }
  } }
"""


async def nodes(ask: Asker, id: str, **arguments: Any) -> Any:
    return (await ask(NODES, id=id, **arguments))["instance"]["nodeExecutions"]


async def at_gate(ask: Asker, name: str, *after: str) -> str:
    """A run that stands at a gate, with nodes behind it."""
    entered, _ = gate(name)
    nodes = [{"id": "a", "type": "test/gate", "parameters": {"gate": name}}]
    nodes += [{"id": id, "type": "core/noop"} for id in after]
    ids = ["a", *after]
    edges = [{"source": source, "target": target} for source, target in pairwise(ids)]
    id = await started(ask.engine, document(nodes, edges, name=name))
    await entered.wait()
    return id


async def test_nodes_that_have_not_begun_say_what_they_wait_for(ask: Asker) -> None:
    """Every node is there from the start; a pending one names the nodes before it that have not ended."""

    def behind(id: str) -> Any:
        return {"__typename": "UpstreamNodes", "paths": [id]}

    id = await at_gate(ask, "upstream", "b", "c")
    found = await nodes(ask, id)
    assert found["totalCount"] == 3
    assert found["nodes"] == [
        {"nodeId": "a", "status": "RUNNING", "attempt": 1, "blockedBy": []},
        {"nodeId": "b", "status": "PENDING", "attempt": 0, "blockedBy": [behind("a")]},
        {"nodeId": "c", "status": "PENDING", "attempt": 0, "blockedBy": [behind("b")]},
    ]
    one = "query($id: ID!, $path: String!) { instance(id: $id) { nodeExecution(path: $path) { nodeId status } } }"
    assert (await ask(one, id=id, path="c"))["instance"]["nodeExecution"] == {"nodeId": "c", "status": "PENDING"}
    assert (await ask(one, id=id, path="zz"))["instance"]["nodeExecution"] is None


async def test_pages_run_over_begun_and_pending_nodes(ask: Asker) -> None:
    """Forwards and backwards, pages join without gap or duplicate; filters hold for both kinds."""
    id = await at_gate(ask, "pages", "b", "c", "d", "e")
    seen: list[str] = []
    cursor = None
    while True:
        page = await nodes(ask, id, first=2, after=cursor)
        seen += [node["nodeId"] for node in page["nodes"]]
        if not page["pageInfo"]["hasNextPage"]:
            break
        cursor = page["pageInfo"]["endCursor"]
    assert seen == ["a", "b", "c", "d", "e"]
    assert [node["nodeId"] for node in (await nodes(ask, id, last=2))["nodes"]] == ["d", "e"]
    pending = await nodes(ask, id, where={"status": {"eq": "PENDING"}, "not": {"nodeId": {"in": ["c"]}}})
    assert [node["nodeId"] for node in pending["nodes"]] == ["b", "d", "e"]
    assert pending["totalCount"] == 3
    begun = await nodes(ask, id, where={"or": [{"status": {"eq": "RUNNING"}}, {"path": {"contains": "zz"}}]})
    assert [node["nodeId"] for node in begun["nodes"]] == ["a"]


async def test_a_retry_says_when_it_is_due(ask: Asker) -> None:
    """A failed attempt that is made again is blocked by its delay."""
    retry = {"max": 1, "base": "1h", "cap": "1h", "jitter": 0}
    flaky = {"id": "a", "type": "test/flaky", "parameters": {"succeeds_at": 3}, "retry": retry}
    id = await started(ask.engine, document([flaky], name="retry"))
    async for recorded in ask.engine.streams.events(LOCAL, id):
        if recorded.type == "node.retrying":
            break
    [node] = (await nodes(ask, id))["nodes"]
    [held] = node["blockedBy"]
    assert (held["__typename"], held["attempt"], held["lastError"]["code"]) == ("RetryDelay", 2, "NODE_FAILED")
    assert held["until"]


async def test_what_has_ended_is_blocked_by_nothing(ask: Asker) -> None:
    """Of an ended run there are the nodes that it had, and nothing holds them."""
    id = await started(ask.engine, chain("core/noop", "core/noop"))
    await history(ask.engine, id)
    assert [node["blockedBy"] for node in (await nodes(ask, id))["nodes"]] == [[], []]


async def test_asking_every_node_costs_a_constant_number_of_statements(ask: Asker) -> None:
    """However many nodes are pending, their reasons are read together."""
    counts = []
    for name, more in (("few", ["b"]), ("many", [f"n{i}" for i in range(30)])):
        id = await at_gate(ask, name, *more)
        with ask.statements() as statements:
            await nodes(ask, id, first=50)
        counts.append(len(statements))
    assert counts[0] == counts[1], counts


async def test_progress_is_weighted_and_the_critical_path_is_told(ask: Asker) -> None:
    """An ended run is whole; its critical path leads through the nodes that released each other."""
    text = """query($id: ID!) { instance(id: $id) {
      progress { total completed fraction } criticalPath { path startedAt completedAt duration waited }
    } }"""
    id = await started(ask.engine, chain("core/noop", "core/noop"))
    await history(ask.engine, id)
    found = (await ask(text, id=id))["instance"]
    assert found["progress"] == {"total": 2, "completed": 2, "fraction": 1.0}
    assert [step["path"] for step in found["criticalPath"]] == ["n1", "n2"]
    waiting = await at_gate(ask, "half", "b")
    found = (await ask(text, id=waiting))["instance"]
    assert 0 <= found["progress"]["fraction"] < 0.5
    assert [(step["path"], step["completedAt"]) for step in found["criticalPath"]] == [("a", None)]


DIFF = """
  query($a: ID!, $b: ID!, $all: Boolean) { instanceDiff(a: $a, b: $b) {
    identical input { key kind before after } output { key kind }
    nodes(all: $all) {
      path kind statusChanged moreChanges outputChanges { key kind before after } a { status } b { status }
    }
  } }
"""


async def test_two_runs_are_compared_node_by_node(ask: Asker) -> None:
    """Where input and outputs differ is named; equal nodes are left out unless asked for."""
    nodes: list[dict[str, Any]] = [
        {"id": "same", "type": "core/transform", "parameters": {"output": {"x": 1}}},
        {"id": "echo", "type": "core/noop"},
    ]
    ids = [await started(ask.engine, document(nodes, name="diff"), input={"who": who}) for who in ("Ada", "Bob")]
    for id in ids:
        await history(ask.engine, id)
    found = (await ask(DIFF, a=ids[0], b=ids[1]))["instanceDiff"]
    change = {"key": "/who", "kind": "CHANGED", "before": "Ada", "after": "Bob"}
    assert not found["identical"]
    assert found["input"] == [change]
    assert found["output"] == [{"key": "/echo/who", "kind": "CHANGED"}]
    assert found["nodes"] == [
        {
            "path": "echo", "kind": "CHANGED", "statusChanged": False, "moreChanges": False, "outputChanges": [change],
            "a": {"status": "COMPLETED"}, "b": {"status": "COMPLETED"},
        }
    ]  # fmt: skip
    everything = (await ask(DIFF, a=ids[0], b=ids[1], all=True))["instanceDiff"]["nodes"]
    assert {node["path"]: node["kind"] for node in everything} == {"same": None, "echo": "CHANGED"}
    assert (await ask(DIFF, a=ids[0], b=ids[0]))["instanceDiff"]["identical"] is True


async def test_only_runs_of_the_project_are_compared(ask: Asker) -> None:
    """What isn't there can't be compared."""
    id = await started(ask.engine, chain("core/noop"))
    await history(ask.engine, id)
    assert await ask.code(DIFF, a=id, b="inst-none") == "NOT_FOUND"


@pytest.mark.parametrize(
    "field", ["parent { id }", "parentNode { id }", "forkOf { id }", "pause { at }", "pauseReason"]
)
async def test_an_ordinary_run_has_none_of_it(ask: Asker, field: str) -> None:
    """No parent, no original, no pause, no children."""
    id = await started(ask.engine, chain("core/noop"))
    text = f"query($id: ID!) {{ instance(id: $id) {{ found: {field} children {{ totalCount }} }} }}"
    assert (await ask(text, id=id))["instance"] == {"found": None, "children": {"totalCount": 0}}
