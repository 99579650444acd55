"""Runs that are paused, answered, retried, debugged and forked over GraphQL."""

from __future__ import annotations

import dataclasses
from typing import Any

from engine.access import LOCAL, ROLES
from flow import events as e
from tests.engine.conftest import chain, document, history, started
from tests.engine.following import until
from tests.graph.conftest import Asker

WAITS = {"id": "a", "type": "core/wait-signal", "parameters": {"name": "go", "deadline": "1d"}}
ASKS = {"id": "a", "type": "core/approval", "parameters": {"title": "Pay?", "who": ["ada"]}}


def letter(name: str) -> str:
    """A mutation that tells what became of it."""
    pascal = name[0].upper() + name[1:]
    return f"""mutation($input: {pascal}Input!) {{ {name}(input: $input) {{
      __typename
      ... on {pascal}Payload {{ changeSeq instance {{ id status }} }}
      ... on UserError {{ code message }}
    }} }}"""


async def send(ask: Asker, name: str, /, **input: Any) -> str:
    """The mutation's answer: its type, of a refusal the code."""
    answer = (await ask(letter(name), input=input))[name]
    return str(answer.get("code") or answer["__typename"])


NODES = """query($id: ID!) { instance(id: $id) {
  status pauseReason pause { reason by nodePath phase } viewerCanPause viewerCanResume
  debug { stepping breakpoints { nodeId phase when } }
  nodeExecutions { nodes { path status cached iteration
    waiting { __typename ... on Signal { name until } ... on Approval { title who viewerCanAnswer } }
    blockedBy { __typename ... on Paused { pauseReason stoppedAt } ... on Breakpoint { pauseReason phase }
      ... on Signal { name } ... on UpstreamNodes { paths } }
  } }
} }"""


async def look(ask: Asker, id: str) -> Any:
    return (await ask(NODES, id=id))["instance"]


async def test_a_waiting_node_says_for_what(ask: Asker) -> None:
    """`waiting` and `blockedBy` name the signal; the signal lets it go on."""
    id = await started(
        ask.engine, document([WAITS, {"id": "b", "type": "core/noop"}], [{"source": "a", "target": "b"}])
    )
    await until(ask.engine, id, e.NodeWaiting)
    a, b = (await look(ask, id))["nodeExecutions"]["nodes"]
    assert (a["status"], a["waiting"]["name"]) == ("WAITING", "go")
    assert a["waiting"]["until"]
    assert a["blockedBy"] == [{"__typename": "Signal", "name": "go"}]
    assert b["blockedBy"] == [{"__typename": "UpstreamNodes", "paths": ["a"]}]
    assert await send(ask, "instanceSignal", id=id, name="go", payload={"x": 1}) == "InstanceSignalPayload"
    await history(ask.engine, id)
    assert await send(ask, "instanceSignal", id=id, name="go") == "CONFLICT"
    assert (await look(ask, id))["nodeExecutions"]["nodes"][0]["waiting"] is None


async def test_an_approval_is_answered_by_whom_it_names(ask: Asker) -> None:
    """Others see that they may not, and are refused; the second answer is a Conflict."""
    id = await started(ask.engine, document([ASKS]))
    await until(ask.engine, id, e.NodeWaiting)
    ada = ask.as_(dataclasses.replace(LOCAL, user_id="usr-ada", name="ada", permissions=ROLES["viewer"]))
    assert [
        (await look(asker, id))["nodeExecutions"]["nodes"][0]["waiting"]["viewerCanAnswer"] for asker in (ask, ada)
    ] == [False, True]
    answer: dict[str, Any] = {"id": id, "path": "a", "approved": True}
    assert await send(ask, "approvalAnswer", **answer) == "PERMISSION_DENIED"
    assert await send(ada, "approvalAnswer", **answer | {"path": "zz"}) in {"NOT_FOUND", "PERMISSION_DENIED"}
    assert await send(ada, "approvalAnswer", **answer) == "ApprovalAnswerPayload"
    assert await send(ada, "approvalAnswer", **answer) == "CONFLICT"
    await history(ask.engine, id)


async def test_a_paused_run_says_so(ask: Asker) -> None:
    """Why, by whom, and every node that it holds; pausing twice is pausing once."""
    id = await started(
        ask.engine, document([WAITS, {"id": "b", "type": "core/noop"}], [{"source": "a", "target": "b"}])
    )
    await until(ask.engine, id, e.NodeWaiting)
    assert await send(ask, "instanceResume", id=id) == "CONFLICT"
    assert await send(ask, "instancePause", id=id) == "InstancePausePayload"
    assert await send(ask, "instancePause", id=id) == "InstancePausePayload"
    await until(ask.engine, id, e.InstancePaused)
    found = await look(ask, id)
    assert (found["status"], found["pauseReason"]) == ("PAUSED", "USER")
    assert found["pause"] == {"reason": "USER", "by": LOCAL.user_id, "nodePath": None, "phase": None}
    assert (found["viewerCanPause"], found["viewerCanResume"]) == (False, True)
    paused = {"__typename": "Paused", "pauseReason": "USER", "stoppedAt": None}
    assert [node["blockedBy"][0] for node in found["nodeExecutions"]["nodes"]] == [paused, paused]
    assert await send(ask, "instanceResume", id=id) == "InstanceResumePayload"
    await until(ask.engine, id, e.InstanceResumed)
    found = await look(ask, id)
    assert (found["status"], found["pauseReason"], found["pause"]) == ("RUNNING", None, None)


START = """mutation($input: InstanceStartInput!) { instanceStart(input: $input) {
  __typename ... on InstanceStartPayload { instance { id } } ... on ValidationFailed { problems { pointer } }
} }"""
EVALUATE = """query($id: ID!, $node: String, $x: String!) { debugEvaluate(instance: $id, node: $node, expression: $x) {
  __typename ... on DebugEvaluatePayload { value nodePath } ... on UserError { code }
} }"""


async def test_a_debugger_stops_looks_changes_and_goes_on(ask: Asker) -> None:
    """A conditional breakpoint, an expression on the node's scope, another input, a step, the rest."""
    await ask.engine.workflows.create(LOCAL, chain("core/noop", "core/noop", "core/noop") | {"name": "debugged"})
    debug = {"breakpoints": [{"nodeId": "n2", "when": "x == `1`"}]}
    input: dict[str, Any] = {"workflow": {"name": "debugged"}, "input": {"x": 1}}
    bad = await ask(
        START, input=input | {"debug": {"breakpoints": [{"nodeId": "zz"}, {"nodeId": "n1", "when": "x =="}]}}
    )
    assert {problem["pointer"] for problem in bad["instanceStart"]["problems"]} == {
        "/breakpoints/0/nodeId", "/breakpoints/1/when",
    }  # fmt: skip
    id = (await ask(START, input=input | {"debug": debug}))["instanceStart"]["instance"]["id"]
    stop = await until(ask.engine, id, e.InstancePaused)
    assert stop.path == "n2"
    found = await look(ask, id)
    assert (found["pauseReason"], found["pause"]["nodePath"], found["pause"]["phase"]) == ("BREAKPOINT", "n2", "BEFORE")
    assert found["debug"] == {
        "stepping": False,
        "breakpoints": [{"nodeId": "n2", "phase": "BEFORE", "when": "x == `1`"}],
    }
    held = {node["path"]: node["blockedBy"] for node in found["nodeExecutions"]["nodes"]}
    assert held["n2"] == [{"__typename": "Breakpoint", "pauseReason": "BREAKPOINT", "phase": "BEFORE"}]
    assert held["n3"][0] == {"__typename": "Paused", "pauseReason": "BREAKPOINT", "stoppedAt": "n2"}
    value = (await ask(EVALUATE, id=id, x="[x, nodes.n1.output.x, input]"))["debugEvaluate"]
    assert value == {"__typename": "DebugEvaluatePayload", "value": [1, 1, {"x": 1}], "nodePath": "n2"}
    for wrong, code in (({"x": "x =="}, "VALIDATION_FAILED"), ({"x": "x", "node": "zz"}, "NOT_FOUND")):
        assert (await ask(EVALUATE, id=id, **wrong))["debugEvaluate"]["code"] == code
    assert await send(ask, "debugInputSet", id=id, path="n2", value={"x": 5}) == "DebugInputSetPayload"
    assert await send(ask, "debugInputSet", id=id, path="n1", value={"x": 5}) == "CONFLICT"
    assert await send(ask, "debugStep", id=id) == "DebugStepPayload"
    seq = (await ask("query($id: ID!) { instance(id: $id) { lastSeq } }", id=id))["instance"]["lastSeq"]
    stop = await until(ask.engine, id, e.InstancePaused, "n3", after=seq - 1)
    assert stop.reason is e.PauseReason.STEP
    assert (await look(ask, id))["debug"]["stepping"] is True
    assert await send(ask, "debugBreakpointsSet", id=id, breakpoints=[]) == "DebugBreakpointsSetPayload"
    assert await send(ask, "debugOutputSet", id=id, path="n3", value={"x": 9}) == "DebugOutputSetPayload"
    assert await send(ask, "debugContinue", id=id) == "DebugContinuePayload"
    snapshot = (await history(ask.engine, id))[-1].event
    assert isinstance(snapshot, e.InstanceCompleted)
    assert snapshot.output == {"n3": {"x": 9}}
    values = 'query($id: ID!) { instance(id: $id) { nodeExecution(path: "n2") { input output } } }'
    assert (await ask(values, id=id))["instance"]["nodeExecution"] == {"input": {"x": 5}, "output": {"x": 5}}


async def test_the_whole_state_as_it_was(ask: Asker) -> None:
    """`at(seq)` is the run right after that event; there is none after its last."""
    id = await started(ask.engine, chain("core/noop", "core/noop"), input={"x": 1})
    last = (await history(ask.engine, id))[-1].seq
    text = """query($id: ID!, $seq: Int!) { instance(id: $id) {
      at(seq: $seq) { status event { type } nodes { path status } }
    } }"""
    shown = [(await ask(text, id=id, seq=seq))["instance"]["at"] for seq in (1, 3, last, last + 1, 0)]
    assert shown[0] == {"status": "PENDING", "event": {"type": "instance.created"}, "nodes": []}
    assert shown[1] == {
        "status": "RUNNING", "event": {"type": "node.started"}, "nodes": [{"path": "n1", "status": "RUNNING"}],
    }  # fmt: skip
    assert shown[2]["status"] == "COMPLETED"
    assert shown[3] is shown[4] is None


FORK = """mutation($input: InstanceForkInput!) { instanceFork(input: $input) { __typename
  ... on InstanceForkPayload { instance { id forkOf { id } } } ... on UserError { code }
} }"""


async def test_a_fork_knows_what_it_came_from(ask: Asker) -> None:
    """What had completed is cached; what isn't there can't be forked from."""
    id = await started(ask.engine, chain("core/noop", "core/noop"), input={"x": 1})
    await history(ask.engine, id)
    made = (await ask(FORK, input={"id": id, "node": "n2", "pins": [{"path": "n1", "output": {"x": 7}}]}))[
        "instanceFork"
    ]
    fork = made["instance"]
    assert fork["forkOf"] == {"id": id}
    await history(ask.engine, fork["id"])
    nodes = (await look(ask, fork["id"]))["nodeExecutions"]["nodes"]
    assert [(node["path"], node["status"], node["cached"]) for node in nodes] == [
        ("n1", "COMPLETED", True), ("n2", "COMPLETED", False),
    ]  # fmt: skip
    for wrong, code in (({"id": "inst-none"}, "NOT_FOUND"), ({"id": id, "seq": 999}, "NOT_FOUND"),
                        ({"id": id, "parameters": [1]}, "VALIDATION_FAILED")):  # fmt: skip
        assert (await ask(FORK, input=wrong))["instanceFork"]["code"] == code
    forks = "query($id: ID!) { instances(where: {forkOf: {eq: $id}}) { nodes { id } } }"
    assert (await ask(forks, id=id))["instances"]["nodes"] == [{"id": fork["id"]}]


async def test_a_child_and_its_parent_know_each_other(ask: Asker) -> None:
    """`children`, `parent`, `parentNode`, and what the parent's node waits for."""
    await ask.engine.workflows.create(LOCAL, document([WAITS], name="child"))
    parent = await started(
        ask.engine, document([{"id": "p", "type": "core/workflow", "parameters": {"workflow": "child"}}])
    )
    await until(ask.engine, parent, e.NodeWaiting)
    text = """query($id: ID!) { instance(id: $id) {
      children { totalCount nodes { id parent { id } parentNode { path } } }
      nodeExecutions { nodes { blockedBy { ... on ChildInstance { instanceId instance { id } } } } }
    } }"""
    found = (await ask(text, id=parent))["instance"]
    [child] = found["children"]["nodes"]
    assert found["children"]["totalCount"] == 1
    assert (child["parent"], child["parentNode"]) == ({"id": parent}, {"path": "p"})
    [node] = found["nodeExecutions"]["nodes"]
    assert node["blockedBy"] == [{"instanceId": child["id"], "instance": {"id": child["id"]}}]


RETRY = """mutation($input: NodeExecutionRetryInput!) { nodeExecutionRetry(input: $input) { __typename
  ... on NodeExecutionRetryPayload { instance { status } nodeExecution { path } } ... on UserError { code }
} }"""
MANY = """mutation($w: InstanceWhere!) {
  instancesRetry(input: {where: $w}) { ... on InstancesRetryPayload { more results { instanceId refusal { code } } } }
}"""


async def test_failed_nodes_run_again_one_or_many(ask: Asker) -> None:
    """By hand a node, in bulk a row for each run; what did not fail is refused by name."""
    flaky = {"id": "a", "type": "test/flaky", "parameters": {"succeeds_at": 2}, "retry": {"max": 0}}
    ids = [await started(ask.engine, document([flaky], name="flaky")) for _ in range(3)]
    for id in ids:
        await history(ask.engine, id)
    node = f"node-{ids[0].removeprefix('inst-')}.a"
    again = (await ask(RETRY, input={"id": node}))["nodeExecutionRetry"]
    assert again["nodeExecution"] == {"path": "a"}
    await until(ask.engine, ids[0], e.InstanceCompleted, after=1)
    assert (await ask(RETRY, input={"id": node}))["nodeExecutionRetry"]["code"] in {"CONFLICT", "ILLEGAL_TRANSITION"}
    assert (await ask(RETRY, input={"id": "node-none"}))["nodeExecutionRetry"]["code"] == "NOT_FOUND"
    rows = (await ask(MANY, w={"id": {"in": ids}}))["instancesRetry"]
    refused = {row["instanceId"]: row["refusal"] and row["refusal"]["code"] for row in rows["results"]}
    assert refused == {ids[0]: "CONFLICT", ids[1]: None, ids[2]: None}
    assert rows["more"] is False


async def test_many_are_cancelled_with_a_row_each(ask: Asker) -> None:
    """Those that have ended say so."""
    done = await started(ask.engine, chain("core/noop") | {"name": "done"})
    await history(ask.engine, done)
    ids = [await started(ask.engine, document([WAITS], name="waits")) for _ in range(2)]
    text = """mutation($w: InstanceWhere!) { instancesCancel(input: {where: $w, reason: "enough"}) {
      ... on InstancesCancelPayload { results { instanceId refusal { code } instance { id } } }
    } }"""
    rows = (await ask(text, w={"id": {"in": [*ids, done]}}))["instancesCancel"]["results"]
    assert [(row["instanceId"], row["refusal"]) for row in rows] == [
        (done, {"code": "CONFLICT"}), (ids[0], None), (ids[1], None),
    ]  # fmt: skip
    for id in ids:
        assert isinstance((await history(ask.engine, id))[-1].event, e.InstanceCanceled)


async def test_who_may_only_look_changes_nothing(ask: Asker) -> None:
    """Every change of a run needs the permission to run; another project's runs are not there."""
    id = await started(ask.engine, document([WAITS]))
    await until(ask.engine, id, e.NodeWaiting)
    viewer = ask.as_(dataclasses.replace(LOCAL, permissions=ROLES["viewer"]))
    stranger = ask.as_(dataclasses.replace(LOCAL, project_id="proj-other"))
    more: dict[str, dict[str, Any]] = {
        "instancePause": {}, "instanceResume": {}, "debugStep": {}, "debugContinue": {},
        "instanceSignal": {"name": "go"},
        "debugBreakpointsSet": {"breakpoints": []}, "debugInputSet": {"path": "a", "value": 1},
        "debugOutputSet": {"path": "a", "value": 1}, "instanceFork": {},
    }  # fmt: skip
    for name, fields in more.items():
        assert await send(viewer, name, id=id, **fields) == "PERMISSION_DENIED", name
        assert await send(stranger, name, id=id, **fields) == "NOT_FOUND", name


async def test_a_run_that_waits_for_its_turn_says_for_which(ask: Asker) -> None:
    """Behind a concurrency key or a limit its nodes are blocked by that, and by nothing else."""
    text = """query($id: ID!) { instance(id: $id) { status nodeExecutions { nodes { blockedBy {
      __typename ... on ConcurrencyKey { key limit } ... on Quota { of }
    } } } } }"""

    async def held(id: str) -> Any:
        return (await ask(text, id=id))["instance"]["nodeExecutions"]["nodes"][0]["blockedBy"]

    keyed = document([WAITS], name="keyed", concurrency={"key": "customer", "limit": 1})
    first, second = [await started(ask.engine, keyed, input={"customer": "ada"}) for _ in range(2)]
    await until(ask.engine, first, e.NodeWaiting)
    assert await held(second) == [{"__typename": "ConcurrencyKey", "key": "ada", "limit": 1}]

    limited = document([WAITS], name="limited")
    first = await started(ask.engine, limited)
    await until(ask.engine, first, e.NodeWaiting)
    workflow = await ask.engine.workflows.named(LOCAL, "limited")
    assert workflow is not None
    limit = """mutation($id: ID!, $n: Int) { workflowLimitSet(input: {id: $id, maxRunning: $n}) {
      ... on WorkflowLimitSetPayload { workflow { maxRunning } } ... on UserError { code }
    } }"""
    assert (await ask(limit, id=workflow.id, n=0))["workflowLimitSet"] == {"code": "VALIDATION_FAILED"}
    assert (await ask(limit, id="wf-none", n=1))["workflowLimitSet"] == {"code": "NOT_FOUND"}
    assert (await ask(limit, id=workflow.id, n=1))["workflowLimitSet"] == {"workflow": {"maxRunning": 1}}
    second = await started(ask.engine, limited)
    assert await held(second) == [{"__typename": "Quota", "of": "WORKFLOW"}]
    await ask(limit, id=workflow.id, n=None)
    await until(ask.engine, second, e.NodeWaiting)


async def test_a_page_of_runs_costs_a_constant_number_of_statements(ask: Asker) -> None:
    """What is told of waits, pauses, parents, forks and time is read for all runs of a page together."""
    text = """query($n: Int) { instances(first: $n) { nodes {
      status pauseReason pause { at } debug { stepping } parent { id } forkOf { id } children(first: 2) { totalCount }
      progress { fraction } criticalPath { path } parentNode { path }
      nodeExecutions(first: 5) { totalCount nodes { path cached waiting { __typename } blockedBy { __typename } } }
    } } }"""
    for _ in range(6):
        id = await started(
            ask.engine,
            document([WAITS, {"id": "b", "type": "core/noop"}], [{"source": "a", "target": "b"}], name="page"),
        )
        await until(ask.engine, id, e.NodeWaiting)
        await ask.engine.instances.pause(LOCAL, id)
        await until(ask.engine, id, e.InstancePaused)
    await ask(text, n=1)  # the past of the version's nodes is kept for a minute
    counts = []
    for n in (1, 6):
        with ask.statements() as statements:
            await ask(text, n=n)
        counts.append(len(statements))
    assert counts[0] == counts[1], counts
