"""The workers as clients see them, and how they are drained."""

from __future__ import annotations

import asyncio
from typing import Any

from sqlalchemy import Connection, update

from db.models import Worker
from db.store import workers as store
from db.store.dbclock import db_now
from db.store.workers import Heartbeat
from engine.access import DEFAULT_PROJECT, ROLES, Actor
from engine.workers import TOPIC
from tests.engine.conftest import document, started
from tests.engine.nodes import gate
from tests.graph.conftest import Asker

VIEWER = Actor("usr-v", "viewer", DEFAULT_PROJECT, ROLES["viewer"])
LIST = """
  query($where: WorkerWhere, $first: Int, $after: String) {
    workers(where: $where, first: $first, after: $after, orderBy: HOST_ASC) {
      totalCount pageInfo { hasNextPage endCursor }
      nodes { id host pid version labels gpus state running instances stoppedAt viewerCanDrain
        slots { placement total running } }
    } }
"""
DRAIN = """
  mutation($id: ID!) { workerDrain(input: {id: $id}) {
    __typename
    ... on WorkerDrainPayload { worker { id state viewerCanDrain } }
    ... on UserError { code path }
    ... on Conflict { details }
    ... on PermissionDenied { permission }
  } }
"""
FOLLOW = "subscription($ids: [ID!]) { workerUpdated(ids: $ids) { id state running instances } }"


async def another(ask: Asker, id: str, **fields: Any) -> None:
    """A worker of some other process."""
    said: dict[str, Any] = {
        "host": id, "pid": 7, "version": "1", "labels": frozenset(), "gpus": 0, "slots": {"thread": 4},
        "running": {"thread": 1}, "instances": 1, "draining": False,
    }  # fmt: skip
    await ask.engine.database.write(store.beat, Heartbeat(id=id, **(said | fields)))


def silent(connection: Connection, id: str) -> None:
    """As if the worker had missed its heartbeats."""
    connection.execute(
        update(Worker).where(Worker.id == id).values(heartbeat_at=db_now(-60), started_at=db_now(-3_660))
    )


async def test_a_server_is_a_worker_in_the_list(ask: Asker) -> None:
    """With its places by kind; a client that may administer is told that it may drain it, a viewer that it may not."""
    found = (await ask(LIST))["workers"]
    assert found["totalCount"] == 1
    [own] = found["nodes"]
    assert own["id"] == ask.engine.worker
    assert (own["state"], own["viewerCanDrain"], own["stoppedAt"]) == ("ONLINE", True, None)
    assert {slot["placement"]: slot["running"] for slot in own["slots"]} == {"ASYNC": 0, "THREAD": 0, "PROCESS": 0}
    [seen] = (await ask.as_(VIEWER)(LIST))["workers"]["nodes"]
    assert seen == own | {"viewerCanDrain": False}


async def test_workers_are_filtered_and_paged(ask: Asker) -> None:
    """By state and label, a page at a time, and counted."""
    await another(ask, "a", labels=frozenset({"gpu", "eu"}), gpus=2)
    await another(ask, "b", draining=True)
    await another(ask, "c")
    await ask.engine.database.write(silent, "c")

    async def ids(where: dict[str, Any]) -> list[str]:
        where = {"and": [where, {"id": {"in": ["a", "b", "c"]}}]}
        return [each["id"] for each in (await ask(LIST, where=where))["workers"]["nodes"]]

    assert await ids({"label": {"contains": "gpu"}}) == ["a"]
    assert await ids({"state": {"eq": "OFFLINE"}}) == ["c"]
    assert await ids({"state": {"in": ["DRAINING", "OFFLINE"]}}) == ["b", "c"]
    assert await ids({"not": {"state": {"eq": "ONLINE"}}}) == ["b", "c"]
    mine = {"id": {"in": ["a", "b", "c"]}}
    page = (await ask(LIST, where=mine, first=2))["workers"]
    assert (page["totalCount"], [each["id"] for each in page["nodes"]]) == (3, ["a", "b"])
    rest = (await ask(LIST, where=mine, first=2, after=page["pageInfo"]["endCursor"]))["workers"]
    assert ([each["id"] for each in rest["nodes"]], rest["pageInfo"]["hasNextPage"]) == (["c"], False)


async def test_the_time_of_a_worker_that_is_gone_stands_still(ask: Asker) -> None:
    """Its uptime ends with its last heartbeat."""
    await another(ask, "c")
    await ask.engine.database.write(silent, "c")
    one = "query($id: ID!) { worker(id: $id) { state uptime running } }"
    assert (await ask(one, id="c"))["worker"]["state"] == "OFFLINE"
    assert (await ask(one, id="c"))["worker"]["uptime"].startswith("PT1H")
    assert (await ask(one, id="nobody"))["worker"] is None


async def test_who_may_drain_what(ask: Asker) -> None:
    """An administrator a worker that is there; it is DRAINING from then on, and twice is once."""
    await another(ask, "a")
    for _ in range(2):
        answer = (await ask(DRAIN, id="a"))["workerDrain"]
        assert answer["worker"] == {"id": "a", "state": "DRAINING", "viewerCanDrain": False}
    assert (await ask(DRAIN, id="nobody"))["workerDrain"]["code"] == "NOT_FOUND"
    await ask.engine.database.write(silent, "a")
    answer = (await ask(DRAIN, id="a"))["workerDrain"]
    assert (answer["code"], answer["path"], answer["details"]) == ("CONFLICT", ["input", "id"], {"state": "OFFLINE"})
    denied = (await ask.as_(VIEWER)(DRAIN, id="a"))["workerDrain"]
    assert (denied["__typename"], denied["permission"]) == ("PermissionDenied", "worker:admin")


async def test_a_watcher_sees_workers_change(ask: Asker) -> None:
    """First all of them as they are, then each that changed, and none for a heartbeat that says nothing new."""
    async with asyncio.timeout(20):
        await another(ask, "a")
        stream = ask.stream(FOLLOW)
        first = [(await anext(stream))["workerUpdated"] for _ in range(2)]
        assert {each["id"] for each in first} == {"a", ask.engine.worker}
        await another(ask, "a")
        await another(ask, "b", instances=3)
        ask.engine.bus.publish(TOPIC, ("a", "b"))
        assert (await anext(stream))["workerUpdated"] == {"id": "b", "state": "ONLINE", "running": 1, "instances": 3}
        await stream.aclose()


async def test_a_watcher_of_some_hears_of_no_others(ask: Asker) -> None:
    """A list of ids; one that is unknown is refused by name, and so are too many."""
    async with asyncio.timeout(20):
        await another(ask, "a")
        await another(ask, "b")
        stream = ask.stream(FOLLOW, ids=["a"])
        assert (await anext(stream))["workerUpdated"]["id"] == "a"
        await another(ask, "b", instances=9)
        await ask.engine.database.write(store.stop, "a")
        ask.engine.bus.publish(TOPIC, ("a", "b"))
        assert (await anext(stream))["workerUpdated"] == {"id": "a", "state": "OFFLINE", "running": 0, "instances": 0}
        await stream.aclose()
    assert await ask.refusal(FOLLOW, ids=["a", "nobody"]) == "NOT_FOUND"
    assert await ask.refusal(FOLLOW, ids=["a"] * 101) == "BAD_PAGE"


async def test_a_busy_worker_is_shown_busy(ask: Asker) -> None:
    """A run under way is seen in the figures of its worker within a second or two, and so is its end."""
    entered, leave = gate("busy")
    async with asyncio.timeout(20):
        stream = ask.stream(FOLLOW)
        assert (await anext(stream))["workerUpdated"]["instances"] == 0
        await started(ask.engine, document([{"id": "a", "type": "test/gate", "parameters": {"gate": "busy"}}]))
        await entered.wait()
        assert (await anext(stream))["workerUpdated"] == {
            "id": ask.engine.worker, "state": "ONLINE", "running": 1, "instances": 1,
        }  # fmt: skip
        leave.set()
        shown = (await anext(stream))["workerUpdated"]
        assert (shown["running"], shown["instances"]) == (0, 0)
        await stream.aclose()
