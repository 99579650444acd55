"""The tests of streams once more where everybody is somebody else: runs are started through one API process, driven by
workers, and watched at another API process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import aclosing
from typing import Any

import httpx
import pytest

from tests.engine.servers.double import doubled
from tests.live.cluster import Cluster
from tests.live.mischief import flow, step, stored
from tests.live.server import Server
from tests.live.test_streams import (  # noqa: F401  (pytest finds them here, and gives them the server of this module)
    test_200_subscribers_to_one_run,
    test_a_run_as_it_changes,
    test_a_socket_serves_many_streams_and_forgets_those_that_leave,
    test_all_see_the_same_sequence,
    test_logs_resume_by_cursor,
    test_nodes_resume_by_cursor,
    test_nothing_was_broken,
    test_the_list_of_runs_resumes_by_cursor,
)

TASK = """
mutation ($input: TaskCreateInput!) {
  taskCreate(input: $input) { __typename ... on TaskCreatePayload { task { id } } ... on UserError { code message } }
}
"""
EXECUTE = "mutation ($id: ID!) { taskExecute(input: {id: $id}) { __typename ... on UserError { code message } } }"
TASK_UPDATED = "subscription ($id: ID!) { taskUpdated(id: $id) { status done total } }"
TASK_UPDATE = """
mutation ($id: ID!, $priority: Int!) {
  taskUpdate(input: {id: $id, priority: $priority}) { __typename ... on UserError { code message } }
}
"""
TASKS_UPDATED = """
subscription ($after: BigInt, $where: TaskWhere) {
  tasksUpdated(after: $after, where: $where) { id status priority changeSeq }
}
"""
REGISTER = """
mutation ($input: ServerRegisterInput!) {
  serverRegister(input: $input) {
    __typename ... on ServerRegisterPayload { server { id } } ... on UserError { code message }
  }
}
"""
CHECK = "mutation ($id: ID!) { serverCheckHealth(input: {id: $id}) { __typename ... on UserError { code message } } }"
SERVER_UPDATED = "subscription ($id: ID!) { serverUpdated(ids: [$id]) { status lastCheck } }"
WORKERS = "{ workers(where: {state: {in: [ONLINE]}}) { nodes { id pid } } }"
DRAIN = "mutation ($id: ID!) { workerDrain(input: {id: $id}) { __typename ... on UserError { code message } } }"
WORKER_UPDATED = "subscription ($id: ID!) { workerUpdated(ids: [$id]) { state } }"


class Apart(Server):
    """Two API processes as one: documents go to the first, sockets to the second."""

    def __init__(self, asked: Server, watched: Server) -> None:
        super().__init__(watched.data_dir, env=watched.env, token=watched.token, port=watched.port)
        self._asked = asked

    async def post(self, query: str, variables: Mapping[str, Any] | None = None, **kwargs: Any) -> httpx.Response:
        return await self._asked.post(query, variables, **kwargs)


@pytest.fixture(scope="module")
def server(standing: Cluster) -> Iterator[Server]:
    """The two API processes of a cluster that is well."""
    asyncio.run(standing.revive())
    apart = Apart(*standing.apis)
    yield apart
    asyncio.run(apart._http.aclose())
    assert all("Traceback" not in member.output for member in standing.apis), standing.output
    asyncio.run(standing.settled())


async def test_a_task_as_it_changes(server: Server) -> None:
    """Made and started through one API process, run by a worker, watched at the other to its end."""
    workflow = await stored(server, flow("task", step("core/noop")))
    given = {"type": "workflow", "workflow": {"id": workflow}, "name": "apart", "start": False}
    made = (await server.graphql(TASK, {"input": given}))["taskCreate"]
    assert made["__typename"] == "TaskCreatePayload", made
    task = made["task"]["id"]
    statuses: list[str] = []
    async with asyncio.timeout(30):
        async for data in server.subscribe(TASK_UPDATED, {"id": task}):
            statuses.append(data["taskUpdated"]["status"])
            if len(statuses) == 1:
                started = await server.graphql(EXECUTE, {"id": task})
                assert started["taskExecute"]["__typename"] == "TaskExecutePayload", started
    assert statuses[0] == "PENDING"
    assert statuses[-1] == "COMPLETED"


async def test_the_tasks_of_a_project_as_they_change(server: Server) -> None:
    """Made and changed through one API process, heard of at the other; who comes back hears of nothing twice."""
    workflow = await stored(server, flow("tasks", step("core/noop")))
    given = {"type": "workflow", "workflow": {"id": workflow}, "name": "seen apart", "start": False}
    task = (await server.graphql(TASK, {"input": given}))["taskCreate"]["task"]["id"]
    where = {"name": {"eq": "seen apart"}}
    async with asyncio.timeout(30):
        async with aclosing(server.subscribe(TASKS_UPDATED, {"after": 0, "where": where})) as stream:
            first = (await anext(stream))["tasksUpdated"]
            assert (first["id"], first["status"]) == (task, "PENDING")
            await server.graphql(TASK_UPDATE, {"id": task, "priority": 9})
            second = (await anext(stream))["tasksUpdated"]
            assert (second["id"], second["priority"]) == (task, 9)
        await server.graphql(EXECUTE, {"id": task})
        statuses = []
        async with aclosing(server.subscribe(TASKS_UPDATED, {"after": second["changeSeq"], "where": where})) as stream:
            async for data in stream:
                assert int(data["tasksUpdated"]["changeSeq"]) > int(second["changeSeq"])
                statuses.append(data["tasksUpdated"]["status"])
                if statuses[-1] == "COMPLETED":
                    break


async def test_a_server_that_is_checked(server: Server) -> None:
    """Registered and checked through one API process; the other shows how its status changes."""
    async with doubled() as double:
        given = {"name": "apart", "url": double.url, "type": "HTTP", "enabled": False}
        made = (await server.graphql(REGISTER, {"input": given}))["serverRegister"]
        assert made["__typename"] == "ServerRegisterPayload", made
        id = made["server"]["id"]
        async with asyncio.timeout(30), aclosing(server.subscribe(SERVER_UPDATED, {"id": id})) as stream:
            assert (await anext(stream))["serverUpdated"]["lastCheck"] is None
            checked = await server.graphql(CHECK, {"id": id})
            assert checked["serverCheckHealth"]["__typename"] == "ServerCheckHealthPayload", checked
            told = (await anext(stream))["serverUpdated"]
            assert told["status"] == "ONLINE"
            assert told["lastCheck"] is not None


async def test_a_worker_that_is_drained(server: Server, standing: Cluster) -> None:
    """Asked through one API process; the other shows how it drains and goes, and its process exits with 0."""
    workers = (await server.graphql(WORKERS))["workers"]["nodes"]
    drained = next(member for member in standing.workers if member.pid == workers[0]["pid"])
    states: list[str] = []
    async with asyncio.timeout(30), aclosing(server.subscribe(WORKER_UPDATED, {"id": workers[0]["id"]})) as stream:
        async for data in stream:
            states.append(data["workerUpdated"]["state"])
            if len(states) == 1:
                asked = await server.graphql(DRAIN, {"id": workers[0]["id"]})
                assert asked["workerDrain"]["__typename"] == "WorkerDrainPayload", asked
            if states[-1] == "OFFLINE":
                break
    assert states[0] == "ONLINE"
    assert await drained.gone() == 0
    await standing.revive()
