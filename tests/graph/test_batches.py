"""Batches over GraphQL: dry runs, starts, the ledger, refusals."""

from __future__ import annotations

from typing import Any

from engine.access import LOCAL, ROLES, Actor
from tests.engine.conftest import document
from tests.engine.nodes import gate
from tests.graph.conftest import Asker
from tests.graph.working import NAMES, files, finished, workflow

START = """
mutation ($input: BatchStartInput!) { batchStart(input: $input) {
  __typename
  ... on BatchStartPayload {
    changeSeq executionToken execution { number status }
    task { id type name status priority timeout workflow { name } version { version } servers { name }
           batch { targetFolders folderKeywords filePatterns recursive outputRoot onItemError itemRetries } }
    plan { files bytes more servers { name } first { relative size refusal } warnings { reason count } } }
  ... on UserError { code message path }
  ... on ValidationFailed { problems { pointer code message } }
  ... on NotFound { kind id }
  ... on ServerUnavailable { reason status server { name } busyWith { id } } } }
"""
CHECK = """
query ($input: BatchInput!) { serverCheck(input: $input) {
  available serverName batchSize message reason status server { name } task { id } } }
"""


async def start(ask: Asker, **given: Any) -> dict[str, Any]:
    """The answer to ``batchStart`` over the pictures."""
    await workflow(ask.engine, NAMES)
    told = {"workflow": {"name": "names"}, "targetFolders": ["pictures"]} | given
    return (await ask(START, input=told))["batchStart"]  # type: ignore[no-any-return]


async def test_a_dry_run_tells_what_would_be_done_and_stores_nothing(ask: Asker) -> None:
    """How many files, which, how large; afterwards there is still no task."""
    files(ask.engine, "a.txt", "b.txt", "holiday/c.txt", "holiday/d.jpg")
    answer = await start(ask, dryRun=True, filePatterns=["*.txt"])
    assert answer["task"] is None
    assert answer["executionToken"] is None
    plan = answer["plan"]
    assert plan["files"] == 3
    assert plan["bytes"] == sum(len(f"the content of {name}") for name in ("a.txt", "b.txt", "holiday/c.txt"))
    assert {file["relative"] for file in plan["first"]} == {"a.txt", "b.txt", "holiday/c.txt"}
    assert plan["servers"] == [{"name": "local"}]
    assert plan["more"] is False
    only = await start(ask, dryRun=True, folderKeywords=["HOLI"])
    assert {file["relative"] for file in only["plan"]["first"]} == {"holiday/c.txt", "holiday/d.jpg"}
    assert (await ask("{ tasks { totalCount } }"))["tasks"]["totalCount"] == 0


async def test_a_batch_runs_over_every_file(ask: Asker) -> None:
    """What it was asked to do can be read back; each file has its row, and the counts add up."""
    folder = files(ask.engine, "a.txt", "b.txt", "bad.txt", "deep/c.txt")
    answer = await start(ask, priority=7, timeout="PT1H", itemRetries=0, name="my pictures")
    assert answer["__typename"] == "BatchStartPayload", answer
    assert answer["plan"] is None
    made = answer["task"]
    assert made | {"id": "", "status": ""} == {
        "id": "",
        "status": "",
        "type": "batch",
        "name": "my pictures",
        "priority": 7,
        "timeout": "PT1H",
        "workflow": {"name": "names"},
        "version": {"version": "1.0.0"},
        "servers": [{"name": "local"}],
        "batch": {
            "targetFolders": [str(folder)],
            "folderKeywords": [],
            "filePatterns": [],
            "recursive": True,
            "outputRoot": None,
            "onItemError": "CONTINUE",
            "itemRetries": 0,
        },
    }
    ended = await finished(ask, made["id"])
    assert (ended["status"], ended["total"], ended["done"], ended["failed"]) == ("COMPLETED", 4, 3, 1)
    assert ended["progress"] == 1
    data = await ask(
        """
        query ($id: ID!) { task(id: $id) {
          all: items { totalCount nodes {
            relative path size status attempts instance { status output } server { name } task { id } } }
          some: items(where: {status: {eq: FAILED}}) { totalCount nodes { relative error { code message } } }
          paged: items(first: 2) { nodes { relative } pageInfo { hasNextPage endCursor } }
          executions { totalCount nodes { number status completedAt server { id } task { id } } }
          viewerCanCancel viewerCanDelete viewerCanRetry viewerCanUpdate } }
        """,
        id=made["id"],
    )
    task = data["task"]
    rows = {row["relative"]: row for row in task["all"]["nodes"]}
    assert set(rows) == {"a.txt", "b.txt", "bad.txt", "deep/c.txt"}
    assert task["all"]["totalCount"] == 4
    deep = rows["deep/c.txt"]
    assert deep["path"] == str(folder / "deep/c.txt")
    assert deep["status"] == "COMPLETED"
    assert deep["size"] == len("the content of deep/c.txt")
    assert deep["task"]["id"] == made["id"]
    assert task["some"]["totalCount"] == 1
    assert "as asked" in task["some"]["nodes"][0]["error"]["message"]
    assert len(task["paged"]["nodes"]) == 2
    assert task["paged"]["pageInfo"]["hasNextPage"]
    assert task["executions"]["totalCount"] == 1
    assert task["executions"]["nodes"][0]["status"] == "COMPLETED"
    can = (task["viewerCanCancel"], task["viewerCanDelete"], task["viewerCanRetry"], task["viewerCanUpdate"])
    assert can == (False, True, True, False)


async def test_only_what_failed_runs_again(ask: Asker) -> None:
    """``taskItemsRetry`` takes the failed file alone: the others keep their one attempt."""
    folder = files(ask.engine, "a.txt", "bad.txt")
    made = (await start(ask, itemRetries=0))["task"]
    await finished(ask, made["id"])
    (folder / "bad.txt").rename(folder / "worse.txt")
    (folder / "bad.txt").write_text("still here")
    retry = """
        mutation ($id: ID!, $items: [ID!]) { taskItemsRetry(input: {task: $id, items: $items}) {
          __typename ... on UserError { code message } ... on TaskItemsRetryPayload {
            changeSeq items task { id } execution { number } } } }
    """
    answer = (await ask(retry, id=made["id"]))["taskItemsRetry"]
    assert answer["items"] == 1
    assert answer["execution"]["number"] == 2
    ended = await finished(ask, made["id"])
    assert (ended["done"], ended["failed"]) == (1, 1)
    rows = await ask("query ($id: ID!) { task(id: $id) { items { nodes { id relative attempts } } } }", id=made["id"])
    attempts = {row["relative"]: row["attempts"] for row in rows["task"]["items"]["nodes"]}
    assert attempts == {"a.txt": 1, "bad.txt": 2}
    done = [row["id"] for row in rows["task"]["items"]["nodes"] if row["relative"] == "a.txt"]
    assert (await ask(retry, id=made["id"], items=done))["taskItemsRetry"]["code"] == "CONFLICT"
    assert (await ask(retry, id=made["id"], items=["item-0"]))["taskItemsRetry"]["code"] == "NOT_FOUND"


async def test_every_mistake_of_a_batch_is_named_at_once(ask: Asker) -> None:
    """Numbers, folders and an output inside of a target: each with its pointer, and nothing is stored."""
    files(ask.engine, "a.txt")
    answer = await start(
        ask, priority=11, itemRetries=-1, targetFolders=["pictures", "nowhere", "/etc"], outputRoot="pictures/out"
    )
    assert answer["__typename"] == "ValidationFailed"
    pointers = {problem["pointer"] for problem in answer["problems"]}
    assert {"/priority", "/itemRetries", "/targetFolders/1", "/targetFolders/2", "/outputRoot"} <= pointers, pointers
    assert (await ask("{ tasks { totalCount } }"))["tasks"]["totalCount"] == 0


async def test_what_a_batch_names_must_exist(ask: Asker) -> None:
    """An unknown workflow, version or server is NOT_FOUND and named."""
    files(ask.engine, "a.txt")
    for given, kind in (
        ({"workflow": {"name": "nobody"}}, "workflow"),
        ({"workflow": {"id": "wf-0"}}, "workflow"),
        ({"workflow": {"version": "wfv-0"}}, "workflow version"),
        ({"servers": ["srv-0"]}, "server"),
        ({"selectedServer": "gone"}, "server"),
    ):
        answer = await start(ask, **given)
        assert (answer["__typename"], answer.get("kind")) == ("NotFound", kind), answer
    both = await start(ask, selectedServer="a", servers=["b"])
    assert [problem["pointer"] for problem in both["problems"]] == ["/servers"]
    wrong = await start(ask, parameters=[1])
    assert [problem["pointer"] for problem in wrong["problems"]] == ["/parameters"]


async def test_a_server_that_takes_nothing_is_told_with_its_reason(ask: Asker) -> None:
    """``serverCheck`` says why, and ``batchStart`` refuses with the same reason: DISABLED, then NOT_ONLINE."""
    files(ask.engine, "a.txt")
    await workflow(ask.engine, NAMES)
    register = """
        mutation ($input: ServerRegisterInput!) { serverRegister(input: $input) {
          ... on UserError { message } ... on ServerRegisterPayload { server { id } } } }
    """
    given = {"name": "far", "url": "http://127.0.0.1:9", "type": "HTTP", "enabled": False, "batchSize": 3}
    id = (await ask(register, input=given))["serverRegister"]["server"]["id"]
    batch = {"workflow": {"name": "names"}, "targetFolders": ["pictures"], "selectedServer": "far"}
    found = (await ask(CHECK, input=batch))["serverCheck"]
    assert (found["available"], found["reason"], found["serverName"], found["batchSize"]) == (
        False,
        "DISABLED",
        "far",
        3,
    )
    refused = await start(ask, selectedServer="far")
    assert refused["__typename"] == "ServerUnavailable"
    assert (refused["code"], refused["reason"], refused["server"]) == (
        "SERVER_UNAVAILABLE",
        "DISABLED",
        {"name": "far"},
    )
    enable = "mutation ($id: ID!) { serverUpdate(input: {id: $id, enabled: true}) { ... on UserError { message } } }"
    await ask(enable, id=id)
    found = (await ask(CHECK, input=batch))["serverCheck"]
    assert (found["reason"], found["status"]) == ("NOT_ONLINE", "OFFLINE")
    refused = await start(ask, servers=[id])
    assert (refused["reason"], refused["status"]) == ("NOT_ONLINE", "OFFLINE")
    assert (await ask("{ tasks { totalCount } }"))["tasks"]["totalCount"] == 0


async def test_a_busy_server_names_what_it_works_on_until_it_is_released(ask: Asker) -> None:
    """All places taken: BUSY, with the task; once that task has ended the server is available again."""
    files(ask.engine, "a.txt", "b.txt")
    entered, _ = gate("batch-busy")
    held = document([{"id": "a", "type": "test/gate", "parameters": {"gate": "batch-busy"}}], name="held")
    await workflow(ask.engine, held)
    register = """
        mutation ($input: ServerRegisterInput!) { serverRegister(input: $input) {
          ... on UserError { message } ... on ServerRegisterPayload { server { id } } } }
    """
    given = {"name": "one", "url": "http://127.0.0.1:9", "type": "LOCAL", "batchSize": 1}
    id = (await ask(register, input=given))["serverRegister"]["server"]["id"]
    await ask(
        "mutation ($id: ID!) { serverStatusSet(input: {id: $id, status: ONLINE}) { ... on UserError { message } } }",
        id=id,
    )
    batch = {"workflow": {"name": "held"}, "targetFolders": ["pictures"], "selectedServer": "one"}
    first = (await start(ask, **batch))["task"]["id"]
    await entered.wait()
    found = (await ask(CHECK, input=batch))["serverCheck"]
    assert (found["available"], found["reason"], found["task"]) == (False, "BUSY", {"id": first})
    refused = await start(ask, **batch)
    assert (refused["reason"], refused["busyWith"]) == ("BUSY", {"id": first})
    await ask("mutation ($id: ID!) { taskCancel(input: {id: $id}) { ... on UserError { message } } }", id=first)
    assert (await finished(ask, first))["status"] == "CANCELED"
    assert (await ask(CHECK, input=batch))["serverCheck"]["available"]


async def test_a_check_knows_the_engine_itself_and_unknown_workflows(ask: Asker) -> None:
    """Without a server the engine takes it; a workflow that isn't there is a reason of its own."""
    await workflow(ask.engine, NAMES)
    batch: dict[str, Any] = {"workflow": {"name": "names"}, "targetFolders": ["nowhere"]}
    found = (await ask(CHECK, input=batch))["serverCheck"]
    assert (found["available"], found["server"], found["reason"]) == (True, {"name": "local"}, None)
    assert found["batchSize"] > 0
    found = (await ask(CHECK, input=batch | {"workflow": {"name": "nobody"}}))["serverCheck"]
    assert (found["available"], found["reason"]) == (False, "WORKFLOW_NOT_FOUND")


async def test_who_may_only_look_starts_nothing(ask: Asker) -> None:
    """A viewer sees tasks and may ask whether one could start; a stranger sees nothing."""
    files(ask.engine, "a.txt")
    await workflow(ask.engine, NAMES)
    viewer = ask.as_(Actor("usr-v", "viewer", LOCAL.project_id, ROLES["viewer"]))
    assert (await start(viewer))["__typename"] == "PermissionDenied"
    batch = {"workflow": {"name": "names"}, "targetFolders": ["pictures"]}
    assert (await viewer(CHECK, input=batch))["serverCheck"]["available"]
    assert (await viewer("{ tasks { totalCount } }"))["tasks"]["totalCount"] == 0
    assert await ask.as_(None).code("{ tasks { totalCount } }") == "UNAUTHENTICATED"
