"""A killed server loses nothing: every instance ends once, every stream is whole, every node is committed once."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import WebSocketException

from tests.live.oracle import hold
from tests.live.server import Server

WIDTH = 4

CREATE = """
mutation ($definition: JSON!) {
  workflowCreate(input: {definition: {json: $definition}}) {
    __typename
    ... on WorkflowCreatePayload { workflow { id } }
    ... on UserError { code message }
  }
}
"""
START = """
mutation ($workflow: ID!, $input: JSON!, $key: String!) {
  instanceStart(input: {workflow: {id: $workflow}, input: $input, idempotencyKey: $key}) {
    __typename
    ... on InstanceStartPayload { instance { id } created }
    ... on UserError { code message }
  }
}
"""
EVENTS = """
subscription ($id: ID!, $after: Int!) {
  instanceEvents(id: $id, after: $after) {
    seq type
    ... on NodeEvent { nodePath }
    ... on InstanceFailedEvent { error { code message } }
  }
}
"""
OUTPUT = "query ($id: ID!) { instance(id: $id) { status output } }"


def definition() -> dict[str, Any]:
    """a → four numbers of Fibonacci beside each other → a join that gathers them."""
    fan = [
        {"id": f"fib{i}", "type": "bench/fib", "parameters": {"n": "{{ n }}"}, "retry": {"max": 0}}
        for i in range(WIDTH)
    ]
    results = [f"{{{{ nodes.fib{i}.output.value }}}}" for i in range(WIDTH)]
    return {
        "name": "survivor",
        "triggers": [{"id": "by-hand", "type": "manual"}],
        "input_schema": {"type": "object", "required": ["n"]},
        "nodes": [
            {"id": "first", "type": "core/noop"},
            *fan,
            {"id": "join", "type": "core/transform", "parameters": {"output": results}},
            {"id": "last", "type": "bench/fib", "parameters": {"n": "{{ trigger.n || `12` }}"}},
        ],
        "edges": [
            *({"source": "first", "target": node["id"]} for node in fan),
            *({"source": node["id"], "target": "join"} for node in fan),
            {"source": "join", "target": "last"},
        ],
    }


@pytest.mark.parametrize(
    ("instances", "kills"), [(50, 4), pytest.param(400, 25, marks=pytest.mark.soak)], ids=["quick", "soak"]
)
async def test_nothing_is_lost_when_the_server_is_killed_again_and_again(
    tmp_path: Path, instances: int, kills: int
) -> None:
    """SIGKILL at random moments: each instance ends COMPLETED, each stream is 1..n exactly once, outputs right."""
    async with Server(tmp_path) as server:
        await survive(server, instances, kills)
        await server.stop()
    await hold(f"sqlite:///{tmp_path / 'mirrorflow.db'}")


async def test_the_same_on_postgresql(tmp_path: Path, postgres_url: str) -> None:
    """There another process may hold an instance, so the leases of a killed one must run out first."""
    env = {"MIRRORFLOW_DATABASE_URL": postgres_url, "MIRRORFLOW_LEASE_SECONDS": "2"}
    async with Server(tmp_path, env=env) as server:
        await survive(server, 20, 2)
        await server.stop()
    await hold(postgres_url)


async def survive(server: Server, instances: int, kills: int) -> None:
    """Start and watch many instances while the server is killed again and again, then look at each."""
    seed = int(os.environ.get("MIRRORFLOW_TEST_SEED", random.randrange(1_000_000)))
    print(f"seed {seed}")  # noqa: T201  (a failure can be repeated with it)
    chance = random.Random(seed)
    made = await server.graphql(CREATE, {"definition": definition()})
    workflow = made["workflowCreate"]["workflow"]["id"]
    inputs = {f"key-{i}": 18 + i % 4 for i in range(instances)}
    streams = [asyncio.create_task(run_to_the_end(server, workflow, key, n)) for key, n in inputs.items()]
    for _ in range(kills):
        await asyncio.sleep(chance.uniform(0.05, 0.6))  # the moment of the kill is what is random here
        server.kill()
        await server.start()
    async with asyncio.timeout(180):
        seen = await asyncio.gather(*streams)
    ids = [id for id, _ in seen]
    assert len(set(ids)) == instances
    for (id, events), n in zip(seen, inputs.values(), strict=True):
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1)), id
        assert events[-1]["type"] == "instance.completed", events[-1]
        ended = Counter(event["nodePath"] for event in events if event["type"] == "node.completed")
        assert set(ended.values()) == {1}
        assert len(ended) == WIDTH + 3
        answer = await server.graphql(OUTPUT, {"id": id})
        assert answer["instance"] == {"status": "COMPLETED", "output": {"last": {"n": 12, "value": 144}}}, (id, n)


async def run_to_the_end(server: Server, workflow: str, key: str, n: int) -> tuple[str, list[dict[str, Any]]]:
    """Start one instance and follow it, through any number of dead servers; its id and what was seen of it."""
    events: list[dict[str, Any]] = []
    id: str | None = None
    while True:
        try:
            if id is None:
                started = await server.graphql(START, {"workflow": workflow, "input": {"n": n}, "key": key})
                id = started["instanceStart"]["instance"]["id"]
            after = events[-1]["seq"] if events else 0
            async with aclosing(server.subscribe(EVENTS, {"id": id, "after": after})) as stream:
                async for data in stream:
                    events.append(data["instanceEvents"])
            if events and events[-1]["type"].removeprefix("instance.") in {"completed", "failed", "canceled"}:
                return id, events
        except (OSError, httpx.HTTPError, WebSocketException, EOFError):
            await asyncio.sleep(0.05)  # the server is dead: try again until it is back
