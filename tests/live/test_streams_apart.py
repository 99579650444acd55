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
