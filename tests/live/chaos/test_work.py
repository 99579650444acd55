"""Jobs that do harm, come fifty times, race, or run by a wrong clock: each ends once, and no other suffers."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.live.chaos.load import Load, completed, lines, step
from tests.live.cluster import Cluster
from tests.live.mischief import flow

CANCEL = """
mutation ($id: ID!) { instanceCancel(input: {id: $id}) { __typename ... on UserError { code message } } }
"""
RACES = pytest.mark.parametrize("races", [60, pytest.param(1_000, marks=pytest.mark.soak)], ids=["quick", "soak"])
AT_ONCE = 60


async def test_fifty_deliveries_of_one_job(cluster: Cluster, tmp_path: Path) -> None:
    """However often four workers are told of a run, each of its nodes is executed once."""
    from engine.arq_queue import ArqQueue

    file = tmp_path / "marks"
    mark = {"type": "test/mark", "parameters": {"file": str(file), "seconds": 0.05}}
    workflow = await cluster.store(flow("fifty", {"id": "a"} | mark, {"id": "b"} | mark))
    queue = ArqQueue(cluster.redis.url, listen=False)
    await queue.start()
    try:
        async with cluster.one_more_worker():
            ids = []
            for run in range(5):
                ids.append(await cluster.start(workflow, key=f"fifty-{run}"))
                for n in range(50):
                    queue.wake(ids[-1], fence=n)
            await completed(cluster, ids)
    finally:
        await queue.close()
    assert set(Counter(await lines(file, 10)).values()) == {1}
    assert len(await lines(file, 10)) == 10


async def test_a_job_that_kills_its_worker(cluster: Cluster, tmp_path: Path) -> None:
    """Once: another worker does it. With ``on_lost: fail``: it fails. What ran beside it goes on."""
    load = await Load(cluster, "beside-a-killer").prepare()
    twice, never = tmp_path / "twice", tmp_path / "never"
    killer: dict[str, Any] = {"id": "kill", "type": "test/kill", "parameters": {"file": str(twice), "times": 1}}
    async with cluster.supervised():
        await load.add(5)
        again = await cluster.run(flow("kills", killer))
        await lines(twice, 1)
        killer["parameters"] = {"file": str(never), "times": 99}
        fails = await cluster.run(flow("kills-and-fails", killer | {"on_lost": "fail"}))
        await load.add(5)
        assert (await cluster.ended(again))["status"] == "COMPLETED"
        ended = await cluster.ended(fails)
        assert (ended["status"], ended["error"]["code"]) == ("FAILED", "WORKER_LOST")
        await load.complete()
    assert len(await lines(never, 1)) == 1


@pytest.mark.soak
async def test_a_job_that_always_kills_its_worker(cluster: Cluster, tmp_path: Path) -> None:
    """It is given up as POISON once it was tried alone, and what ran beside it goes on."""
    load = await Load(cluster, "beside-poison").prepare()
    given = {"file": str(tmp_path / "deaths"), "times": 99}
    async with cluster.supervised():
        poison = await cluster.run(flow("poison", {"id": "kill", "type": "test/kill", "parameters": given}))
        await load.add(20)
        ended = await cluster.ended(poison, 180)
        assert (ended["status"], ended["error"]["code"]) == ("FAILED", "POISON")
        await load.complete()
    assert len(await lines(tmp_path / "deaths", 1)) <= 5


async def test_jobs_that_do_harm(cluster: Cluster, tmp_path: Path) -> None:
    """One that hangs, one that ignores SIGTERM, one that eats memory, one that blocks the event loop past the lease:
    only they fail; the API answers, and other work is done.
    """
    load = await Load(cluster, "beside-harm").prepare()

    def harm(kind: str, **more: Any) -> dict[str, Any]:
        given = {"file": str(tmp_path / kind), "seconds": 3}
        node = {"id": kind, "type": f"test/{kind}", "parameters": given, "retry": {"max": 0}}
        return flow(kind, node | more)

    slow = {"timeout": "1s"}
    codes = {
        await cluster.run(harm("hang", **slow)): {"NODE_TIMEOUT"},
        await cluster.run(harm("stubborn", **slow)): {"NODE_TIMEOUT"},
        await cluster.run(harm("eat", resources={"memory": 200})): {"MEMORY_LIMIT"},
    }
    blocks = await cluster.run(harm("block"))
    await lines(tmp_path / "block", 1)
    await load.add(10)
    for api in cluster.apis:
        began = time.monotonic()
        assert (await api.request("GET", "/health/ready")).status_code == 200
        assert time.monotonic() - began < 1
    for id, right in codes.items():
        ended = await cluster.ended(id)
        assert ended["status"] == "FAILED"
        assert ended["error"]["code"] in right, ended
    assert (await cluster.ended(blocks))["status"] == "COMPLETED"
    await load.complete()


@RACES
async def test_cancel_against_completion(cluster: Cluster, races: int) -> None:
    """Cancelled at any moment around its end, twice and through both API processes: a run has one end."""
    chance = random.Random(1)
    mark = flow("race", {"id": "a", "type": "core/delay", "parameters": {"duration": "50ms"}}, step("core/noop", "b"))
    workflow = await cluster.store(mark | {"name": f"race-{races}"})
    running = asyncio.Semaphore(AT_ONCE)

    async def race(n: int) -> str:
        async with running:
            id = await cluster.start(workflow, key=f"race-{races}-{n}")
            await asyncio.sleep(chance.uniform(0, 0.15))
            await asyncio.gather(*(api.graphql(CANCEL, {"id": id}) for api in cluster.apis))
            return id

    ids = list(await asyncio.gather(*(race(n) for n in range(races))))
    assert set(await cluster.over(ids)) <= {"CANCELED", "COMPLETED"}


@RACES
async def test_two_parents_end_together_on_two_workers(cluster: Cluster, tmp_path: Path, races: int) -> None:
    """Their join runs once; again only if a busy machine lost a lease, and then its events say so."""
    file = tmp_path / "joins"
    nodes = [
        {"id": "first", "type": "core/noop"},
        {"id": "left", "type": "core/noop", "runs_on": ["gpu"]},
        {"id": "right", "type": "core/noop", "runs_on": ["eu"]},
        {"id": "join", "type": "test/mark", "parameters": {"file": str(file)}},
    ]
    edges = [
        {"source": source, "target": target}
        for source, targets in {"first": ["left", "right"], "left": ["join"], "right": ["join"]}.items()
        for target in targets
    ]
    workflow = await cluster.store(flow(f"joins-{races}") | {"nodes": nodes, "edges": edges})
    ids: list[str] = []
    while len(ids) < races:
        keys = [f"{workflow}-{n}" for n in range(len(ids), min(len(ids) + AT_ONCE, races))]
        ids += await asyncio.gather(*(cluster.start(workflow, key=key) for key in keys))
    await completed(cluster, ids)
    joined = Counter(line.partition("/")[0] for line in await lines(file, races))
    assert joined.keys() == set(ids)
    for id, times in joined.items():
        if times > 1:
            events = await cluster.follow(id)
            lost = [event for event in events if event["type"] == "node.lost" and event.get("nodePath") == "join"]
            assert times == 1 + len(lost), events


async def test_clocks_that_jump(cluster: Cluster, tmp_path: Path) -> None:
    """An hour ahead, an hour behind, and jumping while runs wait: nothing is early, nothing is lost."""
    for member, hours in zip(cluster.members, (1, -1, 1, -1, 0), strict=True):
        member.clock_off_by(hours * 3_600)
    retried = step("core/fail", "fails", message="no", category="CONNECTION") | {
        "retry": {"max": 1, "base": "500ms", "jitter": 0},
        "fail_on_error": False,
    }
    delayed = step("core/delay", "delay", duration="1s")
    definition = flow("clocks", delayed, step("core/noop", "b"))
    definition["nodes"].append(retried)
    began = time.monotonic()
    ids = [await cluster.run(definition, timeout="60s") for _ in range(6)]
    for member, hours in zip(cluster.members, (-1, 1, 0, 1, -1), strict=True):
        member.clock_off_by(hours * 3_600)
    await completed(cluster, ids, 20)
    assert time.monotonic() - began >= 1
