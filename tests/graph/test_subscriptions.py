"""Live streams over GraphQL: complete, in order, resumable."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

from engine.access import LOCAL
from tests.engine.conftest import chain, document, history, started
from tests.engine.nodes import gate
from tests.graph.conftest import Asker

EVENTS = "subscription($id: ID!, $after: Int!) { instanceEvents(id: $id, after: $after) { seq type __typename } }"


async def collect(ask: Asker, text: str, **variables: Any) -> list[Any]:
    """Everything until the stream completes."""
    async with asyncio.timeout(20), aclosing(ask.stream(text, **variables)) as stream:
        return [next(iter(data.values())) async for data in stream]


async def test_events_are_the_same_for_everybody(ask: Asker) -> None:
    """Who watches from the start, comes late, or resumes sees each event once, in order; then the stream completes."""
    entered, go = gate("watched")
    nodes: list[dict[str, Any]] = [
        {"id": "a", "type": "test/gate", "parameters": {"gate": "watched"}},
        {"id": "b", "type": "core/noop"},
    ]
    id = await started(ask.engine, document(nodes, [{"source": "a", "target": "b"}]))
    early = asyncio.create_task(collect(ask, EVENTS, id=id, after=0))
    await entered.wait()
    late = asyncio.create_task(collect(ask, EVENTS, id=id, after=2))
    go.set()
    seen = await early
    assert [event["seq"] for event in seen] == list(range(1, len(seen) + 1))
    assert seen[0]["__typename"] == "InstanceCreatedEvent"
    assert seen[-1]["type"] == "instance.completed"
    assert await late == seen[2:]
    assert await collect(ask, EVENTS, id=id, after=0) == seen
    assert await collect(ask, EVENTS, id=id, after=len(seen)) == []


async def test_every_kind_of_event_is_typed(ask: Asker) -> None:
    """Fields of all kinds can be asked for at once, and `data` is the whole event."""
    nodes: list[dict[str, Any]] = [
        {"id": "talk", "type": "test/talk", "parameters": {"lines": 1}},
        {"id": "fail", "type": "core/fail", "parameters": {"message": "no"}, "fail_on_error": False},
        {"id": "after", "type": "core/noop"},
    ]
    id = await started(ask.engine, document(nodes, [{"source": "fail", "target": "after"}]))
    seen = await collect(
        ask,
        """
        subscription($id: ID!) { instanceEvents(id: $id) {
          __typename seq at changeSeq data
          ... on NodeEvent { nodePath nodeId }
          ... on InstanceCreatedEvent { priority triggerType }
          ... on NodeLogEvent { level message }
          ... on NodeProgressEvent { progress { done total message } }
          ... on NodeFailedEvent { error { code category message } }
          ... on NodeSkippedEvent { skipReason }
        } }
        """,
        id=id,
    )
    by_kind = {event["__typename"]: event for event in seen}
    assert by_kind["NodeLogEvent"]["message"] == "line 0"
    assert by_kind["NodeLogEvent"]["level"] == "INFO"
    assert by_kind["NodeFailedEvent"]["error"]["message"] == "no"
    assert by_kind["NodeSkippedEvent"]["skipReason"] == "UPSTREAM_FAILED"
    assert by_kind["NodeSkippedEvent"]["data"] == {
        "type": "node.skipped", "path": "after", "reason": "UPSTREAM_FAILED",
    }  # fmt: skip


async def test_an_instance_is_shown_at_once_and_at_its_end(ask: Asker) -> None:
    """instanceUpdated begins with the present and ends with the terminal state; a finished run is shown once."""
    entered, go = gate("updated")
    id = await started(ask.engine, document([{"id": "a", "type": "test/gate", "parameters": {"gate": "updated"}}]))
    await entered.wait()
    text = "subscription($id: ID!) { instanceUpdated(id: $id) { status nodeExecutions { nodes { status } } } }"
    async with asyncio.timeout(20), aclosing(ask.stream(text, id=id)) as stream:
        first = (await anext(stream))["instanceUpdated"]
        assert first["status"] in {"PENDING", "RUNNING"}
        go.set()
        *_, last = [data["instanceUpdated"] async for data in stream]
    assert last == {"status": "COMPLETED", "nodeExecutions": {"nodes": [{"status": "COMPLETED"}]}}
    assert await collect(ask, text, id=id) == [last]


async def test_nodes_are_followed_and_resumed(ask: Asker) -> None:
    """nodeExecutionUpdated shows each node in its last state; resuming after its lastSeq shows only what is newer."""
    id = await started(ask.engine, chain("core/noop", "core/noop", "core/noop"))
    text = """
      subscription($id: ID!, $after: Int!) { nodeExecutionUpdated(instance: $id, after: $after) {
        path status lastSeq
      } }
    """
    seen = await collect(ask, text, id=id, after=0)
    assert {node["path"]: node["status"] for node in seen} == dict.fromkeys(("n1", "n2", "n3"), "COMPLETED")
    assert [node["lastSeq"] for node in seen] == sorted(node["lastSeq"] for node in seen)
    second = next(node["lastSeq"] for node in seen if node["path"] == "n2" and node["status"] == "COMPLETED")
    assert [node["path"] for node in await collect(ask, text, id=id, after=second)] == ["n3"]


async def test_a_nodes_log_is_followed_and_resumed(ask: Asker) -> None:
    """nodeLogs gives the lines of one node, each once."""
    nodes = [{"id": name, "type": "test/talk", "parameters": {"lines": 3}} for name in ("a", "b")]
    id = await started(ask.engine, document(nodes))
    text = """
      subscription($id: ID!, $after: Int!) { nodeLogs(instance: $id, node: "b", after: $after) {
        seq nodePath message
      } }
    """
    lines = await collect(ask, text, id=id, after=0)
    assert [line["message"] for line in lines] == ["line 0", "line 1", "line 2"]
    assert await collect(ask, text, id=id, after=lines[0]["seq"]) == lines[1:]


CHANGES = """
  subscription($where: InstanceWhere, $after: BigInt) { instanceChanges(where: $where, after: $after) {
    changeSeq snapshot added { id status } updated { id status } removed
  } }
"""


async def test_a_live_list_is_a_snapshot_and_what_follows(ask: Asker) -> None:
    """First what there is; then new runs are added, older ones updated, and what no longer matches is removed."""
    old = await started(ask.engine, chain("core/noop"))
    await history(ask.engine, old)
    entered, go = gate("listed")
    where = {"status": {"in": ["PENDING", "RUNNING"]}}
    async with (
        asyncio.timeout(20),
        aclosing(ask.stream(CHANGES)) as everything,
        aclosing(ask.stream(CHANGES, where=where)) as running,
    ):
        batch = (await anext(everything))["instanceChanges"]
        assert batch["snapshot"] is True
        assert [each["id"] for each in batch["added"]] == [old]
        batch = (await anext(running))["instanceChanges"]
        assert (batch["snapshot"], batch["added"]) == (True, [])
        nodes = [{"id": "a", "type": "test/gate", "parameters": {"gate": "listed"}}]
        new = await started(ask.engine, document(nodes, name="listed"))
        await entered.wait()
        batch = (await anext(everything))["instanceChanges"]
        assert batch["snapshot"] is False
        assert [each["id"] for each in batch["added"]] == [new]
        resume = batch["changeSeq"]
        assert [each["id"] for each in (await anext(running))["instanceChanges"]["added"]] == [new]
        go.set()
        await history(ask.engine, new)
        while not (batch := (await anext(running))["instanceChanges"])["removed"]:
            pass
        assert batch["removed"] == [new]
    async with asyncio.timeout(20), aclosing(ask.stream(CHANGES, after=resume)) as resumed:
        batch = (await anext(resumed))["instanceChanges"]
        assert batch["updated"] == [{"id": new, "status": "COMPLETED"}]


async def test_a_stream_of_what_is_not_there_is_refused(ask: Asker) -> None:
    """An unknown instance is NOT_FOUND, a negative cursor BAD_CURSOR, for every stream."""
    for text in (
        'subscription { instanceEvents(id: "inst-x") { seq } }',
        'subscription { instanceUpdated(id: "inst-x") { id } }',
        'subscription { nodeExecutionUpdated(instance: "inst-x") { id } }',
        'subscription { nodeLogs(instance: "inst-x", node: "a") { seq } }',
    ):
        assert await ask.refusal(text) == "NOT_FOUND"
    id = await started(ask.engine, chain("core/noop"))
    await history(ask.engine, id)
    assert await ask.refusal(EVENTS, id=id, after=-1) == "BAD_CURSOR"
    assert await ask.as_(None).refusal(CHANGES) == "UNAUTHENTICATED"


async def test_changes_in_small_windows_lose_nothing(ask: Asker) -> None:
    """More changes than fit one batch come in several, each run once."""
    from db.store import keyset, lists

    ids = {await started(ask.engine, chain("core/noop")) for _ in range(5)}
    for id in ids:
        await history(ask.engine, id)
    database, project = ask.engine.database, LOCAL.project_id
    newest = await database.read(lists.latest_change, project)
    seen: list[str] = []
    after = 0
    while after < newest:
        found = await database.read(lists.changes, project, keyset.EVERY, after, newest, 2)
        seen += [row.id for row in (*found.added, *found.updated)]
        assert found.change_seq > after
        after = found.change_seq
    assert sorted(seen) == sorted(ids)
