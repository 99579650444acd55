"""PostgreSQL and Redis go away, forget, and are hard to reach: nothing acknowledged is lost, all goes on by itself."""

from __future__ import annotations

import asyncio

import pytest

from tests.live.chaos.load import Load
from tests.live.cluster import Cluster, Member
from tests.live.mischief import ask
from tests.live.proxy import Manner, Reply

COUNT = "{ instances(first: 1) { nodes { id } } }"


def alive(cluster: Cluster) -> list[tuple[Member, int]]:
    """Every process, by its id: the same list later means that nobody died."""
    assert all(member.running for member in cluster.members)
    return [(member, member.pid) for member in cluster.members]


async def test_redis_is_killed_and_comes_back_empty(cluster: Cluster) -> None:
    """Killed, flushed, restarted empty, under load: nothing is lost, nobody dies, and wake-ups flow again."""
    before = alive(cluster)
    load = await Load(cluster, "redis").prepare()
    await load.add(10)
    adding = asyncio.create_task(load.add(15))
    await cluster.beside(cluster.redis.kill)
    await adding
    await load.add(5)  # acknowledged while there is no Redis
    await cluster.beside(cluster.redis.start)
    adding = asyncio.create_task(load.add(15))
    await cluster.beside(cluster.redis.flush)
    await adding
    await load.complete()
    await load.add(5)
    await load.complete(10)
    assert alive(cluster) == before


async def test_postgresql_is_stopped_hard(cluster: Cluster) -> None:
    """Errors with a code meanwhile, no hang; then all that was acknowledged is done, by the same processes."""
    before = alive(cluster)
    load = await Load(cluster, "postgresql").prepare()
    await load.add(10)
    adding = asyncio.create_task(load.add(15))
    await cluster.beside(cluster.postgres.stop)
    for api in cluster.apis:
        answer = await ask(api, COUNT)
        assert answer.code == "STORAGE_UNAVAILABLE", answer
        assert (await api.request("GET", "/health/live")).status_code == 200
        assert (await api.request("GET", "/health/ready")).status_code == 503
    await cluster.beside(cluster.postgres.start)
    await adding
    await load.complete()
    assert alive(cluster) == before


async def test_lost_replies_of_commits(cluster: Cluster) -> None:
    """Whatever was committed without anybody hearing so has no second effect."""
    load = await Load(cluster, "replies").prepare()
    hits = [
        member.database.at_commit("insert into events", reply)
        for member in cluster.members
        for reply in (Reply.LOST, Reply.NEVER_SENT, Reply.LOST)
    ]
    await load.add(30)
    await load.complete()
    assert sum(hit.done.is_set() for hit in hits) >= 3
    for member in cluster.members:
        member.database.forget()


@pytest.mark.parametrize("lossy", ["database", "redis"])
async def test_a_lossy_link(cluster: Cluster, lossy: str) -> None:
    """Three new connections in ten are refused and many are torn, for every process: slower, and no worse."""
    load = await Load(cluster, f"lossy-{lossy}").prepare()
    manner = Manner(refused=0.3, reset=0.005 if lossy == "database" else 0.3)
    for member in cluster.members:
        getattr(member, lossy).manner = manner
    await load.add(20)
    await asyncio.sleep(1)  # how long the weather lasts is what this test is about
    for member in cluster.members:
        getattr(member, lossy).heal()
    await load.complete()
