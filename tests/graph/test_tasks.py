"""Tasks over GraphQL: single runs, their lives, lists, streams, and reports of runners."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from engine.access import LOCAL, ROLES, Actor
from tests.engine.conftest import document
from tests.engine.nodes import gate
from tests.graph.conftest import Asker
from tests.graph.working import NAMES, files, finished, workflow

HELLO = document(
    [{"id": "greet", "type": "core/transform", "parameters": {"output": {"greeting": "Hello {{ who }}"}}}],
    name="hello",
    input_schema={"type": "object", "required": ["who"]},
    output_mapping={"said": "$.nodes.greet.greeting"},
)
CREATE = """
mutation ($input: TaskCreateInput!) { taskCreate(input: $input) {
  __typename
  ... on UserError { code message path }
  ... on ValidationFailed { problems { pointer code message } }
  ... on TaskCreatePayload { changeSeq executionToken execution { id status } task {
    id type name description status priority timeout input parameters batch { targetFolders } total
    viewerCanUpdate viewerCanCancel viewerCanExecute viewerCanDelete execution { id } } } } }
"""
REFUSAL = "__typename ... on UserError { code message path } ... on ValidationFailed { problems { pointer } }"


async def create(ask: Asker, **given: Any) -> dict[str, Any]:
    """The answer to ``taskCreate``: a run of hello unless it says otherwise."""
    await workflow(ask.engine, HELLO)
    told = {"type": "workflow", "workflow": {"name": "hello"}, "input": {"who": "Ada"}} | given
    return (await ask(CREATE, input=told))["taskCreate"]  # type: ignore[no-any-return]


async def act(ask: Asker, mutation: str, **given: Any) -> dict[str, Any]:
    """The answer to a mutation of a task, by its refusal or its task."""
    kind = mutation[0].upper() + mutation[1:]
    shown = "task { id name description priority status parameters }"
    if mutation == "taskDelete":
        refusal, shown = "__typename ... on UserError { code }", "id"
    else:
        refusal = REFUSAL
    text = f"mutation ($i: {kind}Input!) {{ {mutation}(input: $i) {{ {refusal} ... on {kind}Payload {{ {shown} }} }} }}"
    return (await ask(text, i=given))[mutation]  # type: ignore[no-any-return]


async def test_a_run_in_the_background_has_a_result(ask: Asker) -> None:
    """A task of the type ``workflow`` is one run; what came out is its result, and its one item names the instance."""
    answer = await create(ask, name="greet Ada", description="a test", priority=8, timeout="PT5M")
    made = answer["task"]
    assert (made["type"], made["name"], made["priority"], made["timeout"]) == ("workflow", "greet Ada", 8, "PT5M")
    assert (made["input"], made["batch"], made["total"]) == ({"who": "Ada"}, None, 1)
    assert answer["executionToken"]
    ended = await finished(ask, made["id"])
    assert (ended["status"], ended["done"], ended["progress"]) == ("COMPLETED", 1, 1)
    assert ended["result"] == {"said": "Hello Ada"}
    data = await ask(
        "query ($id: ID!) { task(id: $id) { items { nodes { path instance { output } } } startedAt duration } }",
        id=made["id"],
    )
    assert data["task"]["items"]["nodes"] == [{"path": "", "instance": {"output": {"said": "Hello Ada"}}}]
    assert data["task"]["duration"]


async def test_a_node_can_be_a_task(ask: Asker) -> None:
    """Any registered node type runs in the background; one that isn't there is refused by its pointer."""
    output = {
        "type": "core/transform",
        "workflow": None,
        "input": {"n": 2},
        "parameters": {"output": {"twice": "{{ n }}"}},
    }
    made = (await create(ask, **output))["task"]
    assert made["type"] == "core/transform"
    ended = await finished(ask, made["id"])
    assert ended["status"] == "COMPLETED", ended
    unknown = await create(ask, type="core/nonsense", workflow=None)
    assert unknown["__typename"] == "ValidationFailed"


async def test_a_task_that_waits_can_be_changed_then_run_and_deleted(ask: Asker) -> None:
    """PENDING until it is executed: it can be changed till then, and deleted only once it has finished."""
    answer = await create(ask, start=False)
    made = answer["task"]
    assert (made["status"], answer["execution"], answer["executionToken"]) == ("PENDING", None, None)
    assert (made["viewerCanUpdate"], made["viewerCanExecute"], made["viewerCanDelete"]) == (True, True, False)
    id = made["id"]
    changed = await act(ask, "taskUpdate", id=id, name="later", description="soon", priority=9)
    assert (changed["task"]["name"], changed["task"]["description"], changed["task"]["priority"]) == (
        "later",
        "soon",
        9,
    )
    kept = await act(ask, "taskUpdate", id=id, description=None)
    assert (kept["task"]["name"], kept["task"]["description"]) == ("later", None)
    assert (await act(ask, "taskUpdate", id=id, priority=11))["problems"] == [{"pointer": "/priority"}]
    assert (await act(ask, "taskUpdate", id=id, name=None))["problems"] == [{"pointer": "/name"}]
    assert (await act(ask, "taskDelete", id=id))["__typename"] == "Conflict"
    assert (await act(ask, "taskExecute", id=id))["__typename"] == "TaskExecutePayload"
    await finished(ask, id)
    assert (await act(ask, "taskUpdate", id=id, name="too late"))["__typename"] == "Conflict"
    again = await act(ask, "taskExecute", id=id)
    assert again["__typename"] == "TaskExecutePayload"
    await finished(ask, id)
    data = await ask(
        "query ($id: ID!) { task(id: $id) { executions { totalCount nodes { id number status } } } }", id=id
    )
    runs = data["task"]["executions"]
    assert [run["number"] for run in runs["nodes"]] == [2, 1]
    one = await ask(
        "query ($id: ID!) { taskExecution(id: $id) { number result task { id } duration } }", id=runs["nodes"][1]["id"]
    )
    assert one["taskExecution"]["task"]["id"] == id
    assert (await act(ask, "taskDelete", id=id))["__typename"] == "TaskDeletePayload"
    assert (await ask("query ($id: ID!) { task(id: $id) { id } }", id=id))["task"] is None


async def test_cancelling_stops_what_runs(ask: Asker) -> None:
    """A running task is CANCELED when its run has stopped; one that has ended can't be cancelled."""
    entered, _ = gate("task-cancel")
    await workflow(
        ask.engine, document([{"id": "a", "type": "test/gate", "parameters": {"gate": "task-cancel"}}], name="gated")
    )
    made = (await create(ask, workflow={"name": "gated"}, input=None))["task"]
    await entered.wait()
    assert (await act(ask, "taskDelete", id=made["id"]))["__typename"] == "Conflict"
    assert (await act(ask, "taskExecute", id=made["id"]))["__typename"] == "Conflict"
    answer = await act(ask, "taskCancel", id=made["id"], reason="enough")
    assert answer["__typename"] == "TaskCancelPayload"
    assert (await finished(ask, made["id"]))["status"] == "CANCELED"
    assert (await act(ask, "taskCancel", id=made["id"]))["__typename"] == "Conflict"


async def test_a_runner_reports_with_its_token_once(ask: Asker) -> None:
    """Progress as often as it likes, the end once; a wrong token is refused, and an illegal step is a Conflict."""
    entered, _ = gate("task-report")
    await workflow(
        ask.engine, document([{"id": "a", "type": "test/gate", "parameters": {"gate": "task-report"}}], name="held")
    )
    answer = await create(ask, workflow={"name": "held"}, input=None)
    await entered.wait()
    viewer = ask.as_(Actor("usr-r", "runner", LOCAL.project_id, ROLES["viewer"]))

    async def report(status: str, token: str = answer["executionToken"], **more: Any) -> dict[str, Any]:
        text = f"""
            mutation ($i: TaskExecutionStatusSetInput!) {{ taskExecutionStatusSet(input: $i) {{
              {REFUSAL} ... on TaskExecutionStatusSetPayload {{ execution {{ status progress message result }} }} }} }}
        """
        given = {"id": answer["execution"]["id"], "token": token, "status": status} | more
        return (await viewer(text, i=given))["taskExecutionStatusSet"]  # type: ignore[no-any-return]

    assert (await report("RUNNING", token="wrong"))["__typename"] == "PermissionDenied"
    assert (await report("RUNNING", progress=2.0))["__typename"] == "ValidationFailed"
    half = await report("RUNNING", progress=0.5, message="half way")
    assert half["execution"] == {"status": "RUNNING", "progress": 0.5, "message": "half way", "result": None}
    assert (await report("PENDING"))["__typename"] in ("ValidationFailed", "Conflict")
    done = await report("COMPLETED", result={"processed": 10})
    assert (done["execution"]["status"], done["execution"]["result"]) == ("COMPLETED", {"processed": 10})
    ended = await finished(ask, answer["task"]["id"])
    assert (ended["status"], ended["result"]) == ("COMPLETED", {"processed": 10})
    assert (await report("FAILED"))["__typename"] == "Conflict"


@pytest.mark.parametrize(
    ("given", "pointers"),
    [
        ({"type": "batch", "workflow": None, "input": None}, {"/batch"}),
        ({"type": "workflow", "workflow": None}, {"/workflow"}),
        ({"type": "core/noop"}, {"/workflow"}),
        ({"batch": {"workflow": {"name": "hello"}, "targetFolders": ["x"]}}, {"/batch"}),
        ({"priority": 0}, {"/priority"}),
        ({"retries": 99}, {"/retries"}),
        ({"name": " "}, {"/name"}),
        ({"parameters": [1]}, {"/parameters"}),
    ],
)
async def test_what_does_not_fit_the_type_is_refused(ask: Asker, given: dict[str, Any], pointers: set[str]) -> None:
    """Each mistake by its pointer, and no task is stored."""
    answer = await create(ask, **given)
    assert answer["__typename"] == "ValidationFailed", answer
    assert {problem["pointer"] for problem in answer["problems"]} == pointers
    assert (await ask("{ tasks { totalCount } }"))["tasks"]["totalCount"] == 0


async def test_tasks_are_listed_by_page_filter_and_order(ask: Asker) -> None:
    """Keyset pages in three orders, filtered by status, type and name."""
    for number in range(5):
        await create(ask, start=False, name=f"task {number}", priority=number + 1)
    page = "nodes { name priority } pageInfo { hasNextPage endCursor } totalCount"
    one = (await ask(f"{{ tasks(first: 2) {{ {page} }} }}"))["tasks"]
    assert [row["name"] for row in one["nodes"]] == ["task 4", "task 3"]
    assert one["totalCount"] == 5
    two = (
        await ask(f"query ($c: String) {{ tasks(first: 2, after: $c) {{ {page} }} }}", c=one["pageInfo"]["endCursor"])
    )["tasks"]
    assert [row["name"] for row in two["nodes"]] == ["task 2", "task 1"]
    urgent = (await ask(f"{{ tasks(first: 1, orderBy: PRIORITY_DESC) {{ {page} }} }}"))["tasks"]
    assert urgent["nodes"] == [{"name": "task 4", "priority": 5}]
    where = '{status: {eq: PENDING}, type: {eq: "workflow"}, name: {contains: "3"}}'
    assert [row["name"] for row in (await ask(f"{{ tasks(where: {where}) {{ {page} }} }}"))["tasks"]["nodes"]] == [
        "task 3"
    ]
    none = await ask(f"{{ tasks(where: {{status: {{in: [RUNNING, FAILED]}}}}) {{ {page} }} }}")
    assert none["tasks"]["nodes"] == []


async def test_a_page_of_tasks_costs_a_fixed_number_of_statements(ask: Asker) -> None:
    """Twice as many tasks, with everything nested in them, take as many statements."""
    files(ask.engine, "a.txt")
    await workflow(ask.engine, NAMES)
    query = """
        { tasks { nodes { name workflow { name } version { version } servers { name } execution { number }
            executions(first: 2) { totalCount nodes { number server { name } } }
            items(first: 2) { totalCount nodes { relative server { name } instance { status } task { id } } } } } }
    """
    batch = {"type": "batch", "batch": {"workflow": {"name": "names"}, "targetFolders": ["pictures"]}, "start": True}

    async def two_more() -> int:
        for _ in range(2):
            await finished(ask, (await ask(CREATE, input=batch))["taskCreate"]["task"]["id"])
        with ask.statements() as statements:
            await ask(query)
        return len([text for text in statements if "task" in text and "SELECT" in text])

    first = await two_more()
    assert 0 < first <= 15
    assert await two_more() == first


async def test_the_stream_of_a_project_tells_every_change_and_resumes(ask: Asker) -> None:
    """A subscriber hears of new and changed tasks that match; ``after`` the last number, nothing is told twice."""
    text = """
        subscription ($after: BigInt, $where: TaskWhere) { tasksUpdated(after: $after, where: $where) {
          id name status changeSeq } }
    """
    stream = ask.stream(text, after=0, where={"name": {"contains": "seen"}})
    await create(ask, start=False, name="unheard")
    made = (await create(ask, start=False, name="seen"))["task"]
    first = (await anext(stream))["tasksUpdated"]
    assert (first["id"], first["status"]) == (made["id"], "PENDING")
    await act(ask, "taskUpdate", id=made["id"], priority=9)
    second = (await anext(stream))["tasksUpdated"]
    assert second["changeSeq"] > first["changeSeq"]
    await stream.aclose()
    await act(ask, "taskCancel", id=made["id"])
    resumed = ask.stream(text, after=second["changeSeq"])
    third = (await anext(resumed))["tasksUpdated"]
    assert (third["id"], third["status"]) == (made["id"], "CANCELED")
    await resumed.aclose()
    assert await ask.refusal("subscription { tasksUpdated(after: -1) { id } }") == "BAD_CURSOR"
    assert await ask.refusal('subscription { taskUpdated(id: "task-0") { id } }') == "NOT_FOUND"


async def test_a_stream_that_overflowed_reads_what_it_missed(ask: Asker) -> None:
    """The bus drops a slow reader's messages; the task's state comes from SQL all the same."""
    made = (await create(ask, start=False))["task"]
    stream = ask.stream("subscription ($id: ID!) { taskUpdated(id: $id) { name status } }", id=made["id"])
    assert (await anext(stream))["taskUpdated"]["status"] == "PENDING"
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    await act(ask, "taskUpdate", id=made["id"], name="missed")
    ask.engine.bus.publish(made["id"], [made["id"]] * 2_000)
    assert (await waiting)["taskUpdated"]["name"] == "missed"
    await act(ask, "taskCancel", id=made["id"])
    assert [data["taskUpdated"]["status"] async for data in stream] == ["CANCELED"]


async def test_another_project_sees_none_of_it(ask: Asker) -> None:
    """Its tasks, runs and items are not found, and nothing can be done with them."""
    made = (await create(ask))["task"]
    await finished(ask, made["id"])
    items = await ask("query ($id: ID!) { task(id: $id) { items { nodes { id } } } }", id=made["id"])
    other = ask.as_(Actor("usr-o", "other", "proj-other", ROLES["admin"]))
    for id in (made["id"], made["execution"]["id"], items["task"]["items"]["nodes"][0]["id"]):
        assert (await ask("query ($id: ID!) { node(id: $id) { __typename id } }", id=id))["node"]["id"] == id
        assert (await other("query ($id: ID!) { node(id: $id) { id } }", id=id))["node"] is None
    assert (await other("query ($id: ID!) { task(id: $id) { id } }", id=made["id"]))["task"] is None
    run = made["execution"]["id"]
    assert (await other("query ($id: ID!) { taskExecution(id: $id) { id } }", id=run))["taskExecution"] is None
    for name in ("taskCancel", "taskDelete", "taskExecute"):
        assert (await act(other, name, id=made["id"]))["__typename"] == "NotFound"
