"""A killed server loses nothing of a run with a loop, an approval, a retry delay and a child, and repeats no node."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import httpx

from tests.live.oracle import hold
from tests.live.server import QueryFailed, Server, wait_until
from tests.live.test_survival import CREATE, START

INSTANCES = 12
ITEMS = 12
KILLS = 6

WAITING = """
query { instances(first: 50, where: {status: {in: [RUNNING, PENDING]}}) {
  nodes { id nodeExecutions(first: 20, where: {status: {in: [WAITING]}}) { nodes { path nodeType } } }
} }
"""
ANSWER = """
mutation ($input: ApprovalAnswerInput!) {
  approvalAnswer(input: $input) { __typename ... on UserError { code message } }
}
"""
STATUS = "query ($id: ID!) { instance(id: $id) { status output error { code message } } }"


def child() -> dict[str, Any]:
    """What each run starts: some work, a moment's wait, some work."""
    return {
        "name": "survivor-child",
        "triggers": [{"id": "by-hand", "type": "manual"}],
        "nodes": [
            {"id": "before", "type": "bench/fib", "parameters": {"n": "{{ n }}"}},
            {"id": "nap", "type": "core/delay", "parameters": {"duration": "200ms"}},
            {"id": "after", "type": "core/transform", "parameters": {"output": "{{ value }}"}},
        ],
        "edges": [{"source": "before", "target": "nap"}, {"source": "nap", "target": "after"}],
    }


def parent() -> dict[str, Any]:
    """A loop; then beside each other an approval, a node that fails twice before it fails for good, and a child."""
    body = {"nodes": [{"id": "fib", "type": "bench/fib", "parameters": {"n": "{{ item }}"}}], "edges": []}
    fails = {
        "id": "fails",
        "type": "core/fail",
        "parameters": {"message": "no", "category": "CONNECTION"},
        "retry": {"max": 2, "base": "150ms", "jitter": 0},
        "fail_on_error": False,
    }
    return {
        "name": "survivor-parent",
        "triggers": [{"id": "by-hand", "type": "manual"}],
        "nodes": [
            {"id": "each", "type": "core/loop", "parameters": {"items": "input.items", "concurrency": 3, "body": body}},
            {"id": "ask", "type": "core/approval", "parameters": {"title": "Go on?"}},
            fails,
            {"id": "rescue", "type": "core/transform", "parameters": {"output": "rescued"}},
            {"id": "child", "type": "core/workflow", "parameters": {"workflow": "survivor-child", "input": {"n": 15}}},
            {
                "id": "end",
                "type": "core/transform",
                "parameters": {
                    "output": {
                        "loop": "{{ length(nodes.each.output.items) }}",
                        "child": "{{ nodes.child.output.after }}",
                        "rescue": "{{ nodes.rescue.output }}",
                        "asked": "{{ nodes.ask.status }}",
                    }
                },
            },
        ],
        "edges": [
            *({"source": "each", "target": target} for target in ("ask", "fails", "child")),
            {"source": "fails", "target": "rescue", "on": "failure"},
            *({"source": source, "target": "end"} for source in ("ask", "rescue", "child")),
        ],
    }


async def test_control_flow_survives_being_killed_at_any_moment(tmp_path: Path) -> None:
    """SIGKILL at random moments: every run and child ends COMPLETED once, each node is committed once, none is lost."""
    seed = int(os.environ.get("MIRRORFLOW_TEST_SEED", random.randrange(1_000_000)))
    print(f"seed {seed}")  # noqa: T201  (a failure can be repeated with it)
    chance = random.Random(seed)
    async with Server(tmp_path) as server:
        await server.graphql(CREATE, {"definition": child()})
        made = await server.graphql(CREATE, {"definition": parent()})
        workflow = made["workflowCreate"]["workflow"]["id"]
        runs = [asyncio.create_task(started(server, workflow, f"key-{i}", i)) for i in range(INSTANCES)]
        approving = asyncio.create_task(approve_whatever_waits(server))
        for _ in range(KILLS):
            # Without any progress in between, a slow machine makes every run look like poison.
            await something_is_stored(tmp_path / "mirrorflow.db")
            await asyncio.sleep(chance.uniform(0.05, 0.5))  # the moment of the kill is what is random here
            server.kill()
            await server.start()
        async with asyncio.timeout(60):
            ids = await asyncio.gather(*runs)
            ended = await asyncio.gather(*(end_of(server, id) for id in ids))
        approving.cancel()
        await asyncio.gather(approving, return_exceptions=True)
        expected = {"loop": ITEMS, "child": 610, "rescue": "rescued", "asked": "COMPLETED"}
        for instance in ended:
            assert instance["status"] == "COMPLETED", instance
            assert instance["output"] == {"end": expected}
        assert len(set(ids)) == INSTANCES
        await server.stop()
    await hold(f"sqlite:///{tmp_path / 'mirrorflow.db'}")
    control_oracle(tmp_path / "mirrorflow.db")


async def something_is_stored(database: Path) -> None:
    """Wait until the project's place moves, or for a while."""

    def place() -> int:
        with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            return int(connection.execute("SELECT max(change_seq) FROM projects").fetchone()[0])

    async def moved() -> bool:
        return await asyncio.to_thread(place) > before

    before = await asyncio.to_thread(place)
    with contextlib.suppress(TimeoutError):
        await wait_until(moved, within=3)


class Asked(Protocol):
    """Whoever answers documents."""

    async def graphql(self, query: str, variables: Mapping[str, Any] | None = None) -> dict[str, Any]: ...


async def started(server: Server, workflow: str, key: str, n: int) -> str:
    """Start one run, through any number of dead servers; its id."""
    variables = {"workflow": workflow, "input": {"items": [10 + (n + i) % 8 for i in range(ITEMS)]}, "key": key}
    while True:
        try:
            answer = await server.graphql(START, variables)
            return str(answer["instanceStart"]["instance"]["id"])
        except (OSError, httpx.HTTPError, QueryFailed):
            await asyncio.sleep(0.05)  # the server is dead: try again until it is back


async def approve_whatever_waits(server: Asked) -> None:
    """Answer every approval as it comes; one that was answered by a letter nobody has read yet is refused."""
    while True:
        try:
            for instance in (await server.graphql(WAITING, {}))["instances"]["nodes"]:
                for node in instance["nodeExecutions"]["nodes"]:
                    if node["nodeType"] == "core/approval":
                        answer = {"id": instance["id"], "path": node["path"], "approved": True}
                        await server.graphql(ANSWER, {"input": answer})
        except (OSError, httpx.HTTPError, QueryFailed):
            pass
        await asyncio.sleep(0.05)


async def end_of(server: Server, id: str) -> dict[str, Any]:
    """How the run ended."""
    while True:
        try:
            instance: dict[str, Any] = (await server.graphql(STATUS, {"id": id}))["instance"]
            if instance["status"] in ("COMPLETED", "FAILED", "CANCELED", "TIMED_OUT"):
                return instance
        except (OSError, httpx.HTTPError, QueryFailed):
            pass
        await asyncio.sleep(0.05)


def control_oracle(database: Path) -> None:
    """What must hold of loops, approvals, retries and children, in SQL."""
    connection = sqlite3.connect(database)
    try:

        def one(query: str) -> Any:
            return connection.execute(query).fetchone()[0]

        assert one("SELECT count(*) FROM instances WHERE parent_id IS NOT NULL") == INSTANCES
        assert one("SELECT count(DISTINCT parent_id) FROM instances") == INSTANCES
        assert one("SELECT count(*) FROM events WHERE type = 'child.ended'") == INSTANCES
        assert one("SELECT count(*) FROM events WHERE type = 'approval.answered'") == INSTANCES
        assert one("SELECT count(*) FROM events WHERE type = 'node.retrying' AND path = 'fails'") == 2 * INSTANCES
        assert one("SELECT count(*) FROM events WHERE type = 'node.failed' AND path = 'fails'") == INSTANCES
        loops = "SELECT count(*) FROM events WHERE type = 'node.completed' AND path LIKE 'each[%'"
        assert one(loops) == INSTANCES * ITEMS
        assert one("SELECT count(*) FROM inbox") == 0
    finally:
        connection.close()
