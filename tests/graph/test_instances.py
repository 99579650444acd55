"""Instances over GraphQL: started, listed, looked into, cancelled."""

from __future__ import annotations

from typing import Any

import pytest

from engine.access import LOCAL, ROLES, Actor
from tests.engine.conftest import chain, document, history, started
from tests.engine.nodes import gate
from tests.graph.conftest import Asker

START = """
mutation($input: InstanceStartInput!) { instanceStart(input: $input) {
  __typename
  ... on InstanceStartPayload { created changeSeq instance { id status output } }
  ... on UserError { code message path }
  ... on ValidationFailed { problems { code pointer message } }
  ... on NotFound { kind id }
} }
"""


async def start(ask: Asker, **input: Any) -> dict[str, Any]:
    return dict((await ask(START, input=input))["instanceStart"])


async def test_a_run_is_started_and_waited_for(ask: Asker) -> None:
    """instanceStart with `wait` answers with the finished run."""
    await ask.engine.workflows.create(LOCAL, chain("core/noop", "core/noop"))
    answer = await start(ask, workflow={"name": "test"}, input={"x": 1}, wait="PT10S")
    assert answer["__typename"] == "InstanceStartPayload"
    assert answer["instance"]["status"] == "COMPLETED"
    assert answer["instance"]["output"] == {"n2": {"x": 1}}
    assert answer["created"] is True
    assert answer["changeSeq"] > 0


async def test_the_same_key_starts_one_run(ask: Asker) -> None:
    """A second start with the same idempotency key gives the first one's instance."""
    await ask.engine.workflows.create(LOCAL, chain("core/noop"))
    first, second = [await start(ask, workflow={"name": "test"}, idempotencyKey="k", wait="10s") for _ in range(2)]
    assert second["instance"]["id"] == first["instance"]["id"]
    assert (first["created"], second["created"]) == (True, False)


async def test_a_version_is_run_by_its_id(ask: Asker) -> None:
    """`workflow: {version}` runs exactly that version, without naming the workflow."""
    created = await ask.engine.workflows.create(LOCAL, chain("core/noop"))
    answer = await start(ask, workflow={"version": created.version_id}, wait="10s")
    assert answer["instance"]["status"] == "COMPLETED"


@pytest.mark.parametrize(
    ("input", "kind"),
    [
        ({"workflow": {"id": "wf-none"}}, "NotFound"),
        ({"workflow": {"version": "wfv-none"}}, "NotFound"),
        ({"workflow": {"name": "test"}, "priority": 11}, "ValidationFailed"),
        ({"workflow": {"name": "test"}, "wait": "PT2M"}, "ValidationFailed"),
        ({"workflow": {"name": "test"}, "input": {"n": "text"}}, "ValidationFailed"),
        ({"workflow": {"name": "drafted"}}, "Conflict"),
    ],
)
async def test_a_refused_start_says_why(ask: Asker, input: dict[str, Any], kind: str) -> None:
    """What can't be started is a result with a code, never a top-level error."""
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    await ask.engine.workflows.create(LOCAL, chain("core/noop") | {"input_schema": schema})
    await ask.engine.workflows.create(LOCAL, chain("core/noop") | {"name": "drafted"}, status="DRAFT")  # type: ignore[arg-type]
    answer = await start(ask, **input)
    assert answer["__typename"] == kind
    assert answer["message"]


async def test_who_may_only_look_may_not_start(ask: Asker) -> None:
    """A missing permission is a PermissionDenied result of a mutation; a stranger is told to sign in."""
    viewer = Actor("usr-x", "x", LOCAL.project_id, ROLES["viewer"])
    answer = await start(ask.as_(viewer), workflow={"name": "test"})
    assert (answer["__typename"], answer["code"]) == ("PermissionDenied", "PERMISSION_DENIED")
    assert await ask.as_(None).code("{ instances { nodes { id } } }") == "UNAUTHENTICATED"


async def test_everything_about_a_run(ask: Asker) -> None:
    """An instance shows its workflow, version, trigger, nodes with derived inputs, and events."""
    id = await started(
        ask.engine,
        document(
            [{"id": "a", "type": "core/noop", "retry": {"max": 7}}, {"id": "b", "type": "core/noop"}],
            [{"source": "a", "target": "b", "mapping": {"y": "$.x"}}],
        ),
        input={"x": 1},
        labels={"team": "blue"},
    )
    await history(ask.engine, id)
    data = await ask(
        """
        query($id: ID!) { instance(id: $id) {
          status input output trigger { type payload } timeout priority labels { name value } lastSeq duration
          viewerCanCancel
          workflow { name } version { version workflow { id } }
          progress { total completed pending }
          nodeExecutions { totalCount nodes {
            id path nodeType status attempt retryCount maxRetries input output duration instance { id } logs { message }
          } }
          one: nodeExecution(path: "b") { input }
          events(after: 2, first: 2) { __typename seq type ... on NodeEvent { nodePath nodeId } data }
        } }
        """,
        id=id,
    )
    found = data["instance"]
    assert found["status"] == "COMPLETED"
    assert found["trigger"] == {"type": "api", "payload": None}
    assert found["labels"] == [{"name": "team", "value": "blue"}]
    assert found["workflow"]["name"] == "test"
    assert found["version"]["version"] == "1.0.0"
    assert found["progress"] == {"total": 2, "completed": 2, "pending": 0}
    assert found["viewerCanCancel"] is False
    a, b = found["nodeExecutions"]["nodes"]
    assert found["nodeExecutions"]["totalCount"] == 2
    assert (a["input"], a["output"], a["maxRetries"]) == ({"x": 1}, {"x": 1}, 7)
    assert (b["input"], b["maxRetries"]) == ({"y": 1}, 3)
    assert found["one"]["input"] == {"y": 1}
    assert [(each["__typename"], each["seq"]) for each in found["events"]] == [
        ("NodeStartedEvent", 3),
        ("NodeCompletedEvent", 4),
    ]
    node = (await ask("query($id: ID!) { node(id: $id) { __typename id } }", id=b["id"]))["node"]
    assert node == {"__typename": "NodeExecution", "id": b["id"]}


async def test_lists_page_by_key_and_filter(ask: Asker) -> None:
    """Pages join without gap or duplicate in both directions, and filters combine."""
    ids = [await started(ask.engine, chain("core/noop"), priority=1 + n % 3) for n in range(7)]
    for id in ids:
        await history(ask.engine, id)
    page = """
      query($first: Int, $after: String, $last: Int, $before: String, $where: InstanceWhere) {
        instances(first: $first, after: $after, last: $last, before: $before, where: $where, orderBy: CREATED_ASC) {
          totalCount nodes { id } pageInfo { hasNextPage hasPreviousPage startCursor endCursor }
        }
      }
    """
    seen: list[str] = []
    cursor = None
    while True:
        found = (await ask(page, first=3, after=cursor))["instances"]
        seen += [node["id"] for node in found["nodes"]]
        assert found["totalCount"] == 7
        cursor = found["pageInfo"]["endCursor"]
        if not found["pageInfo"]["hasNextPage"]:
            break
    assert seen == ids
    back = (await ask(page, last=3, before=cursor))["instances"]
    assert [node["id"] for node in back["nodes"]] == ids[3:6]
    assert back["pageInfo"]["hasPreviousPage"] is True
    where = {"or": [{"priority": {"eq": 1}}, {"id": {"in": [ids[1]]}}], "not": {"id": {"eq": ids[0]}}}
    matched = (await ask(page, where=where))["instances"]
    assert [node["id"] for node in matched["nodes"]] == [ids[1], ids[3], ids[6]]
    assert matched["totalCount"] == 3


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ('after: "junk"', "BAD_CURSOR"),
        ('after: "WyJDUkVBVEVEIiwxLDJd"', "BAD_CURSOR"),
        ("first: 101", "BAD_PAGE"),
        ("first: 0", "BAD_PAGE"),
        ("last: -1", "BAD_PAGE"),
        ("first: 1, last: 1", "BAD_PAGE"),
        ("where: {" + "not: {" * 9 + "}" * 9 + "}", "BAD_FILTER"),
    ],
)
async def test_bad_arguments_are_named(ask: Asker, arguments: str, code: str) -> None:
    """A junk cursor, a page out of bounds, a filter too deep: each is a refusal with its own code."""
    assert await ask.code(f"{{ instances({arguments}) {{ nodes {{ id }} }} }}") == code


async def test_a_cursor_of_another_order_is_refused(ask: Asker) -> None:
    """A cursor belongs to the order that it came from."""
    await history(ask.engine, await started(ask.engine, chain("core/noop")))
    cursor = (await ask("{ instances { pageInfo { endCursor } } }"))["instances"]["pageInfo"]["endCursor"]
    text = "query($a: String) { instances(after: $a, orderBy: CHANGED_DESC) { nodes { id } } }"
    assert await ask.code(text, a=cursor) == "BAD_CURSOR"


async def test_a_page_costs_a_constant_number_of_statements(ask: Asker) -> None:
    """Workflow, version, nodes with inputs, logs and events of a page are read together, however long the page is."""
    text = """
      query($n: Int) { instances(first: $n) { totalCount nodes {
        id workflow { name } version { version nodes { id } } trigger { type } progress { total }
        events(first: 5) { seq }
        nodeExecutions(first: 10) { totalCount nodes { status input maxRetries logs { message } } }
      } } }
    """
    for n in range(6):
        await history(ask.engine, await started(ask.engine, chain("core/noop", "core/noop") | {"name": f"w{n}"}))
    counts = []
    for n in (1, 6):
        with ask.statements() as statements:
            await ask(text, n=n)
        counts.append(len(statements))
    assert counts[0] == counts[1], counts


async def test_cancelling_stops_a_run_once(ask: Asker) -> None:
    """instanceCancel ends a running instance; cancelling what has ended is a Conflict, what isn't there NotFound."""
    cancel = """
      mutation($id: ID!) { instanceCancel(input: {id: $id, reason: "enough"}) {
        __typename ... on InstanceCancelPayload { instance { id viewerCanCancel } } ... on UserError { code }
      } }
    """
    entered, _ = gate("cancelled-over-graphql")
    id = await started(
        ask.engine, document([{"id": "a", "type": "test/gate", "parameters": {"gate": "cancelled-over-graphql"}}])
    )
    await entered.wait()
    assert (await ask(cancel, id=id))["instanceCancel"]["__typename"] == "InstanceCancelPayload"
    await history(ask.engine, id)
    status = (await ask("query($id: ID!) { instance(id: $id) { status cancelRequestedAt } }", id=id))["instance"]
    assert status["status"] == "CANCELED"
    assert status["cancelRequestedAt"]
    assert (await ask(cancel, id=id))["instanceCancel"]["__typename"] == "Conflict"
    assert (await ask(cancel, id="inst-none"))["instanceCancel"]["__typename"] == "NotFound"


async def test_another_projects_runs_are_not_there(ask: Asker) -> None:
    """By id, in lists, as nodes or streams: what belongs to another project does not exist."""
    id = await started(ask.engine, chain("core/noop"))
    await history(ask.engine, id)
    other = ask.as_(Actor("usr-o", "o", "proj-other", ROLES["admin"]))
    text = """
      query($id: ID!, $node: ID!) {
        instance(id: $id) { id } node(id: $id) { id } execution: node(id: $node) { id } instances { totalCount }
      }
    """
    node = f"node-{id.removeprefix('inst-')}.n1"
    assert await other(text, id=id, node=node) == {
        "instance": None, "node": None, "execution": None, "instances": {"totalCount": 0},
    }  # fmt: skip
    assert (await ask(text, id=id, node=node))["execution"] == {"id": node}
